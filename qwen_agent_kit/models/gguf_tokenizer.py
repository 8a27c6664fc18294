"""The tokenizer that GGUF metadata describes, as a tokenizer.json.

Byte-level BPE (``tokenizer.ggml.model`` = ``gpt2``) takes its pre-tokenizer from ``tokenizer.ggml.pre``, whose meaning
is fixed in llama.cpp src/llama-vocab.cpp; SentencePiece BPE (``llama``) takes its merges from the vocabulary's scores.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from qwen_agent_kit.errors import ModelError

__all__ = ["QWEN_SPLIT", "added_token", "bpe_model", "byte_level", "special_from_gguf", "tokenizer_from_gguf"]

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_TAIL = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
QWEN_SPLIT = _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}" + _TAIL
_LLAMA3 = _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}" + _TAIL
_QWEN35 = (
    _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

_SPLITS = {
    "qwen2": QWEN_SPLIT,
    "deepseek-r1-qwen": QWEN_SPLIT,
    "qwen35": _QWEN35,
    "llama3": _LLAMA3,
    "llama-v3": _LLAMA3,
    "llama-bpe": _LLAMA3,
}
_DIGITS = ("smollm", "starcoder", "refact", "command-r")  # each digit alone, then GPT-2's own split
_PLAIN = ("gpt-2", "gpt2", "default", "")
_CONTROL, _USER, _UNUSED = 3, 4, 5
_SPECIAL = {
    "bos_token": "bos_token_id",
    "eos_token": "eos_token_id",
    "unk_token": "unknown_token_id",
    "pad_token": "padding_token_id",
}


def tokenizer_from_gguf(metadata: Mapping[str, Any], where: str = "the GGUF file") -> str:
    """The text of a tokenizer.json.

    Args:
        metadata: Of the file, with ``tokenizer.ggml.*``.
        where: Its name, for messages.

    Raises:
        ModelError: Where a list is missing, of another length, or the model or pre-tokenizer is unknown.
    """
    model = metadata.get("tokenizer.ggml.model")
    tokens = _strings(metadata, "tokenizer.ggml.tokens", where)
    kinds = metadata.get("tokenizer.ggml.token_type") or [1] * len(tokens)
    if not isinstance(kinds, list) or len(kinds) != len(tokens):
        raise ModelError(f"`tokenizer.ggml.token_type` in `{where}` has another length than the vocabulary")
    vocab: dict[str, int] = {}
    for index, (token, kind) in enumerate(zip(tokens, kinds, strict=True)):
        if kind != _UNUSED:
            vocab.setdefault(token, index)
    if model == "gpt2":
        parts = _byte_level(metadata, vocab, where)
    elif model == "llama":
        parts = _sentencepiece(metadata, tokens, vocab, where)
    else:
        raise ModelError(f"`tokenizer.ggml.model` in `{where}` is {str(model)[:80]!r}; allowed: gpt2, llama")
    added = [
        added_token(token, vocab[token], special=kind == _CONTROL)
        for token, kind in _whole_tokens(tokens, kinds, vocab)
    ]
    if metadata.get("tokenizer.ggml.add_bos_token", model == "llama") is True:
        parts["post_processor"] = _leading(metadata, tokens, parts["post_processor"])
    return json.dumps(
        {"version": "1.0", "truncation": None, "padding": None, "added_tokens": added, **parts}, ensure_ascii=False
    )


def _whole_tokens(tokens: Sequence[str], kinds: Sequence[int], vocab: Mapping[str, int]) -> list[tuple[str, int]]:
    """What is never split: control tokens and those that the model's makers added."""
    pairs = enumerate(zip(tokens, kinds, strict=True))
    return [(token, kind) for i, (token, kind) in pairs if kind in (_CONTROL, _USER) and token and vocab[token] == i]


def _strings(metadata: Mapping[str, Any], key: str, where: str) -> list[str]:
    value = metadata.get(key)
    if not isinstance(value, list) or not value or not all(isinstance(v, str) for v in value):
        raise ModelError(f"`{key}` in `{where}` is missing or no list of strings", hint="fetch the model again")
    return value


def added_token(content: str, index: int, *, special: bool) -> dict[str, Any]:
    """An entry of tokenizer.json's ``added_tokens``."""
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": special}
    return {"id": index, "content": content, **flags}


