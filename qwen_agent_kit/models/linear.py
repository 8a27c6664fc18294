"""Linear layers and their schemes, the only module that knows of bits.

A scheme is a way to pack a matrix and to multiply by it; the rest of the model holds ``Linear`` objects.

==========  =======================================================  =======================
scheme      what is kept of a [N, K] matrix                          activations
==========  =======================================================  =======================
``fp32``    float32                                                  float32
``bf16``    bfloat16                                                 bfloat16
``int8``    int8, a half-precision scale per 32 along K              int8 per 32
``int4``    4 bits, a half-precision scale and a zero of 8 bits      int8 per 32
            per 32 along K
==========  =======================================================  =======================

int8 and int4 are the native kernels' (``native``). Where there is no C compiler they are torch's: int8 rows with one
bfloat16 scale each, and 4 bits with a bfloat16 scale and zero per 64 along K; activations are then bfloat16. Under int4
the head is kept in int8.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from qwen_agent_kit.errors import UsageError
from qwen_agent_kit.models.kernels import INT4_GROUP, Ranges, usual
from qwen_agent_kit.models.native.build import LAYOUT
from qwen_agent_kit.models.native.linear import NativeLinear, native_kind, pack_native

__all__ = ["Linear", "linear_from", "make_linear", "pack_linear", "scheme_key", "value_dtype"]

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "int8": torch.bfloat16, "int4": torch.bfloat16}


def value_dtype(scheme: str) -> torch.dtype:
    """What activations, keys and values are held in under ``scheme``.

    Raises:
        UsageError: For an unknown scheme.
    """
    if scheme not in _DTYPES:
        raise UsageError(f"`quant` is {scheme!r}; allowed: {', '.join(_DTYPES)}")
    return _DTYPES[scheme]


def scheme_key(scheme: str) -> str:
    """Names the packed layout: the native kernels', or torch's, whose int4 depends on the instruction set it found."""
    value_dtype(scheme)
    if native_kind(scheme):
        return f"{scheme}-{LAYOUT}"
    return f"int4-head8-{torch.backends.cpu.get_cpu_capability().lower()}" if scheme == "int4" else scheme


class Linear(nn.Module):
    """``y = x W^T + b`` for x [n, K], dense.

    Weights are plain attributes, not parameters: they may be mapped from a file and are never trained.

    Args:
        weight: [N, K].
        bias: [N] in the activations' dtype, or None.
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None = None) -> None:
        super().__init__()
        self.weight = weight
        self.bias = bias
        self.ranges: Ranges = usual(self.layout, self.shape[1])

    @property
    def layout(self) -> str:
        """How the matrix is held, as ``kernels`` names it."""
        return "fp32" if self.weight.dtype == torch.float32 else "bf16"

    @property
    def shape(self) -> tuple[int, int]:
        """N and K."""
        n, k = self.weight.shape
        return n, k

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = len(x)
        if not rows:  # a chunk whose logits nobody wants; not every kernel takes it
            return x.new_empty(0, self.shape[0])
        return next(multiply for most, multiply in self.ranges if rows <= most)(self, x)

    def tensors(self) -> list[torch.Tensor]:
        """Everything that it keeps."""
        return [t for t in vars(self).values() if isinstance(t, torch.Tensor)]


class Int8Linear(Linear):
    """int8 rows with one scale each; ``scale`` [N] in the activations' dtype."""

    def __init__(self, weight: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor | None = None) -> None:
        super().__init__(weight, bias)
        self.scale = scale

    @property
    def layout(self) -> str:
        return "int8 rows"


class Int4Linear(Linear):
    """4-bit groups in the layout that ``_convert_weight_to_int4pack_for_cpu`` makes; ``scale`` [K / 64, N, 2]."""

    def __init__(self, weight: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor | None = None) -> None:
        self.scale = scale
        super().__init__(weight, bias)

    @property
    def layout(self) -> str:
        return "int4 groups"

    @property
    def shape(self) -> tuple[int, int]:
        return self.scale.shape[1], self.scale.shape[0] * INT4_GROUP


def pack_linear(weight: torch.Tensor, bias: torch.Tensor | None, scheme: str) -> dict[str, torch.Tensor]:
    """What ``linear_from`` needs: ``weight``, ``scale`` or ``shape`` where quantised, ``bias`` where given.

    Args:
        weight: [N, K], any floating dtype.
        bias: [N] or None.
        scheme: ``fp32``, ``bf16``, ``int8`` or ``int4``. A matrix whose shape int4's kernel does not take (N not a
            multiple of 16 or K of 64) is packed as int8; the native kernels take any.
    """
    dtype = value_dtype(scheme)
    if kind := native_kind(scheme):
        return pack_native(weight, bias, kind)
    if scheme == "int4" and not weight.shape[0] % 16 and not weight.shape[1] % INT4_GROUP:
        packed = _pack_int4(weight.float())
    elif scheme in ("int8", "int4"):
        packed = _pack_int8(weight.float(), dtype)
    else:
        packed = {"weight": weight.to(dtype).contiguous()}
    if bias is not None:
        packed["bias"] = bias.to(dtype).contiguous()
    return packed


def _pack_int8(weight: torch.Tensor, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    # The scale is rounded first, so that the integers are chosen for the scale that is used.
    scale = (weight.abs().amax(1) / 127.0).clamp(min=1e-12).to(dtype)
    values = (weight / scale.float().unsqueeze(1)).round().clamp(-127, 127).to(torch.int8)
    return {"weight": values, "scale": scale}


def _pack_int4(weight: torch.Tensor) -> dict[str, torch.Tensor]:
    rows, columns = weight.shape
    groups = weight.view(rows, columns // INT4_GROUP, INT4_GROUP)
    low, high = groups.amin(-1, keepdim=True), groups.amax(-1, keepdim=True)
    scale = ((high - low) / 15.0).clamp(min=1e-8).bfloat16().float()
    # The kernel computes (q - 8) * scale + zero, so zero is the value of q = 8.
    zero = (low + 8 * scale).bfloat16().float()
    values = ((groups - zero) / scale + 8).round().clamp(0, 15).to(torch.int32).view(rows, columns)
    packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(values, 1)
    both = torch.cat((scale, zero), -1).transpose(0, 1).contiguous().bfloat16()
    return {"weight": packed, "scale": both}


def linear_from(tensors: Mapping[str, torch.Tensor]) -> Linear | NativeLinear:
    """The layer of what ``pack_linear`` made."""
    if "shape" in tensors:
        return NativeLinear(tensors["weight"], tensors["shape"], tensors.get("bias"))
    weight, scale, bias = tensors["weight"], tensors.get("scale"), tensors.get("bias")
    if scale is None:
        return Linear(weight, bias)
    return Int8Linear(weight, scale, bias) if weight.dtype == torch.int8 else Int4Linear(weight, scale, bias)


def make_linear(weight: torch.Tensor, bias: torch.Tensor | None = None, scheme: str = "fp32") -> Linear | NativeLinear:
    """Pack a matrix and wrap it.

    Raises:
        UsageError: For an unknown scheme.
    """
    return linear_from(pack_linear(weight, bias, scheme))
