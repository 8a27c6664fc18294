"""How torch is loaded."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import pytest

from qwen_agent_kit import Host
from qwen_agent_kit.errors import ModelError
from qwen_agent_kit.host import tuning
from qwen_agent_kit.host.tuning import undisturbed
from qwen_agent_kit.testing.models import tiny_model_dir


def test_the_collector_rests_while_a_model_is_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And works again after it, also where opening fails."""
    seen: list[bool] = []
    plain = Host._open

    def watched(self: Host, target: Any) -> Any:
        seen.append(gc.isenabled())
        return plain(self, target)

    monkeypatch.setattr(Host, "_open", watched)
    with Host(quant="fp32", cache=False, prefixes=False) as host:
        host.open(str(tiny_model_dir(tmp_path / "model", layers=1, hidden=16, heads=2, kv_heads=1)))
        assert gc.isenabled()
        (tmp_path / "model" / "model.safetensors").write_bytes(b"")
        (tmp_path / "model").rename(tmp_path / "cut")
        with pytest.raises(ModelError):
            host.open(str(tmp_path / "cut"))
    assert seen == [False, False]
    assert gc.isenabled()


def test_who_switched_it_off_keeps_it_off() -> None:
    """It is given back as it was found."""
    gc.disable()
    try:
        with undisturbed():
            assert not gc.isenabled()
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_only_in_its_own_process_what_is_there_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """A program's own objects stay the collector's; a command's are not walked again."""
    monkeypatch.setattr(tuning, "_OWN", [])
    gc.unfreeze()
    with undisturbed():
        pass
    assert gc.get_freeze_count() == 0
    tuning.own_process()
    try:
        with undisturbed():
            pass
        assert gc.get_freeze_count() > 0
    finally:
        gc.unfreeze()
