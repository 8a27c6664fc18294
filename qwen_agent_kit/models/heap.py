"""Keeping what is made one piece at a time, without the holes that its making leaves in the heap.

A tensor that was read, joined and packed lies between others that are gone by then. glibc gives memory back from the
end of its heap only, so all those gaps stay with the process: half the weights again, measured on SmolLM2-360M in int8.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterable
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

__all__ = ["gathered"]

TRIM_BYTES = 16 * 2**20
"""Gaps are given back whenever so many bytes were kept: what lies in gaps between is about as much."""


def gathered(tensors: Iterable[tuple[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """All of them by name; memory that was used between them goes back to the system on the way."""
    kept: dict[str, torch.Tensor] = {}
    since = 0
    for name, tensor in tensors:
        kept[name] = tensor
        since += tensor.nbytes
        if since >= TRIM_BYTES:
            since = 0
            _trim()
    _trim()
    return kept


def _trim() -> None:
    if (trim := _malloc_trim()) is not None:
        trim(0)


@cache
def _malloc_trim() -> Any:
    """glibc's; None where the C library is another one, whose heap is its own affair."""
    if not sys.platform.startswith("linux"):
        return None
    return getattr(ctypes.CDLL(None), "malloc_trim", None)
