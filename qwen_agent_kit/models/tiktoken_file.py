"""Qwen 1.0's tokenizer: a list of byte strings by rank (``qwen.tiktoken``), turned into a tokenizer.json.

The split, the normalisation and the control tokens are those of QwenLM's tokenization_qwen.py; its ChatML frame is that
of ``make_context`` in qwen_generation_utils.py, since the repositories carry no chat template.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path

from qwen_agent_kit.errors import ModelError
from qwen_agent_kit.models.gguf_tokenizer import QWEN_SPLIT, added_token, bpe_model, byte_level

__all__ = ["QWEN_TEMPLATE", "tokenizer_from_tiktoken"]

MAX_BYTES = 64 * 2**20

_CONTROL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", *(f"<|extra_{i}|>" for i in range(205)))

QWEN_TEMPLATE = """\
{%- if not messages or messages[0].role != 'system' -%}
{{- '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' -}}
{%- endif -%}
{%- for message in messages -%}
{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}
"""


def tokenizer_from_tiktoken(path: Path) -> str:
    """The text of a tokenizer.json; merges are recovered by splitting each string with those of lower rank.

    Raises:
        ModelError: Where a line is not a base64 string and its rank, or ranks are not 0 to n - 1.
    """
    ranks = _ranks(path)
    letters = _letters()
    vocab = {"".join(letters[b] for b in word): rank for word, rank in ranks.items()}
    merges = []
    for word, rank in ranks.items():
        if len(word) > 1 and (pair := _last_merge(ranks, word, rank)) is not None:
            merges.append(["".join(letters[b] for b in half) for half in pair])
    split = {"type": "Split", "pattern": {"Regex": QWEN_SPLIT}, "behavior": "Isolated", "invert": False}
    data = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [added_token(name, len(ranks) + i, special=True) for i, name in enumerate(_CONTROL)],
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, byte_level(use_regex=False)]},
        "post_processor": byte_level(use_regex=False),
        "decoder": byte_level(use_regex=True),
        "model": bpe_model(vocab, merges),
    }
    return json.dumps(data, ensure_ascii=False)


def _ranks(path: Path) -> dict[bytes, int]:
    if path.stat().st_size > MAX_BYTES:
        raise ModelError(f"`{path.name}` has {path.stat().st_size} bytes; allowed: at most {MAX_BYTES}")
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        try:
            word, rank = line.split()
            ranks[base64.b64decode(word, validate=True)] = int(rank)
        except (ValueError, binascii.Error) as error:
            raise ModelError(f"line {number} of `{path.name}` is not a base64 string and its rank") from error
    if sorted(ranks.values()) != list(range(len(ranks))) or any(bytes([b]) not in ranks for b in range(256)):
        raise ModelError(f"`{path.name}` has {len(ranks)} strings whose ranks are not 0 on, or lacks single bytes")
    return dict(sorted(ranks.items(), key=lambda item: item[1]))


def _last_merge(ranks: Mapping[bytes, int], word: bytes, below: int) -> tuple[bytes, bytes] | None:
    """The two halves that byte-pair encoding joins last to make ``word``, None where it cannot be made."""
    parts = [word[i : i + 1] for i in range(len(word))]
    while len(parts) > 2:
        joins = [(ranks.get(a + b, below), i) for i, (a, b) in enumerate(pairwise(parts))]
        rank, at = min(joins)
        if rank >= below:
            return None
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return parts[0], parts[1]


def _letters() -> list[str]:
    """GPT-2's printable letter for each byte (openai/gpt-2, encoder.py `bytes_to_unicode`)."""
    shown = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    hidden = [b for b in range(256) if b not in shown]
    return [chr(b) if b in shown else chr(0x100 + hidden.index(b)) for b in range(256)]
