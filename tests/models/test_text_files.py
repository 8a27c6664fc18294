"""Template, special tokens, ends of a turn and sampling defaults as the model's files say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from qwen_agent_kit.backends import Sampling
from qwen_agent_kit.errors import ModelError
from qwen_agent_kit.models import load_model
from qwen_agent_kit.testing.models import CHATML_TEMPLATE, tiny_model_dir, tiny_tokenizer


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tiny_model_dir(tmp_path, "qwen3")


def change(folder: Path, name: str, **fields: Any) -> None:
    path = folder / name
    data = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**data, **fields}))


def ids(folder: Path, *names: str) -> tuple[int, ...]:
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    return tuple(tokenizer.token_to_id(name) for name in names)


def test_ends_of_a_turn(folder: Path) -> None:
    """generation_config's list before config's id, joined with the tokenizer's own and with ChatML's."""
    end, text = ids(folder, "<|im_end|>", "<|endoftext|>")
    assert load_model(folder).eos == (end,)
    change(folder, "generation_config.json", eos_token_id=[text, end])
    assert load_model(folder).eos == (text, end)
    change(folder, "generation_config.json", eos_token_id=text)
    assert load_model(folder).eos == (text, end)
    change(folder, "tokenizer_config.json", eos_token="<|endoftext|>", chat_template=None)
    assert load_model(folder).eos == (text,)


@pytest.mark.parametrize("value", [10**6, -1, "x", True, [1, 10**6], list(range(100)), {"a": 1}])
def test_an_end_of_turn_that_is_no_id_is_named(folder: Path, value: Any) -> None:
    """Outside the vocabulary, of another type, or too many."""
    change(folder, "generation_config.json", eos_token_id=value)
    with pytest.raises(ModelError, match=r"`eos_token_id` in `generation_config.json`"):
        load_model(folder)


def test_templates(folder: Path) -> None:
    """A chat_template.jinja beats tokenizer_config; of several named ones the default counts; none is None."""
    assert load_model(folder).template == CHATML_TEMPLATE
    named = [{"name": "rag", "template": "R"}, {"name": "default", "template": "D"}]
    change(folder, "tokenizer_config.json", chat_template=named)
    assert load_model(folder).template == "D"
    (folder / "chat_template.jinja").write_text("J")
    assert load_model(folder).template == "J"
    (folder / "chat_template.jinja").write_text("J" * 2**21)
    with pytest.raises(ModelError, match=r"`chat_template.jinja` has 2097152 bytes"):
        load_model(folder)
    (folder / "chat_template.jinja").unlink()
    change(folder, "tokenizer_config.json", chat_template=None)
    assert load_model(folder).template is None


def test_special_tokens_as_text_or_object(folder: Path) -> None:
    """Both ways in which transformers writes them."""
    change(folder, "tokenizer_config.json", bos_token={"content": "<|im_start|>", "special": True}, unk_token=None)
    special = load_model(folder).special
    assert special == {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}


@pytest.mark.parametrize(
    ("generation", "expected"),
    [
        ({}, {}),
        (
            {"do_sample": True, "temperature": 0.7, "top_p": 0.8, "top_k": 20},
            {"temperature": 0.7, "top_p": 0.8, "top_k": 20},
        ),
        ({"do_sample": True, "top_k": 5}, {"temperature": 1.0, "top_k": 5}),
        (
            {"do_sample": False, "temperature": 0.7, "repetition_penalty": 1.1},
            {"temperature": 0.0, "repetition_penalty": 1.1},
        ),
        ({"do_sample": False}, {"temperature": 0.0}),
    ],
)
def test_sampling_defaults(folder: Path, generation: dict[str, Any], expected: dict[str, Any]) -> None:
    """What generation_config.json says, as fields of ``Sampling``."""
    change(folder, "generation_config.json", **generation)
    found = load_model(folder).sampling_defaults
    assert found == expected
    Sampling(**found)


def test_f14_a_sampling_default_out_of_range_is_named(folder: Path) -> None:
    """The file and the field."""
    change(folder, "generation_config.json", do_sample=True, top_p=7)
    with pytest.raises(ModelError, match=r"`generation_config.json`: `top_p` is 7"):
        load_model(folder)


def test_f14_a_tokenizer_with_code_is_refused(folder: Path) -> None:
    """tokenizer_config.json may name remote code too."""
    change(folder, "tokenizer_config.json", auto_map={"AutoTokenizer": ["tok.Tok", None]})
    with pytest.raises(ModelError, match=r"`auto_map` in `tokenizer_config.json`"):
        load_model(folder)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"model": {}, "added_tokens": [{"id": "x", "content": "y"}]}'])
def test_a_tokenizer_that_is_none_is_refused(folder: Path, text: str) -> None:
    """Missing, empty or of another shape."""
    (folder / "tokenizer.json").write_text(text)
    with pytest.raises(ModelError, match=r"`tokenizer.json`"):
        load_model(folder)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ModelError, match=r"tokenizer.json` is missing"):
        load_model(folder)


def test_the_tiny_tokenizer_is_a_real_one() -> None:
    """Every text comes back, control tokens are one id each, and words take fewer ids than bytes."""
    tokenizer = Tokenizer.from_str(tiny_tokenizer())
    for text in ("What is the weather?", "你好 👋🏽\n\t", '{"name": "x", "arguments": {}}', "\x00\x7f"):
        assert tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False) == text
    for name in ("<|im_start|>", "<|im_end|>", "<tool_call>", "</tool_call>", "<think>", "</think>"):
        assert len(tokenizer.encode(name).ids) == 1
    assert len(tokenizer.encode("the weather arguments").ids) < 12
    assert tiny_tokenizer() == tiny_tokenizer()
