"""What the native kernels must give, computed with torch from the very weights that they hold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from oracle import DenseKV
from torch.nn import functional as F

from qwen_agent_kit.engine.kv import KVLayout, SequenceKV
from qwen_agent_kit.models import Decoder, load_model
from qwen_agent_kit.models.linear import Linear
from qwen_agent_kit.models.native.linear import NativeLinear


def dequantised(layer: NativeLinear) -> torch.Tensor:
    """The matrix [N, K] in float32."""
    return layer.rows(torch.arange(layer.struct.n))


def rounded_rows(x: torch.Tensor) -> torch.Tensor:
    """Activations as the kernels hold them: int8 in groups of 32 along the row, each with a scale of its own."""
    k = x.shape[-1]
    groups = F.pad(x, (0, -k % 32)).unflatten(-1, (-1, 32))
    most = groups.abs().amax(-1, keepdim=True)
    inverse = torch.where(most > 0, torch.full_like(most, 127.0) / most, 0.0)  # a number over a tensor is rounded twice
    return ((groups * inverse).round() * (most / 127.0)).flatten(-2)[..., :k]


class RoundedLinear(Linear):
    """A dense float32 layer whose activations are rounded as the kernels round them."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(rounded_rows(x), self.weight, self.bias)


class RoundedKV(DenseKV):
    """Keys and values that went through bfloat16, in float32."""

    def write(self, layer: int, k: torch.Tensor, v: torch.Tensor, start: int) -> None:
        super().write(layer, k.bfloat16().float(), v.bfloat16().float(), start)


def slab_kv(model: Decoder, positions: int) -> SequenceKV:
    """The engine's own keys and values for one sequence, with room for ``positions``."""
    config = model.config
    kv = SequenceKV(KVLayout(config.layers, config.kv_heads, config.head_dim, model.dtype))
    kv.ensure(positions, 0, positions)
    return kv


def with_reference(folder: Path, quant: str) -> tuple[Decoder, Decoder]:
    """The native decoder of a directory, and a float32 one of torch's operations with its weights."""
    native, reference = load_model(folder, quant=quant).model, load_model(folder, quant="fp32").model
    assert native.native is not None, "every matrix is native"
    assert reference.native is None
    for name, layer in native.named_modules():
        if isinstance(layer, NativeLinear):
            _replace(reference, name, RoundedLinear(dequantised(layer), layer.bias))
        elif isinstance(layer, Linear):  # routers stay dense
            _replace(reference, name, Linear(layer.weight.float()))
    reference.embedding = native.embed(torch.arange(native.config.vocab_size))
    return native, reference


def _replace(model: Any, name: str, layer: Linear) -> None:
    parent, _, last = name.rpartition(".")
    setattr(model.get_submodule(parent), last, layer)
