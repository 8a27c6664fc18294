"""What a decoder is made of: one frozen description for every family that it covers.

The field names and defaults of config.json are those of transformers 5 (models/llama, qwen2, qwen2_moe, qwen3,
qwen3_moe, and the text halves of qwen2_vl, qwen2_5_vl, qwen2_5_omni, qwen3_vl) and of QwenLM's Qwen-7B repository
for ``qwen``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from qwen_agent_kit.errors import ModelError
from qwen_agent_kit.models.fields import Fields
from qwen_agent_kit.models.rope_config import RopeConfig, rope_from
from qwen_agent_kit.placement.fetch_choice import OWN_CODE
from qwen_agent_kit.placement.reading import thinker_of

__all__ = ["DecoderConfig", "config_from", "is_ours", "refuse_code"]

_LLAMA = frozenset({"llama"})
_QWEN1 = frozenset({"qwen"})
_QWEN2 = frozenset({"qwen2", "qwen2_vl_text", "qwen2_5_vl_text", "qwen2_5_omni_text"})
_QWEN3 = frozenset({"qwen3", "qwen3_vl_text"})
_MOE = frozenset({"qwen2_moe", "qwen3_moe"})
_TYPES = _LLAMA | _QWEN1 | _QWEN2 | _QWEN3 | _MOE

_QWEN2_DEFAULTS = {
    "hidden_size": 4096,
    "intermediate_size": 22016,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "max_position_embeddings": 32768,
}


@dataclass(frozen=True)
class DecoderConfig:
    """A decoder's sizes and switches.

    Args:
        model_type: As config.json names it.
        vocab_size: Rows of the embedding and the head.
        hidden: Width of the residual stream.
        layers: How many.
        heads: Query heads.
        kv_heads: Key and value heads; divides ``heads``.
        head_dim: Width of a head.
        intermediate: Width of the dense MLP.
        max_positions: What the model was trained for, extension by rope scaling included.
        rope: Rotary embedding.
        norm_eps: Of every RMSNorm.
        tied: The head is the embedding.
        qkv_bias: On the fused q, k and v.
        out_bias: On the attention's output.
        mlp_bias: On the MLP's linears.
        qk_norm: RMSNorm over each query and key head (Qwen3).
        window: How many positions a sliding layer sees, None where no layer slides.
        sliding: Per layer, whether it slides; empty where none does.
        experts: Experts in a sparse layer, 0 for a dense model.
        experts_per_token: How many are chosen.
        expert_intermediate: Width of each.
        shared_intermediate: Width of the shared expert, 0 where there is none.
        norm_topk: Whether the chosen experts' weights are made to sum to 1.
        sparse: Per layer, whether it has experts; empty for a dense model.
        logn_from: Positions after which queries are scaled by log_n (Qwen 1.0), None for never.
    """

    model_type: str
    vocab_size: int
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    max_positions: int
    rope: RopeConfig
    norm_eps: float = 1e-6
    tied: bool = False
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    window: int | None = None
    sliding: tuple[bool, ...] = ()
    experts: int = 0
    experts_per_token: int = 0
    expert_intermediate: int = 0
    shared_intermediate: int = 0
    norm_topk: bool = False
    sparse: tuple[bool, ...] = ()
    logn_from: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """JSON data; ``from_dict`` reads it back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> DecoderConfig:
        """Read what ``to_dict`` wrote.

        Raises:
            ModelError: Where it is something else.
        """
        known = {f.name for f in fields(cls)}
        try:
            values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in data.items() if k in known}
            return cls(**{**values, "rope": RopeConfig.from_dict(data["rope"])})
        except (KeyError, TypeError, AttributeError) as error:
            raise ModelError("a packed model's description cannot be read", hint="delete the weight cache") from error


def is_ours(data: Mapping[str, Any]) -> bool:
    """Whether a config.json's object describes a decoder of ours; where not, ``config_from`` says so."""
    data = thinker_of(data)
    inner = data.get("text_config")
    kind = inner.get("model_type", data.get("model_type")) if isinstance(inner, Mapping) else data.get("model_type")
    return isinstance(kind, str) and (kind in _TYPES or kind in ("qwen2_vl", "qwen2_5_vl", "qwen2_audio"))


