"""m-rope positions (Qwen2-VL, arXiv 2409.12191 section 2.1; Qwen2.5-Omni's TMRoPE, arXiv 2503.20215 section 2.2).

Text and sound count on all three axes at once, a picture or video counts time, height and width, and what follows
begins one after the largest position so far. A video and its sound count from one beginning; the two marks before them
share a position, and so do the two behind, as in transformers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from qwen_agent_kit.backends import Slice

if TYPE_CHECKING:
    from qwen_agent_kit.backends import MediaSpan

__all__ = ["grid_positions", "positions"]


def positions(ids: Sequence[int], spans: Sequence[MediaSpan]) -> tuple[np.ndarray, int]:
    """Of a prompt.

    Args:
        ids: The prompt.
        spans: Media, in order; the items of those that are seen know their grid.

    Returns:
        int64 [3, n], and the position of the id that comes next.
    """
    runs: list[np.ndarray] = []
    at = following = begin = 0
    heard = False  # the last span was of a video with its sound
    for span in spans:
        cut = isinstance(span.item, Slice)
        if not (cut and heard and span.start == at):  # else it goes on from the video's beginning
            runs.append(_text(span.start - at, following, after=heard, before=cut))
            begin = following + span.start - at - heard - cut
        runs.append(_item_positions(span.item, span.length) + begin)
        following = int(runs[-1].max()) + 1
        at, heard = span.start + span.length, cut
    runs.append(_text(len(ids) - at, following, after=heard))
    return np.concatenate(runs, axis=1), following + len(ids) - at - heard


def _item_positions(item: Any, length: int) -> np.ndarray:
    """From 0, or of a slice from where its whole is 0."""
    if isinstance(item, Slice):
        return _item_positions(item.item, item.stop)[:, item.start : item.stop]
    if not hasattr(item, "grid"):  # another backend's: it counts like text
        return _text(length, 0)
    return grid_positions(item.grid, item.merge, item.interval, item.pace)


def grid_positions(grid: tuple[int, int, int], merge: int, interval: float = 1.0, pace: float = 1.0) -> np.ndarray:
    """Of a medium that begins at 0: int64 [3, t * h * w / merge**2].

    Args:
        grid: Patches in time, height and width.
        merge: How many patches a side become one id.
        interval: From one time step to the next.
        pace: Positions to one of ``interval``; products are cut to whole numbers, in float32 as transformers does.
    """
    t, h, w = grid[0], grid[1] // merge, grid[2] // merge
    time = (np.arange(t).astype(np.float32) * np.float32(interval) * np.float32(pace)).astype(np.int64)
    axes = np.meshgrid(time, np.arange(h), np.arange(w), indexing="ij")
    return np.stack(axes).reshape(3, -1).astype(np.int64)


def _text(count: int, start: int, after: bool = False, before: bool = False) -> np.ndarray:
    """After a video with its sound the second id repeats a position, before one the last."""
    steps = np.arange(start, start + count, dtype=np.int64)
    if after:
        steps[1:] -= 1
    if before:
        steps[-1:] -= 1
    return np.broadcast_to(steps, (3, count))
