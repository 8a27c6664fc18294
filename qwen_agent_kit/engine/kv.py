"""Where keys and values live: one growing slab per layer and sequence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from qwen_agent_kit.engine.snapshots import MOST_STATES, Snapshots

__all__ = ["KVLayout", "QUANTUM", "SequenceKV", "round_up"]

QUANTUM = 64
"""Capacities are multiples of so many positions."""


def round_up(positions: int) -> int:
    """The next multiple of ``QUANTUM``."""
    return -(-positions // QUANTUM) * QUANTUM


@dataclass(frozen=True, slots=True)
class KVLayout:
    """What one position takes, and what a sequence takes besides: ``state_bytes`` of a recurrent state."""

    layers: int
    kv_heads: int
    head_dim: int
    dtype: torch.dtype = torch.float32
    device: torch.device | str = "cpu"
    state_bytes: int = 0

    @property
    def position_bytes(self) -> int:
        """Keys and values of every layer for one position."""
        return max(1, 2 * self.layers * self.kv_heads * self.head_dim * self.dtype.itemsize)

    @property
    def snapshots_only(self) -> bool:
        """Whether a prefix can be reused only where its recurrent state was kept."""
        return self.state_bytes > 0

    @property
    def state_positions(self) -> int:
        """One recurrent state, in positions of as many bytes."""
        return -(-self.state_bytes // self.position_bytes)

    @property
    def running_states(self) -> int:
        """What the states of a running sequence may come to, in positions."""
        return MOST_STATES * self.state_positions


class SequenceKV:
    """The keys and values of one sequence.

    Each layer has a slab [kv_heads, capacity, head_dim] for keys and one for values, so that what attention reads of
    one head is contiguous. Positions are written once; a slab that is full is replaced by one half as large again, so
    appending costs the same however long the history is.
    """

    def __init__(self, layout: KVLayout) -> None:
        self._layout = layout
        self._keys = [self._slab(0) for _ in range(layout.layers)]
        self._values = [self._slab(0) for _ in range(layout.layers)]
        self.capacity = 0
        self.snapshots = Snapshots()

    def _slab(self, capacity: int) -> torch.Tensor:
        layout = self._layout
        return torch.empty(layout.kv_heads, capacity, layout.head_dim, dtype=layout.dtype, device=layout.device)

    def ensure(self, end: int, used: int, limit: int) -> None:
        """Make room for positions up to ``end``, keeping the first ``used``.

        Args:
            end: How many positions there must be room for.
            used: How many hold something.
            limit: The most that may be taken.
        """
        if end <= self.capacity:
            return
        assert end <= limit, f"{end} positions are more than the {limit} that were reserved"
        capacity = min(max(round_up(end), round_up(self.capacity * 3 // 2)), limit)
        self._move(self._keys, capacity, used)
        self._move(self._values, capacity, used)
        self.capacity = capacity

    def _move(self, slabs: list[torch.Tensor], capacity: int, used: int) -> None:
        for layer, old in enumerate(slabs):  # one layer at a time: at most one slab exists twice
            new = self._slab(capacity)
            new[:, :used] = old[:, :used]
            slabs[layer] = new

    def copy_from(self, other: SequenceKV, length: int) -> None:
        """Take over the first ``length`` positions of another sequence; there must be room."""
        for mine, theirs in ((self._keys, other._keys), (self._values, other._values)):
            for new, old in zip(mine, theirs, strict=True):
                new[:, :length] = old[:, :length]

        self.snapshots.share(other.snapshots, length)

    def dump(self, start: int, end: int) -> torch.Tensor:
        """A copy of a run of positions, [2, layers, kv_heads, n, head_dim]."""
        return torch.stack([torch.stack([slab[:, start:end] for slab in of]) for of in (self._keys, self._values)])

    def load(self, data: torch.Tensor, start: int) -> None:
        """Take over what ``dump`` gave, at positions ``start`` on; there must be room."""
        end = start + data.shape[3]
        for of, slabs in zip(data, (self._keys, self._values), strict=True):
            for values, slab in zip(of, slabs, strict=True):
                slab[:, start:end] = values

    def write(self, layer: int, k: torch.Tensor, v: torch.Tensor, start: int) -> None:
        """Store ``k`` and ``v`` [n, kv_heads, head_dim] at positions ``start`` on."""
        end = start + k.shape[0]
        self._keys[layer][:, start:end] = k.transpose(0, 1)
        self._values[layer][:, start:end] = v.transpose(0, 1)

    def read(self, layer: int, end: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values [end, kv_heads, head_dim] of the first ``end`` positions, as views."""
        return self._keys[layer][:, :end].transpose(0, 1), self._values[layer][:, :end].transpose(0, 1)

    def state(self, at: int) -> Any:
        """The recurrent state after ``at`` positions, None where it is not kept."""
        return self.snapshots.at(at)

    def put_state(self, at: int, state: Any) -> None:
        """Take the recurrent state after ``at`` positions."""
        self.snapshots.put(at, state)

    def slabs(self) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """The slabs themselves, layer by layer: keys and values [kv_heads, capacity, head_dim], contiguous."""
        return self._keys, self._values
