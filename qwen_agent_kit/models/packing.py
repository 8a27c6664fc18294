"""From a checkpoint's tensors to ours, and from ours to a decoder.

A packed model is a mapping of names such as ``layers.3.qkv.weight`` to tensors in the scheme's layout. It is made one
matrix at a time, so that no more than one is unpacked in memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch

from qwen_agent_kit.errors import ModelError
from qwen_agent_kit.models.config import DecoderConfig
from qwen_agent_kit.models.decoder import Decoder, Layer, Parked, RMSNorm
from qwen_agent_kit.models.linear import Linear, linear_from, pack_linear, value_dtype
from qwen_agent_kit.models.moe import MLP, SparseMLP
from qwen_agent_kit.models.naming import Naming, Part
from qwen_agent_kit.models.native.linear import NativeLinear, native_kind
from qwen_agent_kit.models.probing import choices_for
from qwen_agent_kit.placement.layout import head_scheme

__all__ = ["Checkpoint", "build", "check", "most_tensors", "pack", "wanted"]


class Checkpoint(Protocol):
    """Tensors by name, read one at a time."""

    @property
    def naming(self) -> Naming: ...

    def shape(self, name: str) -> tuple[int, ...] | None:
        """Of a tensor, None where there is none of this name."""

    def where(self, name: str) -> str:
        """The file that a tensor is, or should be, in."""

    def read(self, name: str, index: int | None = None) -> torch.Tensor:
        """A tensor in a floating dtype, or one slice along its first axis."""


@dataclass(frozen=True, slots=True)
class _Slot:
    """One of our matrices or vectors: where it goes and how wide each part is."""

    key: str
    ours: str
    rows: tuple[int, ...]
    columns: int | None
    layer: int = 0
    expert: int = 0
    bias: bool = False
    dense: bool = False


def _slots(config: DecoderConfig) -> Iterator[_Slot]:
    hidden, dim = config.hidden, config.head_dim
    yield _Slot("embedding", "embedding", (config.vocab_size,), hidden)
    yield _Slot("norm", "norm", (hidden,), None)
    qkv = (config.heads * dim, config.kv_heads * dim, config.kv_heads * dim)
    for i in range(config.layers):
        key = f"layers.{i}."
        yield _Slot(key + "attn_norm", "attn_norm", (hidden,), None, i)
        yield _Slot(key + "qkv", "qkv", qkv, hidden, i, bias=config.qkv_bias)
        if config.qk_norm:
            yield _Slot(key + "q_norm", "q_norm", (dim,), None, i)
            yield _Slot(key + "k_norm", "k_norm", (dim,), None, i)
        yield _Slot(key + "out", "out", (hidden,), config.heads * dim, i, bias=config.out_bias)
        yield _Slot(key + "mlp_norm", "mlp_norm", (hidden,), None, i)
        yield from _mlp_slots(config, i, key)
    if not config.tied:
        yield _Slot("head", "head", (config.vocab_size,), hidden)


def _mlp_slots(config: DecoderConfig, i: int, key: str) -> Iterator[_Slot]:
    hidden, wide = config.hidden, config.intermediate
    if not (config.sparse and config.sparse[i]):
        yield _Slot(key + "gate_up", "gate_up", (wide, wide), hidden, i, bias=config.mlp_bias)
        yield _Slot(key + "down", "down", (hidden,), wide, i, bias=config.mlp_bias)
        return
    yield _Slot(key + "router", "router", (config.experts,), hidden, i, dense=True)
    wide = config.expert_intermediate
    for e in range(config.experts):
        yield _Slot(f"{key}experts.{e}.gate_up", "expert_gate_up", (wide, wide), hidden, i, e)
        yield _Slot(f"{key}experts.{e}.down", "expert_down", (hidden,), wide, i, e)
    if wide := config.shared_intermediate:
        yield _Slot(key + "shared_gate_up", "shared_gate_up", (wide, wide), hidden, i)
        yield _Slot(key + "shared_down", "shared_down", (hidden,), wide, i)
        yield _Slot(key + "shared_gate", "shared_gate", (1,), hidden, i, dense=True)


def most_tensors(config: DecoderConfig) -> int:
    """An upper bound on how many tensors ``pack`` gives."""
    return 3 * sum(1 for _ in _slots(config)) + 3


def wanted(config: DecoderConfig, naming: Naming) -> Iterator[tuple[Part, tuple[int, ...]]]:
    """Every tensor, or slice of one, that a checkpoint of this configuration holds, with its shape."""
    for slot in _slots(config):
        parts = naming.parts(slot.ours, "weight", slot.layer, slot.expert)
        rows = slot.rows if len(parts) == len(slot.rows) else (sum(slot.rows),)
        for part, count in zip(parts, rows, strict=True):
            yield part, (count,) if slot.columns is None else (count, slot.columns)
        if slot.bias:
            for part, count in zip(naming.parts(slot.ours, "bias", slot.layer), rows, strict=True):
                yield part, (count,)


def check(source: Checkpoint, config: DecoderConfig) -> None:
    """Hold every tensor's shape against the configuration, before any is read.

    Raises:
        ModelError: Names the file, the tensor, its shape and the one that the configuration asks for.
    """
    for part, shape in wanted(config, source.naming):
        _expect(source, part, shape)
    for slot in _slots(config):
        if slot.bias or slot.columns is None or slot.ours == "embedding" or slot.ours.startswith("expert"):
            continue
        for part in source.naming.parts(slot.ours, "bias", slot.layer):
            # GPTQ's tools write a bias of zeros where there was none.
            if source.shape(part.name) is not None and bool(source.read(part.name).any()):
                raise ModelError(
                    f"`{part.name}` in `{source.where(part.name)}` is a bias that the configuration does not ask for",
                    hint="config.json and weights belong to different models",
                    code="invalid_weights",
                )


def _expect(source: Checkpoint, part: Part, shape: tuple[int, ...]) -> None:
    found = source.shape(part.name)
    if found is not None and part.index is not None:
        found = found[1:] if found and found[0] > part.index else None
    if found is not None and len(found) == 1 and shape[:1] == (1,) and len(shape) == 2:
        found = (1, *found)  # GGUF keeps a [1, n] matrix as a vector
    if found != shape:
        what = "missing" if found is None else f"of shape {list(found)}"
        raise ModelError(
            f"`{part.name}` in `{source.where(part.name)}` is {what}; the configuration asks for {list(shape)}",
            hint="config.json and weights belong to different models, or a file is missing",
            code="invalid_weights",
        )


def pack(source: Checkpoint, config: DecoderConfig, scheme: str) -> Iterator[tuple[str, torch.Tensor]]:
    """Our tensors, one after the other.

    The embedding is kept in the activations' dtype, norms in float32, routers dense. A tied head of a scheme that
    quantises is packed: the native kernels look rows up in it, so that it is all there is; torch's cannot, and the
    embedding is kept beside it.

    Args:
        source: Checked against ``config``.
        config: What is built.
        scheme: See ``linear``.
    """
    dtype = value_dtype(scheme)
    for slot in _slots(config):
        weight = _joined(source, source.naming.parts(slot.ours, "weight", slot.layer, slot.expert))
        if slot.columns is None:
            yield slot.key, weight.float()
            continue
        if slot.ours == "embedding":
            if not (config.tied and native_kind(scheme)):
                yield slot.key, weight.to(dtype)
            if config.tied and scheme in ("int8", "int4"):
                yield from _prefixed("head", pack_linear(weight, None, head_scheme(scheme)))
            continue
        bias = _joined(source, source.naming.parts(slot.ours, "bias", slot.layer)) if slot.bias else None
        plain = "fp32" if dtype == torch.float32 else "bf16"
        kept = head_scheme(scheme) if slot.ours == "head" else scheme
        weight = weight.view(-1, slot.columns)
        yield from _prefixed(slot.key, pack_linear(weight, bias, plain if slot.dense else kept))


def _joined(source: Checkpoint, parts: tuple[Part, ...]) -> torch.Tensor:
    read = [source.read(part.name, part.index) for part in parts]
    return read[0] if len(read) == 1 else torch.cat(read)


def _prefixed(key: str, tensors: Mapping[str, torch.Tensor]) -> Iterator[tuple[str, torch.Tensor]]:
    return ((f"{key}.{name}", tensor) for name, tensor in tensors.items())


def build(
    packed: Mapping[str, torch.Tensor], config: DecoderConfig, scheme: str, parked: Parked | None = None
) -> Decoder:
    """The decoder around packed tensors; they are used as they are, mapped or not.

    Args:
        packed: What ``pack`` gave.
        config: What is built.
        scheme: See ``linear``.
        parked: The layers that are mapped and let go of after each use, where there are any.

    Raises:
        ModelError: Where one is missing.
    """
    dtype = value_dtype(scheme)
    try:
        layers = [_layer(packed, config, i, dtype) for i in range(config.layers)]
        head = _linear(packed, "head") if "head.weight" in packed else Linear(packed["embedding"])
        within = config.tied and isinstance(head, NativeLinear)
        embedding = None if within else packed["embedding"]
        norm = RMSNorm(packed["norm"], config.norm_eps, dtype)
    except KeyError as error:
        raise ModelError(f"a packed model lacks {error.args[0]!r}", hint="delete the weight cache") from error
    decoder = Decoder(config, embedding=embedding, layers=layers, norm=norm, head=head, dtype=dtype, parked=parked)
    linears = [module for module in decoder.modules() if isinstance(module, Linear)]
    choices = choices_for((linear.layout, linear.shape) for linear in linears)
    for linear in linears:
        linear.ranges = choices.of(linear.layout, *linear.shape)
    return decoder


def _layer(packed: Mapping[str, torch.Tensor], config: DecoderConfig, i: int, dtype: torch.dtype) -> Layer:
    key = f"layers.{i}."
    qk_norm = None
    if config.qk_norm:
        weight = torch.cat(
            (packed[key + "q_norm"].expand(config.heads, -1), packed[key + "k_norm"].expand(config.kv_heads, -1))
        )
        qk_norm = RMSNorm(weight, config.norm_eps, dtype)
    return Layer(
        i,
        config,
        attn_norm=RMSNorm(packed[key + "attn_norm"], config.norm_eps, dtype),
        qkv=_linear(packed, key + "qkv"),
        out=_linear(packed, key + "out"),
        mlp_norm=RMSNorm(packed[key + "mlp_norm"], config.norm_eps, dtype),
        mlp=_mlp(packed, config, i, key),
        qk_norm=qk_norm,
    )


def _mlp(packed: Mapping[str, torch.Tensor], config: DecoderConfig, i: int, key: str) -> MLP | SparseMLP:
    def mlp(name: str) -> MLP:
        return MLP(_linear(packed, f"{key}{name}gate_up"), _linear(packed, f"{key}{name}down"))

    if not (config.sparse and config.sparse[i]):
        return mlp("")
    return SparseMLP(
        _linear(packed, key + "router"),
        [mlp(f"experts.{e}.") for e in range(config.experts)],
        top=config.experts_per_token,
        normalise=config.norm_topk,
        shared=mlp("shared_") if config.shared_intermediate else None,
        shared_gate=_linear(packed, key + "shared_gate") if config.shared_intermediate else None,
    )


def _linear(packed: Mapping[str, torch.Tensor], key: str) -> Linear | NativeLinear:
    found = {
        name: packed[f"{key}.{name}"] for name in ("weight", "scale", "shape", "bias") if f"{key}.{name}" in packed
    }
    if "weight" not in found:
        raise KeyError(f"{key}.weight")
    return linear_from(found)
