"""Keys and values in blocks of one pool, so that sequences of any length share a card's memory without gaps."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from qwen_agent_kit.errors import EngineError
from qwen_agent_kit.models.cuda.attention import store

__all__ = ["PAGE", "PagedKV", "PagedPool", "tables"]

PAGE = 64
"""Positions of a block."""


class PagedPool:
    """The blocks of all sequences: per layer keys and values [blocks, PAGE, kv_heads, head_dim].

    Args:
        blocks: How many; the first is nobody's, rows that only fill a batch write there.
        kv_heads: Per layer.
        head_dim: Width of one.
        devices: Of each layer.
        dtype: Of keys and values.
    """

    def __init__(
        self, blocks: int, kv_heads: int, head_dim: int, devices: Sequence[str | torch.device], dtype: torch.dtype
    ) -> None:
        shape = (blocks, PAGE, kv_heads, head_dim)
        self.keys = [torch.zeros(shape, dtype=dtype, device=device) for device in devices]
        self.values = [torch.zeros(shape, dtype=dtype, device=device) for device in devices]
        self._free = list(range(blocks - 1, 0, -1))

    @property
    def free(self) -> int:
        """Blocks that nobody has."""
        return len(self._free)

    def take(self, count: int) -> list[int]:
        """Blocks for one sequence.

        Raises:
            EngineError: ``kv_exhausted`` where fewer are free; none is taken then.
        """
        if count > len(self._free):
            raise EngineError(f"{count} KV blocks are asked for; {len(self._free)} are free", code="kv_exhausted")
        return [self._free.pop() for _ in range(count)]

    def give(self, blocks: Sequence[int]) -> None:
        """Take blocks back."""
        self._free.extend(blocks)


class PagedKV:
    """One sequence's blocks; a ``KeyValues``."""

    def __init__(self, pool: PagedPool) -> None:
        self._pool = pool
        self.blocks: list[int] = []

    def ensure(self, end: int) -> None:
        """Make room for positions up to ``end``."""
        missing = -(-end // PAGE) - len(self.blocks)
        if missing > 0:
            self.blocks += self._pool.take(missing)

    def release(self) -> None:
        """Give all blocks back; may be called twice."""
        self._pool.give(self.blocks)
        self.blocks = []

    def write(self, layer: int, k: torch.Tensor, v: torch.Tensor, start: int) -> None:
        """Store k and v [n, kv_heads, head_dim] at positions ``start`` on."""
        self.ensure(start + k.shape[0])
        at = torch.arange(start, start + k.shape[0], device=k.device)
        table = torch.tensor(self.blocks, device=k.device)
        store(self._pool.keys[layer], self._pool.values[layer], k, v, table[at // PAGE] * PAGE + at % PAGE)

    def read(self, layer: int, end: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values [end, kv_heads, head_dim] of the first ``end`` positions, gathered."""
        keys, values = self._pool.keys[layer], self._pool.values[layer]
        blocks = torch.tensor(self.blocks[: -(-end // PAGE)], device=keys.device)
        return keys[blocks].flatten(0, 1)[:end], values[blocks].flatten(0, 1)[:end]

    def slabs(self) -> None:
        """Not in slabs."""


def tables(sequences: Sequence[PagedKV], width: int, device: str | torch.device = "cpu") -> torch.Tensor:
    """The block tables [n, width], int32; what a sequence does not have is block 0, and never read."""
    rows = [[*kv.blocks, *[0] * (width - len(kv.blocks))] for kv in sequences]
    return torch.tensor(rows, dtype=torch.int32, device=device)
