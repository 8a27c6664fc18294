"""Which keys and values are kept, and which of them serve a new prompt.

A finished sequence stays live, least recently used first to go, under a budget in bytes. A prompt that begins with all
of a live, idle sequence extends it in place; one that shares only a beginning with it, or with one that still runs,
copies that beginning. So a sequence is only ever appended to by one request, and what another reads of it never
changes. The sequence that shares most is found by the digests of its blocks (``engine.blocks``), then id by id.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice

from qwen_agent_kit.engine.blocks import BLOCK, Index, chain_of
from qwen_agent_kit.engine.content import Content, before_media, common_prefix
from qwen_agent_kit.engine.kv import QUANTUM, KVLayout, round_up
from qwen_agent_kit.engine.live import Live
from qwen_agent_kit.engine.spill import Spill

__all__ = ["Cache", "Content", "Lease", "Live", "common_prefix"]

MOST_IDLE = 1024
"""More idle sequences than this are not kept."""

LOOK = 16
"""Of the sequences that share a prompt's most blocks, so many are compared id by id, the latest first."""


@dataclass(frozen=True, slots=True)
class Lease:
    """A place for a prompt: the sequence that will hold it, how much of it is already there, why not more.

    Of what is there the last ``ahead`` positions were computed before anybody asked; they are told of once.
    """

    live: Live
    cached: int
    prefix_break: str | None
    ahead: int = 0


