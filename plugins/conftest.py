"""The tests of the shipped plugins: a private root for each, and the real weights."""

from __future__ import annotations

from pathlib import Path

import pytest

WEIGHTS = Path(__file__).resolve().parents[1] / ".cache" / "smollm2" / "SmolLM2-135M-Instruct.Q4_1.gguf"


@pytest.fixture(autouse=True)
def private_home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Each test has a root of its own, so that none sees the user's files or another's."""
    home = tmp_path_factory.mktemp("qak-home")
    monkeypatch.setenv("QAK_HOME", str(home))
    for name in ("QAK_MODEL", "QAK_PLUGINS", "QAK_PLUGINS_OFF", "QAK_TRACE"):
        monkeypatch.delenv(name, raising=False)
    return home


@pytest.fixture(scope="session")
def smollm2_gguf() -> Path:
    """The real SmolLM2-135M-Instruct weights, Q4_1."""
    assert WEIGHTS.exists(), f"{WEIGHTS} is missing; `make material` fetches it"
    return WEIGHTS