def config_from(data: Mapping[str, Any], where: str = "config.json") -> DecoderConfig:
    """Read a config.json's object, of transformers 4 or 5.

    Nothing is imported, fetched or allocated for what it says.

    Raises:
        ModelError: Names the field that is missing, out of range, or asks for foreign code.
    """
    refuse_code(Fields(data, where))
    quantised = data.get("quantization_config")  # an Omni model has it beside its thinker
    data = thinker_of(data)
    top = given = Fields(data if quantised is None else {**data, "quantization_config": quantised}, where)
    refuse_code(top)
    if isinstance(data.get("text_config"), Mapping):  # a vision-language model: its decoder is described inside
        inner = {"tie_word_embeddings": data.get("tie_word_embeddings"), **data["text_config"]}
        if data.get("model_type") == "qwen2_audio":  # its config.json leaves out what equals Qwen2Config's defaults
            inner = {**_QWEN2_DEFAULTS, **inner}
        given = Fields(inner, where)
        refuse_code(given)
    kind = given.text("model_type")
    if kind in ("qwen2_vl", "qwen2_5_vl"):  # transformers 4 kept the decoder's fields at the top
        kind += "_text"
    if kind not in _TYPES:
        given.refuse("model_type", ", ".join(sorted(_TYPES)), hint="this architecture is not supported yet")
    if top.has("quantization_config") or given.has("quantization_config"):
        top.refuse("quantization_config", "nothing: quantised checkpoints come as GGUF", hint="take the bf16 weights")
    return _qwen1(given) if kind in _QWEN1 else _decoder(given, kind)


def refuse_code(given: Fields) -> None:
    """Refuse what would make other libraries import or fetch code (faults.md F14)."""
    named = given.data.get("auto_map")
    if named is not None and not (
        given.data.get("model_type") == "qwen" and isinstance(named, Mapping) and OWN_CODE.issuperset(_strings(named))
    ):
        given.refuse("auto_map", "nothing: code that comes with a model is never run", hint="use another checkpoint")
    if given.has("custom_pipelines"):
        given.refuse("custom_pipelines", "nothing: code that comes with a model is never run")
    for name in ("_attn_implementation_internal", "_experts_implementation_internal"):
        if name in given.data:
            given.refuse(name, "nothing: it would load kernels from elsewhere", hint="remove the field")
    for name in ("_attn_implementation", "attn_implementation"):
        if given.has(name) and given.data[name] not in ("eager", "sdpa", "flash_attention_2"):
            given.refuse(name, "eager, sdpa or flash_attention_2", hint="remove the field")


def _strings(named: Mapping[str, Any]) -> list[Any]:
    return [v if isinstance(v, str) else repr(v) for v in named.values()]


def _sizes(given: Fields) -> dict[str, Any]:
    sizes = {
        "vocab_size": given.whole("vocab_size", 1, 2**22),
        "hidden": given.whole("hidden_size", 1, 2**17),
        "layers": given.whole("num_hidden_layers", 1, 1024),
        "heads": given.whole("num_attention_heads", 1, 2048),
    }
    if sizes["hidden"] % sizes["heads"]:
        given.refuse("num_attention_heads", f"a divisor of `hidden_size` {sizes['hidden']}")
    return sizes


def _head_dim(given: Fields, sizes: Mapping[str, Any], kind: str) -> int:
    default: int = 128 if kind in _QWEN3 else sizes["hidden"] // sizes["heads"]
    head_dim = given.whole("head_dim", 2, 1024, default)
    if head_dim % 2:
        given.refuse("head_dim" if given.has("head_dim") else "num_attention_heads", "what gives an even head width")
    return head_dim


def _decoder(given: Fields, kind: str) -> DecoderConfig:
    sizes = _sizes(given)
    if given.text("hidden_act", "silu") not in ("silu", "swish"):
        given.refuse("hidden_act", "silu")
    kv_heads = given.whole("num_key_value_heads", 1, sizes["heads"], sizes["heads"])
    if sizes["heads"] % kv_heads:
        given.refuse("num_key_value_heads", f"a divisor of `num_attention_heads` {sizes['heads']}")
    head_dim = _head_dim(given, sizes, kind)
    positions = given.whole("max_position_embeddings", 1, 2**28)
    bias = given.flag("attention_bias", False) and kind not in _QWEN2
    return DecoderConfig(
        model_type=kind,
        **sizes,
        kv_heads=kv_heads,
        head_dim=head_dim,
        intermediate=given.whole("intermediate_size", 1, 2**20),
        max_positions=positions,
        rope=rope_from(given, head_dim, positions),
        norm_eps=given.real("rms_norm_eps", 0.0, 1.0, 1e-6),
        tied=given.flag("tie_word_embeddings", False),
        qkv_bias=_qkv_bias(given, kind, bias),
        out_bias=bias and kind != "qwen2_moe",
        mlp_bias=given.flag("mlp_bias", False) and kind in _LLAMA,
        qk_norm=kind in _QWEN3 or kind == "qwen3_moe",
        **_windows(given, kind, sizes["layers"]),
        **(_experts(given, kind, sizes["layers"]) if kind in _MOE else {}),
    )


