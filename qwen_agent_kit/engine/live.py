"""One sequence: its ids, and how far their keys and values are there."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from qwen_agent_kit.backends import MediaSpan
from qwen_agent_kit.engine.content import (
    Content,
    Ids,
    before_media,
    common_prefix,
    media_cut,
    positions_of,
    same_positions,
)
from qwen_agent_kit.engine.kv import KVLayout, SequenceKV, round_up

__all__ = ["Live"]


class Live:
    """One sequence: its ids, and the keys and values of the first ``length`` of them."""

    def __init__(self, layout: KVLayout) -> None:
        self.kv = SequenceKV(layout)
        self._layout = layout
        self.length = 0
        self.count = 0
        self.reserved = 0
        self.running = False
        self.media: tuple[MediaSpan, ...] = ()
        self.salt = ""
        self.adapter: Any = None
        self.chain: list[bytes] = []
        self.spilled = 0
        self.ahead: int | None = None  # from which position on it was computed before anybody asked
        self._ids: Ids = np.empty(0, dtype=np.int32)
        self._positions: npt.NDArray[np.int64] | None = None
        self._offset = 0

    @property
    def pending(self) -> int:
        """How many ids have no keys and values yet."""
        return self.count - self.length

    @property
    def capacity(self) -> int:
        """How many positions there is room for, or will be."""
        return max(self.kv.capacity, self.reserved if self.running else 0)

    @property
    def taken(self) -> int:
        """The same with its recurrent states."""
        layout = self._layout
        states = layout.running_states if self.running else len(self.kv.snapshots) * layout.state_positions
        return self.capacity + states

    def ids(self, start: int, end: int) -> Ids:
        """The ids from ``start`` to ``end``, a view."""
        return self._ids[start:end]

    def positions(self, start: int, end: int) -> npt.NDArray[np.int64]:
        """The positions of a run: [n], or [3, n] where the prompt came with m-rope positions.

        Ids after the prompt follow on the largest position so far, alike on the three axes (Qwen2-VL, arXiv
        2409.12191, section 2.1).
        """
        if self._positions is None:
            return np.arange(start, end, dtype=np.int64)
        given = self._positions.shape[1]
        after = np.arange(max(start, given), max(end, given), dtype=np.int64) + self._offset
        return np.concatenate([self._positions[:, start:end], np.broadcast_to(after, (3, len(after)))], axis=1)

    def begin(self, content: Content, kept: int) -> None:
        """Become ``content``, of which the first ``kept`` positions are already here."""
        n = len(content.ids)
        if n > len(self._ids):
            self._grow(n, 0)
        self._ids[:n] = content.ids
        self.length, self.count, self.media, self._positions = kept, n, content.media, content.positions
        self.salt, self.adapter = content.salt, content.adapter
        if content.positions is not None:
            self._offset = int(content.positions.max()) + 1 - n

    def append(self, token: int) -> None:
        """Add an id whose keys and values are still to be computed."""
        if self.count == len(self._ids):
            self._grow(self.count + 1, self.count)
        self._ids[self.count] = token
        self.count += 1

    def _grow(self, least: int, used: int) -> None:
        grown = np.empty(max(round_up(least), len(self._ids) * 3 // 2), dtype=np.int32)
        grown[:used] = self._ids[:used]
        self._ids = grown

    def content(self) -> Content:
        """All of its ids as a prompt, a copy."""
        positions = None if self._positions is None else self.positions(0, self.count)
        return Content(self._ids[: self.count].copy(), self.media, positions, self.salt, self.adapter)

    def shared(self, content: Content, known: int = 0) -> tuple[int, str]:
        """How many positions of ``content`` are here, and what differs at the first that is not.

        Args:
            content: A prompt.
            known: How many are already known to be the same.
        """
        if self.salt != content.salt:
            return 0, "salts differ"
        common = known + common_prefix(self._ids[known : self.length], content.ids[known:])
        what = "ids differ"
        cut = media_cut(self.media, content.media, common)
        if cut < common:
            common, what = cut, "media differ"
        if common > known and (self._positions is not None or content.positions is not None):
            same = known + same_positions(self.positions(known, common), positions_of(content, known, common))
            if same < common:
                common, what = before_media(content.media, same), "positions differ"
        return common, what
