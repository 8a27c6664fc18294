"""What the rows of one forward belong to: their sequences, who sees whom, and what adapters add for them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import torch

from qwen_agent_kit.models.lora import Adapter

__all__ = ["KeyValues", "Run", "Segment", "Step", "adapted_rows", "causal", "wanted_rows"]


class KeyValues(Protocol):
    """One sequence's keys and values."""

    def write(self, layer: int, k: torch.Tensor, v: torch.Tensor, start: int) -> None:
        """Store k and v [n, kv_heads, head_dim] at positions ``start`` on."""

    def read(self, layer: int, end: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values [end, kv_heads, head_dim] of the first ``end`` positions."""

    def slabs(self) -> tuple[Sequence[torch.Tensor], Sequence[torch.Tensor]] | None:
        """Where keys and values lie, layer by layer; None where it is not in slabs.

        Each slab is a contiguous [kv_heads, capacity, head_dim], all of one capacity, with room for what is
        computed next.
        """


@dataclass(frozen=True, slots=True)
class Segment:
    """The rows of one sequence in a batch.

    Args:
        kv: Gets the new keys and values, and gives all so far.
        start: How many positions of the sequence come before.
        count: How many rows are its own.
        wanted: Of how many of them, counted from the last, the logits are wanted.
        adapter: What is added to the matrices for this sequence; None for nothing.
    """

    kv: KeyValues
    start: int
    count: int
    wanted: int = 1
    adapter: Adapter | None = None


@dataclass(slots=True)
class Run:
    """One segment as every layer sees it: its rows ``first`` to ``last`` of the batch, and who sees whom."""

    kv: KeyValues
    first: int
    last: int
    start: int
    end: int
    mask: torch.Tensor | None
    near: torch.Tensor | None

    def on(self, device: torch.device) -> Run:
        """The same for layers on another device."""
        mask, near = (None if t is None else t.to(device) for t in (self.mask, self.near))
        return Run(self.kv, self.first, self.last, self.start, self.end, mask, near)


@dataclass(slots=True)
class Step:
    """What every layer of one forward shares."""

    runs: list[Run]
    cos: torch.Tensor
    sin: torch.Tensor
    query_scale: torch.Tensor | None
    adapted: Sequence[tuple[slice | torch.Tensor, Adapter]] = ()

    def add(self, layer: int, matrix: str, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Y [n, N], the product of x [n, K] with a matrix, and what each row's adapter adds to it."""
        for rows, adapter in self.adapted:
            if isinstance(rows, slice):
                adapter.add(layer, matrix, x[rows], y[rows])
            else:
                chosen = y[rows]
                adapter.add(layer, matrix, x[rows], chosen)
                y[rows] = chosen
        return y

    def on(self, device: torch.device) -> Step:
        """The same for layers on another device."""
        scale = None if self.query_scale is None else self.query_scale.to(device)
        return Step(
            [run.on(device) for run in self.runs], self.cos.to(device), self.sin.to(device), scale, self.adapted
        )


def adapted_rows(segments: Sequence[Segment]) -> list[tuple[slice | torch.Tensor, Adapter]]:
    """Per adapter the rows that take it: a slice where they lie together, else their numbers."""
    spans: dict[Adapter, list[tuple[int, int]]] = {}
    first = 0
    for segment in segments:
        if segment.adapter is not None:
            spans.setdefault(segment.adapter, []).append((first, first + segment.count))
        first += segment.count
    return [(_rows(of), adapter) for adapter, of in spans.items()]


def _rows(spans: Sequence[tuple[int, int]]) -> slice | torch.Tensor:
    if all(before[1] == after[0] for before, after in pairwise(spans)):
        return slice(spans[0][0], spans[-1][1])
    return torch.cat([torch.arange(*span) for span in spans])


def wanted_rows(hidden: torch.Tensor, segments: Sequence[Segment]) -> torch.Tensor:
    """The rows whose logits are wanted."""
    if len(segments) == 1:
        return hidden[len(hidden) - segments[0].wanted :]
    rows, last = [], 0
    for segment in segments:
        last += segment.count
        rows.append(hidden[last - segment.wanted : last])
    return torch.cat(rows)


def causal(n: int, start: int, window: int | None, dtype: torch.dtype) -> torch.Tensor | None:
    """Which of the positions 0 to start + n each of the n rows sees.

    Returns:
        [n, start + n], 0 where it sees and minus infinity where not; None for one row.
    """
    if n == 1:
        return None
    rows = torch.arange(start, start + n).unsqueeze(1)
    columns = torch.arange(start + n).unsqueeze(0)
    hidden = columns > rows
    if window is not None:
        hidden |= columns <= rows - window
    return torch.zeros(n, start + n, dtype=dtype).masked_fill_(hidden, -torch.inf)
