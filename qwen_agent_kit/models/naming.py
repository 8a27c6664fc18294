"""Where each of the decoder's matrices lies in a checkpoint.

Three conventions: transformers' (safetensors), QwenLM's own for Qwen 1.0 (safetensors), and llama.cpp's (GGUF). Each
maps our name to the names whose tensors, put one below the other, are ours: ``qkv`` is queries, keys and values;
``gate_up`` is gate and up. ``{i}`` is the layer, ``{e}`` the expert.
"""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass

__all__ = ["Naming", "Part", "naming_for"]


@dataclass(frozen=True, slots=True)
class Part:
    """A tensor of a checkpoint, or one slice of it along the first axis."""

    name: str
    index: int | None = None


_MODULES: dict[str, dict[str, tuple[str, ...]]] = {
    "transformers": {
        "embedding": ("{m}embed_tokens",),
        "norm": ("{m}norm",),
        "head": ("lm_head",),
        "attn_norm": ("{m}layers.{i}.input_layernorm",),
        "mlp_norm": ("{m}layers.{i}.post_attention_layernorm",),
        "qkv": tuple(f"{{m}}layers.{{i}}.self_attn.{x}_proj" for x in "qkv"),
        "out": ("{m}layers.{i}.self_attn.o_proj",),
        "q_norm": ("{m}layers.{i}.self_attn.q_norm",),
        "k_norm": ("{m}layers.{i}.self_attn.k_norm",),
        "gate_up": ("{m}layers.{i}.mlp.gate_proj", "{m}layers.{i}.mlp.up_proj"),
        "down": ("{m}layers.{i}.mlp.down_proj",),
        "router": ("{m}layers.{i}.mlp.gate",),
        "expert_gate_up": ("{m}layers.{i}.mlp.experts.{e}.gate_proj", "{m}layers.{i}.mlp.experts.{e}.up_proj"),
        "expert_down": ("{m}layers.{i}.mlp.experts.{e}.down_proj",),
        "shared_gate_up": ("{m}layers.{i}.mlp.shared_expert.gate_proj", "{m}layers.{i}.mlp.shared_expert.up_proj"),
        "shared_down": ("{m}layers.{i}.mlp.shared_expert.down_proj",),
        "shared_gate": ("{m}layers.{i}.mlp.shared_expert_gate",),
    },
    "qwen": {  # modeling_qwen.py: `a1 = w1(x); a2 = w2(x); c_proj(a1 * silu(a2))`, so w2 is the gate
        "embedding": ("transformer.wte",),
        "norm": ("transformer.ln_f",),
        "head": ("lm_head",),
        "attn_norm": ("transformer.h.{i}.ln_1",),
        "mlp_norm": ("transformer.h.{i}.ln_2",),
        "qkv": ("transformer.h.{i}.attn.c_attn",),
        "out": ("transformer.h.{i}.attn.c_proj",),
        "gate_up": ("transformer.h.{i}.mlp.w2", "transformer.h.{i}.mlp.w1"),
        "down": ("transformer.h.{i}.mlp.c_proj",),
    },
    "gguf": {
        "embedding": ("token_embd",),
        "norm": ("output_norm",),
        "head": ("output",),
        "attn_norm": ("blk.{i}.attn_norm",),
        "mlp_norm": ("blk.{i}.ffn_norm",),
        "qkv": tuple(f"blk.{{i}}.attn_{x}" for x in "qkv"),
        "out": ("blk.{i}.attn_output",),
        "q_norm": ("blk.{i}.attn_q_norm",),
        "k_norm": ("blk.{i}.attn_k_norm",),
        "gate_up": ("blk.{i}.ffn_gate", "blk.{i}.ffn_up"),
        "down": ("blk.{i}.ffn_down",),
        "router": ("blk.{i}.ffn_gate_inp",),
        "expert_gate_up": ("blk.{i}.ffn_gate_exps[{e}]", "blk.{i}.ffn_up_exps[{e}]"),
        "expert_down": ("blk.{i}.ffn_down_exps[{e}]",),
        "shared_gate_up": ("blk.{i}.ffn_gate_shexp", "blk.{i}.ffn_up_shexp"),
        "shared_down": ("blk.{i}.ffn_down_shexp",),
        "shared_gate": ("blk.{i}.ffn_gate_inp_shexp",),
    },
}
_MODULES["gguf-qwen"] = {**_MODULES["gguf"], "qkv": ("blk.{i}.attn_qkv",)}
# transformers 5 may keep all experts of a layer in one tensor [experts, ...], without ".weight"
_STACKED = {
    "expert_gate_up": ("{m}layers.{i}.mlp.experts.gate_up_proj[{e}]",),
    "expert_down": ("{m}layers.{i}.mlp.experts.down_proj[{e}]",),
}
_PREFIXES = ("model.", "model.language_model.", "language_model.model.", "thinker.model.", "")
_HEADS = ("language_model.lm_head", "thinker.lm_head")
"""Where Qwen2-Audio and the Omni models keep the head; an Omni talker's own tensors begin with ``talker.``."""


@dataclass(frozen=True)
class Naming:
    """One convention as one checkpoint uses it.

    Args:
        modules: Our name to theirs.
        prefix: What stands before ``layers`` in transformers' names.
        bare: Module names whose tensor has no ``.weight`` behind it.
    """

    modules: dict[str, tuple[str, ...]]
    prefix: str = ""
    bare: frozenset[str] = frozenset()

    def parts(self, ours: str, kind: str = "weight", layer: int = 0, expert: int = 0) -> tuple[Part, ...]:
        """The tensors that make up one of ours, ``kind`` being ``weight`` or ``bias``."""
        found = []
        for name in self.modules[ours]:
            name, stacked, _ = name.format(m=self.prefix, i=layer, e=expert).partition("[")
            suffix = "" if ours in self.bare else f".{kind}"
            found.append(Part(name + suffix, expert if stacked else None))
        return tuple(found)


def naming_for(convention: str, names: Container[str]) -> Naming:
    """The convention as this checkpoint uses it.

    Args:
        convention: ``transformers``, ``qwen``, ``gguf`` or ``gguf-qwen``.
        names: Of its tensors.
    """
    modules = _MODULES[convention]
    if convention != "transformers":
        return Naming(modules)
    if head := next((h for h in _HEADS if f"{h}.weight" in names), None):
        modules = {**modules, "head": (head,)}
    prefix = next((p for p in _PREFIXES if f"{p}embed_tokens.weight" in names), _PREFIXES[0])
    stacked = any(f"{prefix}layers.{i}.mlp.experts.gate_up_proj" in names for i in range(64))
    if not stacked:
        return Naming(modules, prefix)
    return Naming({**modules, **_STACKED}, prefix, frozenset(_STACKED))
