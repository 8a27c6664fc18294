"""The decode step, mask and draw as one CUDA graph: a replay instead of hundreds of launches.

A graph is of one batch size and one width of block tables; a batch is padded up to the next size. Padding rows write
into block 0 of the pool, which is theirs, and what they draw is dropped.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from qwen_agent_kit.models.cuda.paged import PagedKV, tables
from qwen_agent_kit.models.cuda.step import DecodeStep, draw

__all__ = ["DecodeGraphs", "Row"]

SIZES = (1, 2, 4, 8, 16, 32, 64)


@dataclass(frozen=True, slots=True)
class Row:
    """One sequence in a step.

    Args:
        kv: Its blocks, with room for one more position; ``length`` positions are there.
        id: The last one, not in the pool yet.
        length: Positions in the pool.
        temperature: 0 for greedy.
        mask: [vocab], 0 or minus infinity, None where all ids are allowed.
        noise: [vocab], exponential variates of the request's own generator; None for greedy.
    """

    kv: PagedKV
    id: int
    length: int
    temperature: float = 0.0
    mask: torch.Tensor | None = None
    noise: torch.Tensor | None = None


class DecodeGraphs:
    """Runs the step; captures it once per size where all of it is on one card, and runs it plainly elsewhere.

    Args:
        step: What is captured.
        vocab: Columns of the logits.
        width: Most blocks of a sequence.
    """

    def __init__(self, step: DecodeStep, vocab: int, width: int) -> None:
        self._step, self._vocab, self._width = step, vocab, width
        self._device = step.devices[0]
        self._captures = self._device.startswith("cuda") and len(set(step.devices)) == 1
        self._captured: dict[int, tuple[torch.cuda.CUDAGraph, torch.Tensor]] = {}
        self._buffers: dict[int, dict[str, torch.Tensor]] = {}

    def __call__(self, rows: Sequence[Row]) -> list[int]:
        """The next id of each row; at most as many rows as the largest size.

        The ids of one step are read back together, the only wait of the host.
        """
        size = next(size for size in SIZES if size >= len(rows))
        buffers = self._filled(size, rows)
        if not self._captures:
            return self._run(buffers)[: len(rows)].tolist()
        if size not in self._captured:
            self._captured[size] = self._capture(buffers)
        graph, ids = self._captured[size]
        graph.replay()
        return ids[: len(rows)].tolist()

    def _run(self, buffers: dict[str, torch.Tensor]) -> torch.Tensor:
        logits = self._step(buffers["ids"], buffers["positions"], buffers["tables"], buffers["lengths"])
        return draw(buffers, logits)

    def _capture(self, buffers: dict[str, torch.Tensor]) -> tuple[torch.cuda.CUDAGraph, torch.Tensor]:
        stream: Callable[[str], Any] = torch.cuda.Stream
        side = stream(self._device)
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):  # kernels are compiled and workspaces made before anything is recorded
            for _ in range(2):
                self._run(buffers)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            ids = self._run(buffers)
        return graph, ids

    def _filled(self, size: int, rows: Sequence[Row]) -> dict[str, torch.Tensor]:
        """The buffers of a size with the rows in them. They stay where they are: a graph reads fixed addresses."""
        if size not in self._buffers:
            self._buffers[size] = self._empty(size)
        buffers, n = self._buffers[size], len(rows)
        buffers["ids"][:n] = torch.tensor([row.id for row in rows])
        buffers["positions"][:n] = torch.tensor([row.length for row in rows])
        buffers["lengths"][:n] = torch.tensor([row.length + 1 for row in rows], dtype=torch.int32)
        buffers["tables"][:n] = tables([row.kv for row in rows], self._width).to(self._device)
        buffers["temperature"][:n] = torch.tensor([row.temperature for row in rows])
        for name in ("ids", "positions", "temperature", "tables"):
            buffers[name][n:] = 0
        buffers["lengths"][n:] = 1
        for i, row in enumerate(rows):
            buffers["mask"][i] = 0.0 if row.mask is None else row.mask.to(self._device)
            buffers["noise"][i] = 1.0 if row.noise is None else row.noise.to(self._device)
        return buffers

    def _empty(self, size: int) -> dict[str, torch.Tensor]:
        def zeros(*shape: int, dtype: torch.dtype) -> torch.Tensor:
            return torch.zeros(shape, dtype=dtype, device=self._device)

        return {
            "ids": zeros(size, dtype=torch.long),
            "positions": zeros(size, dtype=torch.long),
            "lengths": zeros(size, dtype=torch.int32),
            "tables": zeros(size, self._width, dtype=torch.int32),
            "temperature": zeros(size, dtype=torch.float32),
            "mask": zeros(size, self._vocab, dtype=torch.float32),
            "noise": zeros(size, self._vocab, dtype=torch.float32) + 1.0,
        }