@dataclass(frozen=True, slots=True)
class _Match:
    live: Live
    usable: int
    prefix_break: str | None
    common: int

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
        spill: Where prefixes are kept on disk; nowhere where None.
    """

    def __init__(self, layout: KVLayout, budget: int, context: int, spill: Spill | None = None) -> None:
        self._layout = layout
        self._context = context
        self._room = budget // layout.position_bytes
        self._lives: dict[Live, None] = {}  # in the order of their last use
        self._index = Index()
        self._spill = spill

    @property
    def most(self) -> int:
        """The longest sequence that can ever be admitted, in positions."""
        return min(self._context, max(0, self._room - self._layout.running_states) // QUANTUM * QUANTUM)

    @property
    def used_bytes(self) -> int:
        """What running and idle sequences take."""
        return sum(live.taken for live in self._lives) * self._layout.position_bytes

    @property
    def lives(self) -> tuple[Live, ...]:
        """The sequences that are kept."""
        return tuple(self._lives)

    @property
    def available(self) -> int:
        """Positions that nobody takes, or that idle sequences would give up."""
        return self._room - sum(live.taken for live in self._lives if live.running)

    def acquire(self, content: Content, total: int) -> Lease | None:
        """A place for ``content`` with room for ``total`` positions, or None while too much else runs.

        At least the last position of a prompt is always left to compute, because its logits are needed.
        """
        chain = self._chain(content)
        match, parted = self._best(content, chain)
        live = self._place(match, round_up(total))
        if live is None:
            return None
        kept = 0 if match is None else match.usable
        ahead = 0
        if match is not None and match.live.ahead is not None:
            ahead, match.live.ahead = max(0, kept - match.live.ahead), None
        try:
            if match is not None and live is not match.live:
                live.kv.ensure(round_up(len(content.ids)), 0, live.reserved)
                live.kv.copy_from(match.live.kv, kept)
                self._touch(match.live)
            self._index.cut(live, kept)
            live.spilled = min(live.spilled, kept // BLOCK * BLOCK)
            restored = self._restored(live, content, chain, kept)
            if self._layout.snapshots_only:
                live.kv.snapshots.begin(restored, (parted, len(content.ids) - 1))
            live.begin(content, restored)
        except BaseException:
            self._remove(live)
            raise
        self._touch(live)
        why = match.prefix_break if match is not None and restored == kept else None
        return Lease(live, restored, why, ahead)

    def _restored(self, live: Live, content: Content, chain: list[bytes], kept: int) -> int:
        """How many positions are there after looking on disk as well, for at least a block more."""
        if self._spill is None or content.salt or len(content.ids) - 1 - kept < BLOCK:
            return kept
        return self._spill.restore(content, chain, live.kv, kept, live.reserved)

    def save(self, *, tail: bool = False) -> bool:
        """Write one more block of an idle sequence to disk, latest used first; False where all are written."""
        if self._spill is None:
            return False
        spill = self._spill
        return any(spill.save(live, tail=tail) for live in reversed(self._lives) if not live.running)

    def grow(self, live: Live, end: int) -> bool:
        """Room for the positions of a running sequence up to ``end``; False while too much else runs."""
        capacity = live.capacity
        if end <= capacity:
            return True
        least = round_up(end)
        generous = min(max(least, round_up(capacity * 3 // 2)), round_up(self._context))
        reserve = generous if generous - capacity <= self._free() else least
        if not self._evict(reserve - capacity, live):
            return False
        live.reserved = reserve
        return True

    def release(self, live: Live, *, keep: bool = True) -> None:
        """The request is done; without ``keep`` its sequence is forgotten at once."""
        live.running = False
        if not keep or not live.length:
            self._remove(live)
            return
        self._index.note(live)
        if len(self._lives) > MOST_IDLE:
            idle = self._idle_oldest_first()
            for old in idle[: max(0, len(idle) - MOST_IDLE)]:
                self._remove(old)

    def clear(self) -> None:
        """Forget every idle sequence."""
        for live in self._idle_oldest_first():
            self._remove(live)

    def _remove(self, live: Live) -> None:
        self._index.cut(live, 0)
        del self._lives[live]

    def _best(self, content: Content, chain: list[bytes]) -> tuple[_Match | None, int]:
        """What can be reused, and how much some sequence has in common with the prompt, reusable or not."""
        for live in self._lives:
            if live.running:
                self._index.note(live)
        depth, holders = self._index.deepest(chain)
        if self._layout.snapshots_only:  # the longest common beginning need not be the one whose state was kept
            depth = 0
        best: _Match | None = None
        parted = 0
        for live in islice(holders if depth else reversed(self._lives), LOOK):
            match = _match(live, content, depth * BLOCK, self._layout.snapshots_only)
            parted = max(parted, match.common)
            if match.usable and (best is None or (match.usable, match.whole) > (best.usable, best.whole)):
                best = match
        return best, parted

    def _chain(self, content: Content) -> list[bytes]:
        """The prompt's digests; what it shares with the sequence used last, as in a loop, is not hashed again."""
        last = next(reversed(self._lives), None)
        known = 0 if last is None else last.shared(content)[0]
        return chain_of(content, () if last is None else last.chain[: known // BLOCK])

    def _place(self, match: _Match | None, total: int) -> Live | None:
        if match is not None and match.whole:
            return self._extend(match.live, total)
        keep = match.live if match is not None else None
        if self._evict(total + self._layout.running_states, keep):
            live = Live(self._layout)
            self._lives[live] = None
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
        states = self._layout.running_states - (live.taken - live.capacity)
        if not self._evict(reserve - capacity + states, live):
            return None
        live.reserved, live.running = reserve, True
        return live

    def _free(self) -> int:
        """Positions that nobody takes."""
        return self._room - sum(live.taken for live in self._lives)

    def _evict(self, positions: int, keep: Live | None) -> bool:
        """Make ``positions`` free by forgetting idle sequences, oldest first; nothing is forgotten where that fails."""
        free = self._free()
        if free >= positions:
            return True
        going: list[Live] = []
        for live in self._idle_oldest_first():
            if free >= positions:
                break
            if live is not keep:
                going.append(live)
                free += live.taken
        if free < positions:
            return False
        for live in going:
            self._remove(live)
        return True

    def _idle_oldest_first(self) -> list[Live]:
        return [live for live in self._lives if not live.running]

    def _touch(self, live: Live) -> None:
        """Make it the one used last."""
        self._lives.pop(live, None)
        self._lives[live] = None


def _match(live: Live, content: Content, known: int, snapshots_only: bool) -> _Match:
    common, what = live.shared(content, known)
    usable = min(common, len(content.ids) - 1)
    if usable < common and content.media:
        usable = before_media(content.media, usable)
    whole = common == live.length or common == len(content.ids)
    if snapshots_only and (kept := live.kv.snapshots.before(usable)) < usable:
        usable, whole, what = kept, False, f"no recurrent state was kept after {kept}; {what}"
    return _Match(live, usable, None if whole or not usable else f"{what} at {common} of {live.length}", common)
