"""Linear layers on a card: bf16, int8 rows, int4 groups and fp8 rows by torch's kernels, nf4 and LLM.int8() by ``bnb``.

Each packed matrix can be unpacked; a kernel is used only after it gave, on the spot and on this matrix, what unpacking
and multiplying gives. Where there is none, or it is wrong, the matrix is unpacked and multiplied.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812  # the name everyone knows it by

from qwen_agent_kit.errors import UsageError
from qwen_agent_kit.models.cuda.bnb import int8_on_card, nf4_on_card

__all__ = ["CardLinear", "Packed", "pack"]

_LOG = logging.getLogger("qwen_agent_kit")

GROUP = 64
"""Columns of int4 that share a scale."""

_FP8 = 448.0
_CLOSE = 0.02
_ROUNDS = ("fp8", "llm-int8")
"""Round the activations as well."""


@dataclass(frozen=True, slots=True)
class Packed:
    """A matrix [N, K] in a scheme: ``weight`` as the kernel wants it, and what unpacks it."""

    scheme: str
    weight: torch.Tensor
    scale: torch.Tensor | None
    unpack: Callable[[], torch.Tensor]
    multiply: Callable[[torch.Tensor], torch.Tensor] | None


def pack(weight: torch.Tensor, scheme: str) -> Packed:
    """Pack a dense [N, K] where it is.

    Raises:
        UsageError: For an unknown scheme.
    """
    packers = {"bf16": _bf16, "int8": _int8, "int4": _int4, "fp8": _fp8, "nf4": _nf4, "llm-int8": _llm_int8}
    if scheme not in packers:
        raise UsageError(f"`scheme` is {scheme!r}; allowed on a card: {', '.join(packers)}")
    return packers[scheme](weight)


def _bf16(weight: torch.Tensor) -> Packed:
    dense = weight.to(torch.bfloat16)
    return Packed("bf16", dense, None, lambda: dense, lambda x: F.linear(x, dense))


def _int8(weight: torch.Tensor) -> Packed:
    scale = weight.float().abs().amax(1, keepdim=True).clamp(min=1e-12) / 127
    codes = (weight.float() / scale).round().to(torch.int8)
    rows = scale.squeeze(1).to(torch.bfloat16)
    return Packed(
        "int8",
        codes,
        rows,
        lambda: codes.to(torch.bfloat16) * rows.unsqueeze(1),
        lambda x: torch.ops.aten._weight_int8pack_mm(x, codes, rows),
    )


def _int4(weight: torch.Tensor) -> Packed:
    """Codes 0 to 15 around 8, bfloat16 scale and zero per group: the layout of torch's tinygemm."""
    n, k = weight.shape
    padded = F.pad(weight.float(), (0, -k % GROUP))
    groups = padded.view(n, -1, GROUP)
    low, high = groups.amin(-1, keepdim=True), groups.amax(-1, keepdim=True)
    scale = ((high - low).clamp(min=1e-8) / 15).to(torch.bfloat16)
    zero = (low + 8 * scale.float()).to(torch.bfloat16)
    codes = ((groups - zero.float()) / scale.float() + 8).round().clamp(0, 15).to(torch.uint8)

    def unpack() -> torch.Tensor:
        return ((codes.float() - 8) * scale.float() + zero.float()).view(n, -1)[:, :k].to(torch.bfloat16)

    if not weight.is_cuda or n % 8 or k % GROUP:
        return Packed("int4", codes, scale, unpack, None)
    flat = codes.view(n, -1)
    tiles = torch.ops.aten._convert_weight_to_int4pack((flat[:, ::2] << 4 | flat[:, 1::2]).contiguous(), 8)
    both = torch.cat((scale, zero), -1).transpose(0, 1).contiguous()
    return Packed("int4", tiles, both, unpack, lambda x: torch.ops.aten._weight_int4pack_mm(x, tiles, GROUP, both))


def _fp8(weight: torch.Tensor) -> Packed:
    scale = weight.float().abs().amax(1, keepdim=True).clamp(min=1e-12) / _FP8
    codes = (weight.float() / scale).to(torch.float8_e4m3fn)

    def multiply(x: torch.Tensor) -> torch.Tensor:
        own = x.float().abs().amax(1, keepdim=True).clamp(min=1e-12) / _FP8
        given = (x.float() / own).to(torch.float8_e4m3fn)
        return torch._scaled_mm(given, codes.t(), own, scale.t(), out_dtype=torch.bfloat16, use_fast_accum=True)

    return Packed("fp8", codes, scale, lambda: (codes.float() * scale).to(torch.bfloat16), multiply)


def _nf4(weight: torch.Tensor) -> Packed:
    packed, unpack, multiply = nf4_on_card(weight)
    return Packed("nf4", packed, None, unpack, multiply)


def _llm_int8(weight: torch.Tensor) -> Packed:
    packed, unpack, multiply = int8_on_card(weight)
    return Packed("llm-int8", packed, None, unpack, multiply)


class CardLinear(nn.Module):
    """``y = x W^T + b`` for x bfloat16 [n, K].

    Args:
        weight: [N, K], dense, on its device.
        bias: [N] or None.
        scheme: ``bf16``, ``int8``, ``int4``, ``fp8``, ``nf4`` or ``llm-int8``.

    Raises:
        UsageError: For an unknown scheme, or one whose library is not installed.
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None, scheme: str) -> None:
        super().__init__()
        self.packed = pack(weight, scheme)
        self.bias = None if bias is None else bias.to(torch.bfloat16)
        self.kernel = self._works(weight.shape[1], weight.device)

    def _works(self, k: int, device: torch.device) -> bool:
        """Whether the kernel gives what unpacking and multiplying gives, for one row and for many."""
        if self.packed.multiply is None or device.type != "cuda":
            return False
        generator = torch.Generator().manual_seed(0)
        allowed = 0.08 if self.packed.scheme in _ROUNDS else _CLOSE
        for n in (1, 17):
            x = torch.randn(n, k, generator=generator).to(device, torch.bfloat16)
            right = F.linear(x, self.packed.unpack()).float()
            try:
                off = self.packed.multiply(x).float() - right
            except (RuntimeError, NotImplementedError) as error:
                # A card or a torch that lacks it says so only when it is called; unpacking works everywhere.
                _LOG.info("the %s kernel is not used for %d columns: %s", self.packed.scheme, k, error)
                return False
            if not float(off.norm()) <= allowed * float(right.norm()):
                return False
        return True

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        multiply = self.packed.multiply if self.kernel else None
        y = F.linear(x, self.packed.unpack()) if multiply is None else multiply(x)
        return y if self.bias is None else y + self.bias
