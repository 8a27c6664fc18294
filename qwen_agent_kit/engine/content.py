"""What a prompt is, as far as its keys and values depend on it, and how far two of them are the same.

A position is the same where all ids up to it are, all media that begin before it (start, length and digest), all m-rope
positions, and the salt. A medium is reused whole or not at all.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from qwen_agent_kit.backends import MediaSpan

__all__ = ["Content", "Ids", "before_media", "common_prefix", "media_cut", "positions_of", "same_positions"]

Ids = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Content:
    """What a prompt is, as far as its keys and values depend on it.

    Args:
        ids: int32 [n].
        media: In order of their start, without overlap.
        positions: int64 [3, n] for m-rope, else None for 0 to n - 1.
        salt: Contents with different salts share nothing; it says which adapter, too.
        adapter: What the model adds to its matrices for it; None for nothing.
    """

    ids: Ids
    media: tuple[MediaSpan, ...] = ()
    positions: npt.NDArray[np.int64] | None = None
    salt: str = ""
    adapter: Any = None


def common_prefix(a: Ids, b: Ids) -> int:
    """How many ids the two begin with in common; looks no further than four times that."""
    end = min(len(a), len(b))
    start, step = 0, 64
    while start < end:
        stop = min(start + step, end)
        differ = a[start:stop] != b[start:stop]
        first = int(differ.argmax())
        if differ[first]:
            return start + first
        start, step = stop, step * 4
    return end


def media_cut(a: tuple[MediaSpan, ...], b: tuple[MediaSpan, ...], common: int) -> int:
    """``common``, or where the first medium begins that is not wholly and equally in both before it."""
    for index in range(max(len(a), len(b))):
        mine, theirs = (spans[index] if index < len(spans) else None for spans in (a, b))
        start = min(span.start for span in (mine, theirs) if span is not None)
        if start >= common:
            return common
        same = (
            mine and theirs and (mine.start, mine.length, mine.digest) == (theirs.start, theirs.length, theirs.digest)
        )
        if not same or mine is None or start + mine.length > common:
            return start
    return common


def before_media(media: tuple[MediaSpan, ...], position: int) -> int:
    """``position``, or the start of the medium that it would cut."""
    return next((m.start for m in media if m.start < position < m.start + m.length), position)


def positions_of(content: Content, start: int, end: int) -> npt.NDArray[np.int64]:
    """The positions of a run of it: [n], or [3, n] where it came with m-rope positions."""
    if content.positions is None:
        return np.arange(start, end, dtype=np.int64)
    return content.positions[:, start:end]


def same_positions(a: npt.NDArray[np.int64], b: npt.NDArray[np.int64]) -> int:
    """How many columns agree; [n] counts as three equal rows."""
    differ = (a != b).reshape(-1, b.shape[-1]).any(axis=0)
    return int(differ.argmax()) if differ.any() else len(differ)
