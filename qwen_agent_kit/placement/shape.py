"""The sizes of a model, from its config.json or its GGUF header, without reading weights.

Parameter counts follow transformers' classes: models/llama, qwen2, qwen2_moe, qwen3, qwen3_moe.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qwen_agent_kit.errors import ModelError
from qwen_agent_kit.placement.gguf import read_gguf

__all__ = ["Shape", "read_shape"]


@dataclass(frozen=True, slots=True)
class Shape:
    """What the byte formulae need."""

    model_type: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocab: int
    context: int
    tied: bool
    experts: int = 0
    expert_intermediate: int = 0
    shared_intermediate: int = 0

    @property
    def linear_parameters(self) -> int:
        """Weights of the linear layers, the head excluded."""
        attention = self.hidden * self.head_dim * (2 * self.heads + 2 * self.kv_heads)
        if self.experts:
            mlp = 3 * self.hidden * (self.experts * self.expert_intermediate + self.shared_intermediate)
            mlp += self.hidden * self.experts + (self.hidden if self.shared_intermediate else 0)
        else:
            mlp = 3 * self.hidden * self.intermediate
        return self.layers * (attention + mlp)

    @property
    def embedding_parameters(self) -> int:
        """Of the input embedding; an untied head has as many again."""
        return self.vocab * self.hidden

    @property
    def small_parameters(self) -> int:
        """Norms and biases, which stay at full precision."""
        norms = 2 * self.hidden * self.layers + self.hidden
        if self.model_type in ("qwen3", "qwen3_moe", "qwen3moe"):
            return norms + 2 * self.head_dim * self.layers
        if self.model_type.startswith("qwen"):
            return norms + self.layers * self.head_dim * (self.heads + 2 * self.kv_heads)
        return norms

    @property
    def parameters(self) -> int:
        """All of them, a tied head counted once."""
        head = 0 if self.tied else self.embedding_parameters
        return self.linear_parameters + self.embedding_parameters + head + self.small_parameters

    def kv_bytes(self, bytes_per_value: int) -> int:
        """Per position: keys and values of every layer."""
        return 2 * self.layers * self.kv_heads * self.head_dim * bytes_per_value


def read_shape(path: Path) -> Shape:
    """The sizes of the model at ``path``, a directory with config.json or a GGUF file.

    Raises:
        ModelError: Where the file is missing, broken or lacks a field.
    """
    if path.is_dir():
        return _from_config(path / "config.json")
    return _from_gguf(path)


def _from_config(path: Path) -> Shape:
    try:
        with path.open("rb") as file:
            data = json.loads(file.read(2**20))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"cannot read `{path}`", hint="a model directory holds config.json") from error
    if not isinstance(data, dict):
        raise ModelError(f"`{path}` holds no object")
    heads = _whole(data, "num_attention_heads", path)
    hidden = _whole(data, "hidden_size", path)
    return Shape(
        model_type=str(data.get("model_type", "")),
        layers=_whole(data, "num_hidden_layers", path),
        hidden=hidden,
        heads=heads,
        kv_heads=_whole(data, "num_key_value_heads", path, heads),
        head_dim=_whole(data, "head_dim", path, hidden // heads),
        # Qwen 1.0 counts gate and up together.
        intermediate=_whole(data, "intermediate_size", path) // (2 if data.get("model_type") == "qwen" else 1),
        vocab=_whole(data, "vocab_size", path),
        context=_whole(data, "max_position_embeddings", path, _whole(data, "seq_length", path, 2048)),
        tied=bool(data.get("tie_word_embeddings", False)),
        experts=_whole(data, "num_experts", path, _whole(data, "num_local_experts", path, 0)),
        expert_intermediate=_whole(data, "moe_intermediate_size", path, 0),
        shared_intermediate=_whole(data, "shared_expert_intermediate_size", path, 0),
    )


def _whole(data: Mapping[str, Any], key: str, path: Path, default: int | None = None) -> int:
    value = data.get(key)
    if value is None and default is not None:
        return default
    if isinstance(value, bool) or not isinstance(value, int) or not (0 if default == 0 else 1) <= value < 2**31:
        raise ModelError(f"`{key}` in `{path.name}` is {value!r}; allowed: a whole number from 1 to {2**31 - 1}")
    return value


def _from_gguf(path: Path) -> Shape:
    header = read_gguf(path, arrays=False)
    meta = header.metadata
    arch = str(meta.get("general.architecture", ""))
    get = {key.removeprefix(f"{arch}."): value for key, value in meta.items()}
    heads = _whole(get, "attention.head_count", path)
    hidden = _whole(get, "embedding_length", path)
    return Shape(
        model_type=arch,
        layers=_whole(get, "block_count", path),
        hidden=hidden,
        heads=heads,
        kv_heads=_whole(get, "attention.head_count_kv", path, heads),
        head_dim=_whole(get, "attention.key_length", path, hidden // heads),
        intermediate=_whole(get, "feed_forward_length", path, 0) // (2 if arch == "qwen" else 1),
        vocab=_whole(get, "tokenizer.ggml.tokens", path, _whole(get, "vocab_size", path, 0)),
        context=_whole(get, "context_length", path),
        tied=all(tensor.name != "output.weight" for tensor in header.tensors),
        experts=_whole(get, "expert_count", path, 0),
        expert_intermediate=_whole(get, "expert_feed_forward_length", path, 0),
        shared_intermediate=_whole(get, "expert_shared_feed_forward_length", path, 0),
    )
