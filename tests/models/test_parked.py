"""Layers that stay on disk: the same answers, out of memory that is given back after each layer."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from oracle import our_logits

from qwen_agent_kit.errors import PlanError, UsageError
from qwen_agent_kit.models import load_model
from qwen_agent_kit.models.parked import ParkedLayers
from qwen_agent_kit.testing.models import tiny_model_dir

IDS = [5, 100, 200, 7, 9]


@pytest.mark.parametrize("quant", ["fp32", "bf16", "int8", "int4"])
@pytest.mark.parametrize("kind", ["qwen2", "qwen3_moe"])
def test_the_same_answers(tmp_path: Path, kind: str, quant: str) -> None:
    """Whichever layers are on disk, and whether the cache was there or is made, logits are equal to the bit."""
    folder, cache = tiny_model_dir(tmp_path / "model", kind), tmp_path / "cache"
    whole = load_model(folder, quant=quant)
    whole.model.native = None  # parked layers run one by one, in other operations than a native step
    expected = our_logits(whole.model, IDS)
    layers = whole.config.layers
    for disk in (range(1, layers), range(layers), range(layers - 1, layers)):
        parked = load_model(folder, quant=quant, cache=cache, disk=disk)
        for _ in range(2):  # what was let go of is read again
            assert torch.equal(our_logits(parked.model, IDS), expected)
        assert parked.model.weight_bytes == whole.model.weight_bytes
        assert parked.digest == whole.digest


def test_parked_layers_are_let_go_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each parked layer is brought in and let go of once a forward, in order; the others never."""
    folder, cache = tiny_model_dir(tmp_path / "model", "qwen2"), tmp_path / "cache"
    advised: list[tuple[str, int]] = []
    advise = ParkedLayers._advise
    monkeypatch.setattr(
        ParkedLayers, "_advise", lambda self, what, n: (advised.append((what, n)), advise(self, what, n))
    )
    loaded = load_model(folder, quant="bf16", cache=cache, disk=range(1, 2))
    our_logits(loaded.model, IDS)
    assert advised == [("MADV_WILLNEED", 1), ("MADV_DONTNEED", 1)]


def test_without_a_place_on_disk_it_is_an_error(tmp_path: Path) -> None:
    """No cache is a usage error, one that cannot be written a plan error: never all of it in memory after all."""
    folder = tiny_model_dir(tmp_path / "model", "qwen2")
    with pytest.raises(UsageError, match="there is none"):
        load_model(folder, disk=range(1))
    (tmp_path / "cache").write_text("a file")
    with pytest.raises((UsageError, PlanError), match="on disk"):
        load_model(folder, cache=tmp_path / "cache", disk=range(1))
