"""From a config.json or a GGUF header to a ``Shape``; nothing is imported, fetched or allocated for what it says."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qwen_agent_kit.catalog import family_of
from qwen_agent_kit.errors import ModelError
from qwen_agent_kit.placement.gguf import GGUFHeader, read_gguf
from qwen_agent_kit.placement.shape import Delta, Shape
from qwen_agent_kit.placement.towers import Tower, audio_tower, vision_tower

__all__ = ["read_config", "read_shape", "shape_from_config", "shape_from_gguf", "thinker_of"]

_QWEN2 = ("qwen2", "qwen2_vl", "qwen2_5_vl", "qwen2_audio", "qwen2_5_omni_thinker", "qwen2_5_omni")
_MOE = ("qwen2_moe", "qwen3_moe", "qwen3_vl_moe", "qwen3_omni_moe", "qwen3_omni_moe_thinker")
_HYBRID = ("qwen3_next", "qwen3_5", "qwen3_5_moe")

_VISION = {
    "qwen2_vl": {"depth": 32, "width": 1280, "num_heads": 16, "mlp_ratio": 4, "patch_size": 14},
    "qwen2_5_vl": {"depth": 32, "width": 1280, "num_heads": 16, "intermediate_size": 3420, "patch_size": 14},
    "qwen3_vl": {
        "depth": 27,
        "width": 1152,
        "num_heads": 16,
        "intermediate_size": 4304,
        "patch_size": 16,
        "num_position_embeddings": 2304,
    },
}
"""Defaults of transformers' configuration classes, for config files that leave them out."""

_AUDIO = {
    "num_mel_bins": 128,
    "encoder_layers": 32,
    "encoder_attention_heads": 20,
    "encoder_ffn_dim": 5120,
    "d_model": 1280,
    "max_source_positions": 1500,
    "downsample_hidden_size": 480,
}


def read_shape(path: Path) -> Shape:
    """The sizes of the model at ``path``, a directory with config.json or a GGUF file.

    Raises:
        ModelError: Where the file is missing, broken or lacks a field.
    """
    if path.is_dir():
        return shape_from_config(read_config(path / "config.json"))
    return shape_from_gguf(read_gguf(path, arrays=False), path.name)


def read_config(path: Path) -> dict[str, Any]:
    """The object in a config.json.

    Raises:
        ModelError: Where there is none.
    """
    try:
        with path.open("rb") as file:
            data = json.loads(file.read(2**22))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"cannot read `{path}`", hint="a model directory holds config.json") from error
    if not isinstance(data, dict):
        raise ModelError(f"`{path}` holds no object")
    return data


def thinker_of(data: Mapping[str, Any]) -> Mapping[str, Any]:
    """What describes the model that answers in text: of an Omni model, whose config.json holds a talker too, a part."""
    inner = data.get("thinker_config")
    return inner if isinstance(inner, Mapping) else data


