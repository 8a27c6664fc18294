"""GGUF metadata as the config.json that the model would have had (keys: llama.cpp gguf-py constants.py)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from qwen_agent_kit.errors import ModelError
from qwen_agent_kit.models.config import DecoderConfig, config_from
from qwen_agent_kit.models.gguf_file import GGUFFile

__all__ = ["config_from_gguf"]

_TYPES = {
    "llama": "llama",
    "qwen": "qwen",
    "qwen2": "qwen2",
    "qwen2moe": "qwen2_moe",
    "qwen3": "qwen3",
    "qwen3moe": "qwen3_moe",
}
_FIELDS = {
    "embedding_length": "hidden_size",
    "block_count": "num_hidden_layers",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "feed_forward_length": "intermediate_size",
    "context_length": "max_position_embeddings",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "rope.freq_base": "rope_theta",
    "expert_count": "num_experts",
    "expert_used_count": "num_experts_per_tok",
    "expert_feed_forward_length": "moe_intermediate_size",
    "expert_shared_feed_forward_length": "shared_expert_intermediate_size",
}


def config_from_gguf(file: GGUFFile) -> DecoderConfig:
    """What the file's decoder is made of.

    Raises:
        ModelError: For an architecture that the kit does not build, or a value that is missing or out of range.
    """
    arch = file.metadata.get("general.architecture")
    if not isinstance(arch, str) or arch not in _TYPES:
        raise ModelError(
            f"`general.architecture` in `{file.path.name}` is {str(arch)[:80]!r}; allowed: {', '.join(_TYPES)}",
            hint="this architecture is not supported yet",
            code="invalid_config",
        )
    own = {k.removeprefix(f"{arch}."): v for k, v in file.metadata.items() if k.startswith(f"{arch}.")}
    data = {"model_type": _TYPES[arch], **{ours: own[key] for key, ours in _FIELDS.items() if key in own}}
    _from_tensors(file, data, arch)
    if own.get("rope.dimension_count", data.get("head_dim")) not in (None, data.get("head_dim"), _head_dim(data)):
        raise ModelError(f"`{arch}.rope.dimension_count` in `{file.path.name}` is less than a head; allowed: all of it")
    if arch == "qwen":
        data |= {"layer_norm_epsilon": data.get("rms_norm_eps"), "rotary_emb_base": data.get("rope_theta")}
    elif scaling := _scaling(own):
        data["rope_scaling"] = scaling
    config = config_from(data, file.path.name)
    if arch == "llama" and "rope_freqs.weight" in file.entries:
        config = _with_divisors(config, file)
    return config


def _head_dim(data: dict[str, Any]) -> int | None:
    hidden, heads = data.get("hidden_size"), data.get("num_attention_heads")
    return hidden // heads if isinstance(hidden, int) and isinstance(heads, int) and heads > 0 else None


def _from_tensors(file: GGUFFile, data: dict[str, Any], arch: str) -> None:
    """What the metadata leaves to the tensor table."""

    def rows(name: str) -> int | None:
        entry = file.entries.get(name)
        return entry.shape[-2] if entry is not None and len(entry.shape) > 1 else None

    data["vocab_size"] = rows("token_embd.weight")
    data["tie_word_embeddings"] = "output.weight" not in file.entries
    data["attention_bias"] = "blk.0.attn_q.bias" in file.entries
    experts = data.get("num_experts")
    if not arch.endswith("moe"):
        if experts:
            raise ModelError(f"`{file.path.name}` is a {arch} with {experts} experts; allowed: qwen2moe, qwen3moe")
        return
    layers = data.get("num_hidden_layers")
    if isinstance(layers, int) and 0 < layers <= 1024:
        dense = [i for i in range(layers) if f"blk.{i}.ffn_gate_inp.weight" not in file.entries]
        sparse = next((i for i in range(layers) if i not in dense), 0)
        data["mlp_only_layers"] = dense
        data.setdefault("moe_intermediate_size", rows(f"blk.{sparse}.ffn_gate_exps.weight"))
        data.setdefault("shared_expert_intermediate_size", rows(f"blk.{sparse}.ffn_gate_shexp.weight"))
    data["intermediate_size"] = data.get("intermediate_size") or data.get("moe_intermediate_size")
    data["norm_topk_prob"] = arch == "qwen3moe"  # the file does not say; llama.cpp fixes it per architecture
    if data.get("shared_expert_intermediate_size") == 0:
        del data["shared_expert_intermediate_size"]


def _scaling(own: dict[str, Any]) -> dict[str, Any] | None:
    kind = own.get("rope.scaling.type")
    if kind in (None, "none"):
        return None
    scaling = {"rope_type": kind, "factor": own.get("rope.scaling.factor")}
    names = {
        "rope.scaling.original_context_length": "original_max_position_embeddings",
        "rope.scaling.yarn_beta_fast": "beta_fast",
        "rope.scaling.yarn_beta_slow": "beta_slow",
    }
    return scaling | {ours: own[key] for key, ours in names.items() if key in own}


def _with_divisors(config: DecoderConfig, file: GGUFFile) -> DecoderConfig:
    """Llama 3's scaling comes as one divisor per frequency."""
    divisors = file.read("rope_freqs.weight")
    if tuple(divisors.shape) != (config.head_dim // 2,) or not bool((divisors > 0).all()):
        raise ModelError(
            f"`rope_freqs.weight` in `{file.path.name}` is of shape {list(divisors.shape)} or not positive; "
            f"allowed: [{config.head_dim // 2}]",
            code="invalid_weights",
        )
    return replace(config, rope=replace(config.rope, divisors=tuple(divisors.tolist())))