def _qkv_bias(given: Fields, kind: str, bias: bool) -> bool:
    if kind in _QWEN2:
        return True
    return given.flag("qkv_bias", True) if kind == "qwen2_moe" else bias


def _windows(given: Fields, kind: str, layers: int) -> dict[str, Any]:
    if kind in _LLAMA or not given.flag("use_sliding_window", False) or not given.has("sliding_window"):
        return {}
    window = given.whole("sliding_window", 1, 2**28)
    until = given.whole("max_window_layers", 0, 2**20, 28)
    named = given.data.get("layer_types")
    if named is not None:
        allowed = ("full_attention", "sliding_attention")
        if not isinstance(named, list) or len(named) != layers or any(name not in allowed for name in named):
            given.refuse("layer_types", f"{layers} of {' and '.join(allowed)}")
        sliding = tuple(name == "sliding_attention" for name in named)
    elif kind == "qwen3_moe":
        sliding = (True,) * layers
    elif kind == "qwen2_moe":
        sliding = tuple(i % 2 == 0 and i < until for i in range(layers))
    else:
        sliding = tuple(i >= until for i in range(layers))
    return {"window": window, "sliding": sliding} if any(sliding) else {}


def _experts(given: Fields, kind: str, layers: int) -> dict[str, Any]:
    name = "num_local_experts" if given.has("num_local_experts") else "num_experts"
    experts = given.whole(name, 1, 4096)
    step = given.whole("decoder_sparse_step", 1, 1024, 1)
    dense = set(given.wholes("mlp_only_layers", 0, layers - 1, layers))
    shared = given.whole("shared_expert_intermediate_size", 1, 2**20) if kind == "qwen2_moe" else 0
    return {
        "experts": experts,
        "experts_per_token": given.whole("num_experts_per_tok", 1, experts),
        "expert_intermediate": given.whole("moe_intermediate_size", 1, 2**20),
        "shared_intermediate": shared,
        "norm_topk": given.flag("norm_topk_prob", False),
        "sparse": tuple((i + 1) % step == 0 and i not in dense for i in range(layers)),
    }


def _qwen1(given: Fields) -> DecoderConfig:
    """Qwen 1.0: config.json of Qwen/Qwen-7B; its ``intermediate_size`` counts both halves of the gated MLP."""
    sizes = _sizes(given)
    head_dim = given.whole("kv_channels", 2, 1024, sizes["hidden"] // sizes["heads"])
    if head_dim * sizes["heads"] != sizes["hidden"] or head_dim % 2:
        given.refuse("kv_channels", f"the even quotient of `hidden_size` {sizes['hidden']} and the heads")
    if given.real("rotary_pct", 0.0, 1.0, 1.0) != 1.0:
        given.refuse("rotary_pct", "1.0")
    trained = given.whole("seq_length", 1, 2**28, 2048)
    kind = "qwen_dynamic" if given.flag("use_dynamic_ntk", False) else "default"
    return DecoderConfig(
        model_type="qwen",
        **sizes,
        kv_heads=sizes["heads"],
        head_dim=head_dim,
        intermediate=given.whole("intermediate_size", 2, 2**20) // 2,
        max_positions=given.whole("max_position_embeddings", 1, 2**28, trained),
        rope=RopeConfig(kind=kind, theta=given.real("rotary_emb_base", 1.0, 1e12, 10000.0), original=trained),
        norm_eps=given.real("layer_norm_epsilon", 0.0, 1.0, 1e-6),
        tied=given.flag("tie_word_embeddings", False),
        qkv_bias=True,
        out_bias=not given.flag("no_bias", True),
        mlp_bias=not given.flag("no_bias", True),
        logn_from=trained if given.flag("use_logn_attn", False) else None,
    )