def _byte_level(metadata: Mapping[str, Any], vocab: dict[str, int], where: str) -> dict[str, Any]:
    name = metadata.get("tokenizer.ggml.pre")
    if name is None and str(metadata.get("general.architecture", "")).startswith("qwen"):
        name = "qwen2"  # files from before the key existed
    name = name or ""
    if name in _SPLITS:
        split = {"type": "Split", "pattern": {"Regex": _SPLITS[name]}, "behavior": "Isolated", "invert": False}
        steps = [split, byte_level(use_regex=False)]
    elif name in _DIGITS:
        steps = [{"type": "Digits", "individual_digits": True}, byte_level(use_regex=True)]
    elif name in _PLAIN:
        steps = [byte_level(use_regex=True)]
    else:
        allowed = ", ".join(sorted({*_SPLITS, *_DIGITS, *_PLAIN} - {""}))
        raise ModelError(f"`tokenizer.ggml.pre` in `{where}` is {str(name)[:80]!r}; allowed: {allowed}")
    merges = []
    for merge in _strings(metadata, "tokenizer.ggml.merges", where):
        left, space, right = merge.partition(" ")
        if not space or not {left, right, left + right} <= vocab.keys():
            raise ModelError(f"`tokenizer.ggml.merges` in `{where}` has {merge[:80]!r}, which the vocabulary does not")
        merges.append([left, right])
    # Qwen's own tokenizer.json composes characters first; Llama 3's takes a word that is in the vocabulary whole.
    return {
        "normalizer": {"type": "NFC"} if name in ("qwen2", "qwen35") else None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": steps},
        "post_processor": byte_level(use_regex=False),
        "decoder": byte_level(use_regex=True),
        "model": bpe_model(vocab, merges, ignore_merges=_SPLITS.get(name) == _LLAMA3),
    }


def byte_level(*, use_regex: bool) -> dict[str, Any]:
    """A byte-level step; with ``use_regex`` it splits as GPT-2 does."""
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": use_regex}


def bpe_model(vocab: dict[str, int], merges: list[list[str]], **more: Any) -> dict[str, Any]:
    """The ``model`` of a tokenizer.json."""
    model: dict[str, Any] = {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None}
    model |= {"end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False}
    return {**model, **more, "vocab": vocab, "merges": merges}


def _sentencepiece(metadata: Mapping[str, Any], tokens: list[str], vocab: dict[str, int], where: str) -> dict[str, Any]:
    """SentencePiece BPE as `tokenizers` runs it: merges recovered from the pieces, bytes as a fallback."""
    scores = metadata.get("tokenizer.ggml.scores")
    if not isinstance(scores, list) or len(scores) != len(tokens):
        raise ModelError(f"`tokenizer.ggml.scores` in `{where}` is missing or has another length than the vocabulary")
    found: list[tuple[float, int, int, str, str]] = []
    for token, index in vocab.items():
        for cut in range(1, len(token)):
            left, right = token[:cut], token[cut:]
            if left in vocab and right in vocab:
                found.append((-scores[index], vocab[left], vocab[right], left, right))
    merges = [[left, right] for *_, left, right in sorted(found)]
    prefix = metadata.get("tokenizer.ggml.add_space_prefix", True)
    replaced = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    steps = [{"type": "Prepend", "prepend": "▁"}, replaced] if prefix else [replaced]
    unknown = metadata.get("tokenizer.ggml.unknown_token_id", 0)
    decoders: list[dict[str, Any]] = [
        {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    if prefix:
        decoders.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    name = tokens[unknown] if isinstance(unknown, int) and 0 <= unknown < len(tokens) else None
    return {
        "normalizer": {"type": "Sequence", "normalizers": steps},
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": bpe_model(vocab, merges, unk_token=name, fuse_unk=True, byte_fallback=True),
    }


def _leading(metadata: Mapping[str, Any], tokens: list[str], inner: Any) -> Any:
    """A post-processor that puts the first token in front of plain text, as the file asks for."""
    bos = metadata.get("tokenizer.ggml.bos_token_id")
    if not isinstance(bos, int) or not 0 <= bos < len(tokens):
        return inner
    first = {"SpecialToken": {"id": tokens[bos], "type_id": 0}}
    template = {
        "type": "TemplateProcessing",
        "single": [first, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [first, {"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {tokens[bos]: {"id": tokens[bos], "ids": [bos], "tokens": [tokens[bos]]}},
    }
    return template if inner is None else {"type": "Sequence", "processors": [inner, template]}


def special_from_gguf(metadata: Mapping[str, Any]) -> dict[str, str]:
    """``bos_token``, ``eos_token``, ``unk_token`` and ``pad_token``, as far as the file names them."""
    tokens = metadata.get("tokenizer.ggml.tokens") or []
    found = {}
    for ours, key in _SPECIAL.items():
        index = metadata.get(f"tokenizer.ggml.{key}")
        if isinstance(index, int) and 0 <= index < len(tokens):
            found[ours] = tokens[index]
    return found
