"""Renderers over the real tokenizers, made once."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qwen_agent_kit import dialects, foreign
from qwen_agent_kit.prompt import PromptRenderer


def opened(folder: Path, **options: Any) -> PromptRenderer:
    """A renderer over a tokenizer's folder; ``template`` may be given in place of its own."""
    config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    template = options.pop("template", config["chat_template"])
    options.setdefault("dialect", dialects.get("hermes"))
    special = {name: config[name] for name in ("bos_token", "eos_token", "pad_token") if config.get(name)}
    return PromptRenderer((folder / "tokenizer.json").read_bytes(), template, special=special, **options)


@pytest.fixture(scope="session")
def qwen25(qwen25_dir: Path) -> PromptRenderer:
    return opened(qwen25_dir)


@pytest.fixture(scope="session")
def qwen3(qwen3_dir: Path) -> PromptRenderer:
    return opened(qwen3_dir)


@pytest.fixture(scope="session", params=["qwen25", "qwen3"])
def renderer(request: pytest.FixtureRequest) -> PromptRenderer:
    found: PromptRenderer = request.getfixturevalue(request.param)
    return found


@pytest.fixture(scope="session")
def open_renderer(qwen3_dir: Path) -> Callable[..., PromptRenderer]:
    """``open_renderer(template=..., ...)`` over the Qwen3 tokenizer."""
    return lambda **options: opened(options.pop("folder", qwen3_dir), **options)


@pytest.fixture(scope="session")
def official(qwen25_dir: Path, qwen3_dir: Path) -> dict[str, Any]:
    """The tokenizers of transformers, by the name of the fixture of ours."""
    transformers = foreign.transformers()
    folders = {"qwen25": qwen25_dir, "qwen3": qwen3_dir}
    return {name: transformers.AutoTokenizer.from_pretrained(str(folder)) for name, folder in folders.items()}


@pytest.fixture(scope="session")
def full_tokenizers(qwen25_dir: Path, qwen3_dir: Path) -> dict[str, Any]:
    """The whole tokenizers, added tokens included, to decode with."""
    from tokenizers import Tokenizer

    folders = {"qwen25": qwen25_dir, "qwen3": qwen3_dir}
    return {name: Tokenizer.from_file(str(folder / "tokenizer.json")) for name, folder in folders.items()}