class _Given:
    """A config's object; every number that leaves it was checked."""

    def __init__(self, data: Mapping[str, Any], where: str) -> None:
        self.data, self.where = data, where

    def whole(self, key: str, default: int | None = None, *, most: int = 2**31 - 1) -> int:
        """A whole number.

        Raises:
            ModelError: Where it is missing or something else.
        """
        value = self.data.get(key)
        if value is None and default is not None:
            return default
        least = 0 if default == 0 else 1
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise ModelError(
                f"`{key}` in `{self.where}` is {value!r}; allowed: a whole number from {least} to {most}",
                code="invalid_config",
            )
        return value

    def flag(self, key: str, default: bool) -> bool:
        value = self.data.get(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise ModelError(f"`{key}` in `{self.where}` is {value!r}; allowed: true or false", code="invalid_config")
        return value

    def inner(self, key: str) -> _Given | None:
        value = self.data.get(key)
        if value is None:
            return None
        if not isinstance(value, Mapping):
            raise ModelError(f"`{key}` in `{self.where}` is {value!r:.80}; allowed: an object", code="invalid_config")
        return _Given(value, self.where)


def shape_from_config(data: Mapping[str, Any], where: str = "config.json") -> Shape:
    """The sizes that a config.json describes, of transformers 4 or 5.

    Raises:
        ModelError: Names the field that is missing or out of range.
    """
    top = _Given(thinker_of(data), where)
    text = top.inner("text_config") or top
    kind = str(top.data.get("model_type", ""))
    if "tie_word_embeddings" not in text.data and "tie_word_embeddings" in top.data:
        text = _Given({**text.data, "tie_word_embeddings": top.data["tie_word_embeddings"]}, where)
    towers = _towers(top, kind, text.whole("hidden_size", 4096))
    # A plugin's own type says nothing of the decoder: the type inside does, as it does for the loader.
    inner = str(text.data.get("model_type", ""))
    return _decoder(text, inner if family_of(kind) is None and family_of(inner) else kind, towers)


def _decoder(text: _Given, kind: str, towers: tuple[Tower, ...]) -> Shape:
    # Qwen2-Audio's config.json leaves out what the 7B's text_config has by default.
    fill = {"qwen2_audio": (4096, 32, 32, 11008)}.get(kind, (None, None, None, None))
    hidden, layers = text.whole("hidden_size", fill[0]), text.whole("num_hidden_layers", fill[1], most=4096)
    heads = text.whole("num_attention_heads", fill[2])
    experts = text.whole("num_experts", text.whole("num_local_experts", 0))
    hybrid = kind in _HYBRID or kind.removesuffix("_text") in _HYBRID
    qwen1 = kind == "qwen"
    bias = kind in _QWEN2 or qwen1 or (kind == "qwen2_moe" and text.flag("qkv_bias", True))
    other_bias = text.flag("attention_bias", False) and kind not in (*_QWEN2, "qwen2_moe")
    wide = 128 if kind.startswith("qwen3") and kind != "qwen3_omni_moe" else max(1, hidden // heads)
    return Shape(
        model_type=kind,
        layers=layers,
        hidden=hidden,
        heads=heads,
        kv_heads=text.whole("num_key_value_heads", heads),
        head_dim=text.whole("head_dim", 256 if hybrid else wide),
        intermediate=text.whole("intermediate_size", 0 if experts else fill[3]) // (2 if qwen1 else 1),
        vocab=text.whole("vocab_size"),
        context=text.whole("max_position_embeddings", text.whole("seq_length", 2048 if qwen1 else 32768)),
        tied=text.flag("tie_word_embeddings", False),
        experts=experts,
        expert_intermediate=text.whole("moe_intermediate_size", _expert_width(text, kind) if experts else 0),
        shared_intermediate=text.whole("shared_expert_intermediate_size", 0) if experts else 0,
        experts_per_token=text.whole("num_experts_per_tok", None if experts else 0),
        sparse=_sparse(text, layers) if experts else (),
        linear=_linear_layers(text, layers) if hybrid else (),
        delta=_delta(text) if hybrid else None,
        qkv_bias=bias or other_bias,
        out_bias=other_bias or (qwen1 and not text.flag("no_bias", True)),
        mlp_bias=(kind == "llama" and text.flag("mlp_bias", False)) or (qwen1 and not text.flag("no_bias", True)),
        qk_norm=kind.startswith("qwen3"),
        gated=hybrid,
        towers=towers,
        read_value=4 if text.data.get("dtype", text.data.get("torch_dtype")) == "float32" else 2,
    )


def _expert_width(text: _Given, kind: str) -> int | None:
    """Families that are not ours (Mixtral) may have no other width than ``intermediate_size``."""
    return text.whole("intermediate_size") if family_of(kind.removesuffix("_text")) is None else None


def _sparse(text: _Given, layers: int) -> tuple[bool, ...]:
    step = text.whole("decoder_sparse_step", 1)
    named = text.data.get("mlp_only_layers") or ()
    if not isinstance(named, (list, tuple)):
        raise ModelError(f"`mlp_only_layers` in `{text.where}` is {named!r:.80}; allowed: a list")
    dense = {i for i in named if isinstance(i, int)}
    kept = tuple((i + 1) % step == 0 and i not in dense for i in range(layers))
    return () if all(kept) else kept


def _linear_layers(text: _Given, layers: int) -> tuple[bool, ...]:
    named = text.data.get("layer_types")
    if isinstance(named, (list, tuple)) and len(named) == layers:
        return tuple(name == "linear_attention" for name in named)
    every = text.whole("full_attention_interval", 4)
    return tuple((i + 1) % every != 0 for i in range(layers))


def _delta(text: _Given) -> Delta:
    return Delta(
        key_heads=text.whole("linear_num_key_heads", 16),
        value_heads=text.whole("linear_num_value_heads", 32),
        key_dim=text.whole("linear_key_head_dim", 128),
        value_dim=text.whole("linear_value_head_dim", 128),
        kernel=text.whole("linear_conv_kernel_dim", 4),
    )


def _towers(top: _Given, kind: str, hidden: int) -> tuple[Tower, ...]:
    found = []
    if (vision := top.inner("vision_config")) is not None:
        found.append(_vision(vision, kind, hidden))
    if (audio := top.inner("audio_config")) is not None:
        family = "qwen3_omni" if kind.startswith("qwen3") else kind.removesuffix("_thinker")
        sizes = {key: audio.whole(key, default) for key, default in _AUDIO.items()}
        found.append(audio_tower(family, sizes, hidden))
    return tuple(found)


def _vision(vision: _Given, kind: str, hidden: int) -> Tower:
    family = "qwen3_vl" if kind.startswith("qwen3") else "qwen2_5_vl" if kind.startswith("qwen2_5") else "qwen2_vl"
    sizes = {**_VISION[family], "in_channels": 3, "spatial_merge_size": 2, "temporal_patch_size": 2}
    given = {key: vision.whole(key, default) for key, default in sizes.items() if key != "width"}
    given["width"] = vision.whole("embed_dim" if family == "qwen2_vl" else "hidden_size", sizes["width"])
    out = vision.whole("out_hidden_size", hidden)
    deepstack = vision.data.get("deepstack_visual_indexes")
    if deepstack is None:
        deepstack = () if kind.startswith("qwen3_5") or family != "qwen3_vl" else (8, 16, 24)
    return vision_tower(family, given, out, len(deepstack))


_GGUF = {"qwen3moe": "qwen3_moe", "qwen2moe": "qwen2_moe"}


def shape_from_gguf(header: GGUFHeader, where: str) -> Shape:
    """The sizes that a GGUF header describes.

    Raises:
        ModelError: Names the key that is missing or out of range.
    """
    meta = header.metadata
    arch = str(meta.get("general.architecture", ""))
    names = {tensor.name for tensor in header.tensors}
    if any(key.startswith(f"{arch}.ssm.") for key in meta) or any(".ssm_" in name for name in names):
        raise ModelError(
            f"`general.architecture` in `{where}` is {arch[:80]!r}: a hybrid model, and "
            "a GGUF header does not say which layers are which",
            hint="name the model itself, as in Qwen/Qwen3-Next-80B-A3B-Instruct: its config.json does",
            code="invalid_config",
        )
    get = _Given({key.removeprefix(f"{arch}."): value for key, value in meta.items()}, where)
    heads, hidden = get.whole("attention.head_count"), get.whole("embedding_length")
    experts = get.whole("expert_count", 0)
    return Shape(
        model_type=_GGUF.get(arch, arch),
        layers=get.whole("block_count", most=4096),
        hidden=hidden,
        heads=heads,
        kv_heads=get.whole("attention.head_count_kv", heads),
        head_dim=get.whole("attention.key_length", max(1, hidden // heads)),
        intermediate=get.whole("feed_forward_length", 0) // (2 if arch == "qwen" else 1),
        vocab=get.whole("tokenizer.ggml.tokens", get.whole("vocab_size", 0)),
        context=get.whole("context_length"),
        tied="output.weight" not in names,
        experts=experts,
        expert_intermediate=get.whole("expert_feed_forward_length", 0),
        shared_intermediate=get.whole("expert_shared_feed_forward_length", 0),
        experts_per_token=get.whole("expert_used_count", 0),
        qkv_bias="blk.0.attn_q.bias" in names or "blk.0.attn_qkv.bias" in names,
        out_bias="blk.0.attn_output.bias" in names,
        mlp_bias="blk.0.ffn_up.bias" in names,
        qk_norm="blk.0.attn_q_norm.weight" in names,
        read_value=4,
    )
