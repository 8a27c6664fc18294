"""Random models of true shapes as GGUF files: they say nothing, and take as long as the true ones.

Each is made once and kept in the cache directory.
"""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from qwen_agent_kit.paths import cache_dir

__all__ = ["SHAPES", "random_gguf"]


@dataclass(frozen=True, slots=True)
class _Sizes:
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    intermediate: int
    vocab: int = 151_936


SHAPES = {
    "qwen2.5-0.5b": _Sizes(24, 896, 14, 2, 4864),
    "qwen2.5-1.5b": _Sizes(28, 1536, 12, 2, 8960),
}
"""Sizes of the released models, by name."""


def random_gguf(shape: str, kind: str) -> Path:
    """A model of a shape of ``SHAPES`` with random weights in ``Q8_0`` or ``Q4_0``, its head tied."""
    from gguf import GGUFWriter

    place = cache_dir("bench") / f"random-{shape}-{kind}.gguf"
    if place.exists():
        return place
    with tempfile.TemporaryDirectory(dir=place.parent, prefix=".making-") as folder:
        made = Path(folder) / "model.gguf"
        writer = GGUFWriter(made, "qwen2")
        _describe(writer, SHAPES[shape])
        _fill(writer, SHAPES[shape], kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        os.replace(made, place)
    return place


def _describe(writer: Any, sizes: _Sizes) -> None:
    import tokenizers

    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    tokens = [*alphabet, "ab", *(f"<t{i}>" for i in range(len(alphabet) + 1, sizes.vocab))]
    numbers = {
        "block_count": sizes.layers,
        "context_length": 32_768,
        "embedding_length": sizes.hidden,
        "feed_forward_length": sizes.intermediate,
        "attention.head_count": sizes.heads,
        "attention.head_count_kv": sizes.kv_heads,
    }
    for key, number in numbers.items():
        writer.add_uint32(f"qwen2.{key}", number)
    writer.add_float32("qwen2.rope.freq_base", 1e6)
    writer.add_float32("qwen2.attention.layer_norm_rms_epsilon", 1e-6)
    writer.add_string("tokenizer.ggml.model", "gpt2")
    writer.add_string("tokenizer.ggml.pre", "qwen2")
    writer.add_array("tokenizer.ggml.tokens", tokens)
    writer.add_array("tokenizer.ggml.token_type", [1] * sizes.vocab)
    writer.add_array("tokenizer.ggml.merges", ["a b"])
    writer.add_uint32("tokenizer.ggml.eos_token_id", 0)
    writer.add_bool("tokenizer.ggml.add_bos_token", False)


def _fill(writer: Any, sizes: _Sizes, kind: str) -> None:
    generator = np.random.default_rng(0)
    dim = sizes.hidden // sizes.heads

    def vector(name: str, size: int, value: float) -> None:
        writer.add_tensor(name, np.full(size, value, np.float32))

    def matrix(name: str, rows: int, columns: int, of: str = kind) -> None:
        from gguf import GGMLQuantizationType

        writer.add_tensor(name, _blocks(generator, rows, columns, of), raw_dtype=GGMLQuantizationType[of])

    matrix("token_embd.weight", sizes.vocab, sizes.hidden, "Q8_0")
    vector("output_norm.weight", sizes.hidden, 1.0)
    for i in range(sizes.layers):
        vector(f"blk.{i}.attn_norm.weight", sizes.hidden, 1.0)
        vector(f"blk.{i}.ffn_norm.weight", sizes.hidden, 1.0)
        for name, heads in (("q", sizes.heads), ("k", sizes.kv_heads), ("v", sizes.kv_heads)):
            matrix(f"blk.{i}.attn_{name}.weight", heads * dim, sizes.hidden)
            vector(f"blk.{i}.attn_{name}.bias", heads * dim, 0.0)
        matrix(f"blk.{i}.attn_output.weight", sizes.hidden, sizes.heads * dim)
        matrix(f"blk.{i}.ffn_gate.weight", sizes.intermediate, sizes.hidden)
        matrix(f"blk.{i}.ffn_up.weight", sizes.intermediate, sizes.hidden)
        matrix(f"blk.{i}.ffn_down.weight", sizes.hidden, sizes.intermediate)


def _blocks(generator: np.random.Generator, rows: int, columns: int, kind: str) -> np.ndarray:
    """Random blocks of ``kind`` whose values deviate by about 0.02, uint8 [rows, bytes]."""
    size, scale = {"Q8_0": (32, 0.02 / 73), "Q4_0": (16, 0.02 / 4.6)}[kind]
    blocks = np.empty((rows * columns // 32, 2 + size), np.uint8)
    blocks[:, :2] = np.frombuffer(np.float16(scale).tobytes(), np.uint8)
    blocks[:, 2:] = generator.integers(0, 256, (len(blocks), size), np.uint8)
    return blocks.reshape(rows, -1)
