"""Which keys and values are kept, and which of them serve a new prompt.

A finished sequence stays live, least recently used first to go, under a budget in bytes. A prompt that begins with all
of a live, idle sequence extends it in place; one that shares only a beginning with it, or with one that still runs,
copies that beginning. So a sequence is only ever appended to by one request, and what another reads of it never
changes.

A position is the same where all ids up to it are, all media that begin before it (start, length and digest) and all
m-rope positions. A medium is reused whole or not at all.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from qwen_agent_kit.backends import MediaSpan
from qwen_agent_kit.engine.kv import QUANTUM, KVLayout, SequenceKV, round_up

__all__ = ["Cache", "Content", "Lease", "Live", "common_prefix"]

MOST_IDLE = 128
"""More idle sequences than this are not kept, so that looking a prompt up stays cheap."""

Ids = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Content:
    """What a prompt is, as far as its keys and values depend on it.

    Args:
        ids: int32 [n].
        media: In order of their start, without overlap.
        positions: int64 [3, n] for m-rope, else None for 0 to n - 1.
    """

    ids: Ids
    media: tuple[MediaSpan, ...] = ()
    positions: npt.NDArray[np.int64] | None = None


class Live:
    """One sequence: its ids, and the keys and values of the first ``length`` of them."""

    def __init__(self, layout: KVLayout) -> None:
        self.kv = SequenceKV(layout)
        self.length = 0
        self.count = 0
        self.reserved = 0
        self.running = False
        self.used_at = 0
        self.media: tuple[MediaSpan, ...] = ()
        self._ids: Ids = np.empty(0, dtype=np.int32)
        self._positions: npt.NDArray[np.int64] | None = None
        self._offset = 0

    @property
    def pending(self) -> int:
        """How many ids have no keys and values yet."""
        return self.count - self.length

    @property
    def capacity(self) -> int:
        """How many positions it takes from the budget."""
        return max(self.kv.capacity, self.reserved if self.running else 0)

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

    def shared(self, content: Content) -> tuple[int, str]:
        """How many positions of ``content`` are here, and what differs at the first that is not."""
        common = common_prefix(self._ids[: self.length], content.ids)
        what = "ids differ"
        cut = _media_cut(self.media, content.media, common)
        if cut < common:
            common, what = cut, "media differ"
        if common and (self._positions is not None or content.positions is not None):
            same = _same_positions(self.positions(0, common), _positions(content, common))
            if same < common:
                common, what = _before_media(content.media, same), "positions differ"
        return common, what


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


def _media_cut(a: tuple[MediaSpan, ...], b: tuple[MediaSpan, ...], common: int) -> int:
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


def _before_media(media: tuple[MediaSpan, ...], position: int) -> int:
    """``position``, or the start of the medium that it would cut."""
    return next((m.start for m in media if m.start < position < m.start + m.length), position)


def _positions(content: Content, end: int) -> npt.NDArray[np.int64]:
    if content.positions is None:
        return np.arange(end, dtype=np.int64)
    return content.positions[:, :end]


def _same_positions(a: npt.NDArray[np.int64], b: npt.NDArray[np.int64]) -> int:
    """How many columns agree; [n] counts as three equal rows."""
    differ = (a != b).reshape(-1, b.shape[-1]).any(axis=0)
    return int(differ.argmax()) if differ.any() else len(differ)


@dataclass(frozen=True, slots=True)
class Lease:
    """A place for a prompt: the sequence that will hold it, how much of it is already there, why not more."""

    live: Live
    cached: int
    prefix_break: str | None


@dataclass(frozen=True, slots=True)
class _Match:
    live: Live
    usable: int
    prefix_break: str | None

    @property
    def whole(self) -> bool:
        """Whether the sequence can be extended as it is."""
        return not self.live.running and self.usable == self.live.length


class Cache:
    """All sequences of one engine. Used by the engine's thread alone.

    Args:
        layout: What a position takes.
        budget: Bytes that running and idle sequences may take together.
        context: The longest sequence, in positions.
    """

    def __init__(self, layout: KVLayout, budget: int, context: int) -> None:
        self._layout = layout
        self._context = context
        self._room = budget // layout.position_bytes
        self._lives: list[Live] = []
        self._clock = 0

    @property
    def most(self) -> int:
        """The longest sequence that can ever be admitted, in positions."""
        return min(self._context, self._room // QUANTUM * QUANTUM)

    @property
    def used_bytes(self) -> int:
        """What running and idle sequences take."""
        return sum(live.capacity for live in self._lives) * self._layout.position_bytes

    @property
    def lives(self) -> tuple[Live, ...]:
        """The sequences that are kept."""
        return tuple(self._lives)

    def acquire(self, content: Content, total: int) -> Lease | None:
        """A place for ``content`` that can grow to ``total`` positions, or None while too much else runs.

        At least the last position of a prompt is always left to compute, because its logits are needed.
        """
        match = self._best(content)
        live = self._place(match, round_up(total))
        if live is None:
            return None
        kept = 0 if match is None else match.usable
        try:
            if match is not None and live is not match.live:
                live.kv.ensure(round_up(len(content.ids)), 0, live.reserved)
                live.kv.copy_from(match.live.kv, kept)
                self._touch(match.live)
            live.begin(content, kept)
        except BaseException:
            self._lives.remove(live)
            raise
        self._touch(live)
        return Lease(live, kept, match.prefix_break if match else None)

    def release(self, live: Live, *, keep: bool = True) -> None:
        """The request is done; without ``keep`` its sequence is forgotten at once."""
        live.running = False
        if not keep or not live.length:
            self._lives.remove(live)
        idle = self._idle_oldest_first()
        for old in idle[: max(0, len(idle) - MOST_IDLE)]:
            self._lives.remove(old)

    def clear(self) -> None:
        """Forget every idle sequence."""
        self._lives = [live for live in self._lives if live.running]

    def _best(self, content: Content) -> _Match | None:
        best: _Match | None = None
        for live in reversed(self._lives):
            match = _match(live, content)
            if match.usable and (best is None or (match.usable, match.whole) > (best.usable, best.whole)):
                best = match
        return best

    def _place(self, match: _Match | None, total: int) -> Live | None:
        if match is not None and match.whole:
            return self._extend(match.live, total)
        keep = match.live if match is not None else None
        if self._evict(total, keep):
            live = Live(self._layout)
            self._lives.append(live)
            live.reserved, live.running = total, True
            return live
        # Without room for both, the idle sequence gives up what comes after the shared beginning.
        return self._extend(keep, total) if keep is not None and not keep.running else None

    def _extend(self, live: Live, total: int) -> Live | None:
        """Reserve ``total`` for an idle sequence.

        Where it has to grow and there is room, it grows by half, so that growth stays rare however little each request
        adds.
        """
        capacity = live.kv.capacity
        reserve = max(total, capacity)
        generous = min(round_up(capacity * 3 // 2), round_up(self._context))
        if total > capacity and total < generous and generous - capacity <= self._free():
            reserve = generous
        if not self._evict(reserve - capacity, live):
            return None
        live.reserved, live.running = reserve, True
        return live

    def _free(self) -> int:
        """Positions that nobody takes."""
        return self._room - sum(live.capacity for live in self._lives)

    def _evict(self, positions: int, keep: Live | None) -> bool:
        """Make ``positions`` free by forgetting idle sequences, oldest first; nothing is forgotten where that fails."""
        free = self._free()
        going: list[Live] = []
        for live in self._idle_oldest_first():
            if free >= positions:
                break
            if live is not keep:
                going.append(live)
                free += live.capacity
        if free < positions:
            return False
        for live in going:
            self._lives.remove(live)
        return True

    def _idle_oldest_first(self) -> list[Live]:
        return sorted((live for live in self._lives if not live.running), key=lambda live: live.used_at)

    def _touch(self, live: Live) -> None:
        self._clock += 1
        live.used_at = self._clock


def _match(live: Live, content: Content) -> _Match:
    common, what = live.shared(content)
    usable = min(common, len(content.ids) - 1)
    if usable < common and content.media:
        usable = _before_media(content.media, usable)
    whole = common == live.length or common == len(content.ids)
    return _Match(live, usable, None if whole or not usable else f"{what} at {common} of {live.length}")
