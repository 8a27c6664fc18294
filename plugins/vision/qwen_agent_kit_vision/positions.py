"""m-rope positions (Qwen2-VL, arXiv 2409.12191 section 2.1).

Text counts on all three axes at once, a medium counts time, height and width, and what follows begins one after the
largest position so far.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from qwen_agent_kit.backends import MediaSpan

__all__ = ["grid_positions", "positions"]


def positions(ids: Sequence[int], spans: Sequence[MediaSpan]) -> tuple[np.ndarray, int]:
    """Of a prompt.

    Args:
        ids: The prompt.
        spans: Media, in order; their items know their grid.

    Returns:
        int64 [3, n], and the position of the id that comes next.
    """
    runs, at, following = [], 0, 0
    for span in spans:
        runs.append(_text(span.start - at, following))
        following += span.start - at
        item = span.item
        run = grid_positions(item.grid, item.merge, item.interval) + following
        runs.append(run)
        following = int(run.max()) + 1
        at = span.start + span.length
    runs.append(_text(len(ids) - at, following))
    return np.concatenate(runs, axis=1), following + len(ids) - at


def grid_positions(grid: tuple[int, int, int], merge: int, interval: float = 1.0) -> np.ndarray:
    """Of a medium that begins at 0: int64 [3, t * h * w / merge**2].

    Args:
        grid: Patches in time, height and width.
        merge: How many patches a side become one id.
        interval: Steps between two time steps; times are cut to whole numbers, in float32 as transformers does.
    """
    t, h, w = grid[0], grid[1] // merge, grid[2] // merge
    time = (np.arange(t).astype(np.float32) * np.float32(interval)).astype(np.int64)
    axes = np.meshgrid(time, np.arange(h), np.arange(w), indexing="ij")
    return np.stack(axes).reshape(3, -1).astype(np.int64)


def _text(count: int, start: int) -> np.ndarray:
    return np.broadcast_to(np.arange(start, start + count, dtype=np.int64), (3, count))
