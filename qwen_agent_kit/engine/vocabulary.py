"""What a grammar needs to know of a vocabulary: its tokens as bytes, ranked by how well they end things.

Three orders of the ids serve the walk to the end of a grammar (``engine.closing``): outside strings closing brackets
come before quotes; inside strings the quote comes first; and for patterns punctuation comes before letters.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from qwen_agent_kit.errors import ModelError

__all__ = ["CLOSING", "Vocabulary", "read_vocabulary"]

CLOSING = 600
"""Ranks below this end something."""

_WORST = 1 << 20
_MARKS = frozenset(bytes([byte]) for byte in b"\\bcdghijkmopqvwxyzABCDFGHIJKLMNOPQRSTUVWXYZ")


@dataclass(frozen=True)
class Vocabulary:
    """A tokenizer as llguidance holds it, and the orders of its ids.

    Args:
        tokenizer: The ``llguidance.LLTokenizer``.
        size: The width of the logits; ids that the tokenizer lacks are never allowed.
        eos: The ids that end a turn.
        outside: Ranks [size], lower is better, where no string is open.
        inside: Ranks [size] where a JSON string is open.
        patterned: Ranks [size] that put punctuation before letters.
        singles: The ids of single printable ASCII characters.
        marks: The ids of characters that JSON allows inside strings alone.
    """

    tokenizer: Any
    size: int
    eos: tuple[int, ...]
    outside: np.ndarray
    inside: np.ndarray
    patterned: np.ndarray
    singles: np.ndarray
    marks: np.ndarray


def read_vocabulary(tokenizer_json: bytes | str, size: int, eos: Sequence[int]) -> Vocabulary:
    """Read ``tokenizer.json``. Takes about a second for 150,000 tokens; keep the result.

    Every added token counts as special, so that free text never matches one: a tag is only ever its own token, and
    text that spells a tag is only ever text.

    Args:
        tokenizer_json: The file's content.
        size: The width of the logits.
        eos: The ids that end a turn.

    Raises:
        ModelError: For a file that is no tokenizer.
    """
    from llguidance import LLTokenizer

    try:
        data = json.loads(tokenizer_json)
        specials = _hidden(data)
        tokenizer = LLTokenizer(json.dumps(data), n_vocab=size, eos_token=list(eos))
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        raise ModelError(f"the tokenizer cannot be read: {type(error).__name__}") from error
    tokens = [b"" if i in specials else tokenizer.decode_bytes([i]) for i in range(size)]
    singles = {token: i for i, token in enumerate(tokens) if len(token) == 1}
    return Vocabulary(
        tokenizer=tokenizer,
        size=size,
        eos=tuple(eos),
        outside=_ranks(tokens, specials, _outside),
        inside=_ranks(tokens, specials, _inside),
        patterned=_ranks(tokens, specials, _patterned),
        singles=np.array([i for token, i in sorted(singles.items()) if 32 <= token[0] < 127], dtype=np.int64),
        marks=np.array([i for token, i in sorted(singles.items()) if token in _MARKS], dtype=np.int64),
    )


def _hidden(data: dict[str, Any]) -> dict[int, bytes]:
    """Give every added token a name that no text holds, so that forced text never becomes one; their texts by id.

    llguidance tokenises what a grammar forces with the tokenizer itself, and that would read ``</tool_call>`` in the
    middle of an argument as the control token.
    """
    specials: dict[int, bytes] = {}
    vocabulary = data["model"].get("vocab")
    for token in data.get("added_tokens") or ():
        content, number = token["content"], token["id"]
        specials[number] = content.encode("utf-8")
        token["special"] = True
        token["content"] = f"\ue000{number}\ue000"
        if isinstance(vocabulary, dict) and content in vocabulary:
            vocabulary[token["content"]] = vocabulary.pop(content)
    data["post_processor"] = None
    return specials


def _ranks(tokens: list[bytes], specials: dict[int, bytes], rank: Any) -> np.ndarray:
    ranks = np.fromiter((rank(token) for token in tokens), dtype=np.int32, count=len(tokens))
    for i, text in specials.items():
        if i < len(ranks):
            ranks[i] = 0 if text.startswith(b"</") else 2 if text.startswith(b"<think") else 1
    return ranks


def _closing(token: bytes) -> int | None:
    """More closing brackets are better; None for tokens that are anything else."""
    brackets = token.rstrip(b"\n")
    return 64 - min(len(token), 32) if brackets and all(byte in b"}]" for byte in brackets) else None


def _outside(token: bytes) -> int:
    closing = _closing(token)
    if closing is not None:
        return 100 + closing
    if token in (b'""', b"[]", b"{}"):
        return 200
    if token.startswith(b"</"):
        return 250
    if token == b'"':
        return 300
    if token.isdigit() and len(token) == 1:
        return 1000
    return _plain(token)


def _inside(token: bytes) -> int:
    if token[:1] == b'"':
        rest = _closing(token[1:])
        if rest is not None or len(token) == 1:
            return 100 + (70 if rest is None else rest)
    return _plain(token)


def _patterned(token: bytes) -> int:
    if len(token) == 1 and 32 < token[0] < 127 and not token.isalnum() and token not in (b'"', b"\\"):
        return 700
    return _inside(token)


def _plain(token: bytes) -> int:
    """Long words fill a minimum length soonest; what opens something comes last."""
    if token.isalnum():
        return 2000 + 100 - min(len(token), 12)
    if any(byte in b"{[,\\" for byte in token) or not token:
        return _WORST
    return 3000 + len(token)
