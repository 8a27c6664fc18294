"""Writes tiny models as GGUF, the way llama.cpp's converter does, for tests of the reader."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from safetensors.torch import load_file

ARCHITECTURES = {
    "llama": "llama",
    "qwen": "qwen",
    "qwen2": "qwen2",
    "qwen2_moe": "qwen2moe",
    "qwen3": "qwen3",
    "qwen3_moe": "qwen3moe",
}
_RENAMES = [
    ("transformer.wte", "token_embd"),
    ("transformer.ln_f", "output_norm"),
    ("transformer.h.", "blk."),
    ("attn.c_attn", "attn_qkv"),
    ("attn.c_proj", "attn_output"),
    ("mlp.c_proj", "ffn_down"),
    ("mlp.w2", "ffn_gate"),
    ("mlp.w1", "ffn_up"),
    ("ln_1", "attn_norm"),
    ("ln_2", "ffn_norm"),
    ("lm_head", "output"),
    ("model.embed_tokens", "token_embd"),
    ("model.norm", "output_norm"),
    ("model.layers.", "blk."),
    ("input_layernorm", "attn_norm"),
    ("post_attention_layernorm", "ffn_norm"),
    ("self_attn.o_proj", "attn_output"),
    ("self_attn.q_norm", "attn_q_norm"),
    ("self_attn.k_norm", "attn_k_norm"),
    *((f"self_attn.{x}_proj", f"attn_{x}") for x in "qkv"),
    ("mlp.shared_expert_gate", "ffn_gate_inp_shexp"),
    *((f"mlp.shared_expert.{x}_proj", f"ffn_{x}_shexp") for x in ("gate", "up", "down")),
    *((f"mlp.{x}_proj", f"ffn_{x}") for x in ("gate", "up", "down")),
    ("mlp.gate", "ffn_gate_inp"),
]


def _named(name: str) -> str:
    for theirs, ours in _RENAMES:
        name = name.replace(theirs, ours)
    return name


def _tensors(folder: Path, config: dict[str, Any]) -> dict[str, np.ndarray]:
    found: dict[str, np.ndarray] = {}
    stacks: dict[str, dict[int, np.ndarray]] = {}
    for name, tensor in load_file(folder / "model.safetensors").items():
        values = tensor.numpy()
        if ".mlp.experts." in name:
            before, after = name.split(".mlp.experts.")
            expert, kind, _ = after.split(".")
            key = f"{_named(before + '.')}ffn_{kind.removesuffix('_proj')}_exps.weight"
            stacks.setdefault(key, {})[int(expert)] = values
            continue
        if config["model_type"] == "llama" and ("q_proj" in name or "k_proj" in name):
            heads = config["num_attention_heads" if "q_proj" in name else "num_key_value_heads"]
            values = values.reshape(heads, 2, values.shape[0] // heads // 2, -1).swapaxes(1, 2).reshape(values.shape)
        if "shared_expert_gate" in name:
            values = values.reshape(-1)
        found[_named(name)] = values
    return found | {key: np.stack([parts[i] for i in range(len(parts))]) for key, parts in stacks.items()}


def write_gguf(folder: Path, path: Path, kind: str = "F32", **metadata: Any) -> Path:
    """Write the tiny model in ``folder`` as GGUF; matrices in the ggml type ``kind``, vectors and routers in F32."""
    config = json.loads((folder / "config.json").read_text())
    arch = ARCHITECTURES[config["model_type"]]
    writer = gguf.GGUFWriter(path, arch)
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_layer_norm_rms_eps(config.get("rms_norm_eps", 1e-6))
    writer.add_rope_freq_base(config.get("rope_parameters", {}).get("rope_theta", 10000.0))
    if "num_key_value_heads" in config:
        writer.add_head_count_kv(config["num_key_value_heads"])
        writer.add_key_length(config["head_dim"])
    if "num_experts" in config:
        writer.add_expert_count(config["num_experts"])
        writer.add_expert_used_count(config["num_experts_per_tok"])
        writer.add_expert_feed_forward_length(config["moe_intermediate_size"])
    _add_tokenizer(writer, json.loads((folder / "tokenizer.json").read_text()))
    template = json.loads((folder / "tokenizer_config.json").read_text()).get("chat_template")
    if template:
        writer.add_chat_template(template)
    for key, value in metadata.items():
        name = key.replace("__", ".")
        {str: writer.add_string, float: writer.add_float32, bool: writer.add_bool, int: writer.add_uint32}[type(value)](
            name, value
        )
    for name, values in _tensors(folder, config).items():
        chosen = gguf.GGMLQuantizationType[kind if values.ndim > 1 and "gate_inp" not in name else "F32"]
        writer.add_tensor(name, gguf.quantize(values, chosen), raw_dtype=chosen)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add_tokenizer(writer: gguf.GGUFWriter, data: dict[str, Any]) -> None:
    added = {t["id"]: t for t in data["added_tokens"]}
    tokens = {index: token for token, index in data["model"]["vocab"].items()}
    tokens |= {index: t["content"] for index, t in added.items()}
    kinds = [1 if i not in added else 3 if added[i]["special"] else 4 for i in range(len(tokens))]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list([tokens[i] for i in range(len(tokens))])
    writer.add_token_types(kinds)
    writer.add_token_merges([" ".join(merge) for merge in data["model"]["merges"]])
    ids = {t["content"]: index for index, t in added.items()}
    writer.add_eos_token_id(ids["<|im_end|>"])
    writer.add_pad_token_id(ids["<|endoftext|>"])
    writer.add_add_bos_token(False)
