"""Quantised linear layers on the native kernels."""

from __future__ import annotations

import torch

from qwen_agent_kit.models.native.library import KINDS, Library, MatrixStruct, library

__all__ = ["NativeLinear", "native_kind", "pack_native"]


class NativeLinear(torch.nn.Module):
    """``y = x W^T + b`` over a matrix in the layout of ``gemm.h``, activations quantised in groups of 32.

    A row's result does not depend on the rows beside it.

    Args:
        weight: uint8 [blocks, bytes], as ``Library.pack`` made it.
        shape: int32, beginning with N, K and the kind.
        bias: float32 [N] or None.
    """

    def __init__(self, weight: torch.Tensor, shape: torch.Tensor, bias: torch.Tensor | None = None) -> None:
        super().__init__()
        loaded = library()
        assert loaded is not None, "tiles are made, and looked up in the cache, where there are kernels only"
        self.weight, self.shape, self.bias = weight, shape, bias
        self._library: Library = loaded
        n, k, kind = shape[:3].tolist()
        self.struct = MatrixStruct(
            weight.data_ptr(), None if bias is None else bias.data_ptr(), n, k, kind, -(-k // 32)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self._library.product(self.struct, x.float().contiguous()).to(x.dtype)

    def rows(self, ids: torch.Tensor) -> torch.Tensor:
        """Rows of the matrix in float32 [len(ids), K]: an embedding that is tied to the head."""
        return self._library.rows(self.struct, ids.contiguous())

    def tensors(self) -> list[torch.Tensor]:
        """Everything that it keeps."""
        return [t for t in (self.weight, self.shape, self.bias) if t is not None]


def native_kind(scheme: str) -> str | None:
    """How the native kernels name ``scheme``; None where it is torch's, or there are no kernels."""
    return scheme if scheme in KINDS and library() is not None else None


def pack_native(weight: torch.Tensor, bias: torch.Tensor | None, kind: str) -> dict[str, torch.Tensor]:
    """What ``NativeLinear`` takes.

    Args:
        weight: [N, K], any floating dtype.
        bias: [N] or None.
        kind: ``int8`` or ``int4``.
    """
    loaded = library()
    assert loaded is not None, "`native_kind` says where there are kernels"
    shape = torch.zeros(16, dtype=torch.int32)  # a cache line, so that what follows in a file begins on one
    shape[:3] = torch.tensor([*weight.shape, KINDS[kind]])
    packed = {"weight": loaded.pack(weight, kind), "shape": shape}
    return packed if bias is None else {**packed, "bias": bias.float().contiguous()}
