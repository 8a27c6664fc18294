"""Which requests run, and how many positions each computes in the next step."""

from __future__ import annotations

import bisect
from collections.abc import Iterator
from dataclasses import dataclass

from qwen_agent_kit.engine.cache import Cache, Lease
from qwen_agent_kit.engine.costs import Costs
from qwen_agent_kit.engine.kv import QUANTUM
from qwen_agent_kit.engine.request import Request
from qwen_agent_kit.engine.runner import Part
from qwen_agent_kit.errors import EngineError

__all__ = ["Scheduler", "Work"]

AHEAD = 64
"""Positions of a step that nobody waits for: whoever comes meanwhile waits for one such step."""

LEAST_PROMPT = 16
"""However many decode, so many positions of a step are left to prompts."""


@dataclass(frozen=True, slots=True)
class Work:
    """What a request computes in a step."""

    request: Request
    part: Part


class Scheduler:
    """Higher priorities first, then first come, first served.

    A step is one budget of positions: what decodes goes first, prompts share the rest in turn. A request is admitted
    when its prompt fits, not all that it may say; where running ones grow out of the room, the one that is least (by
    priority, then latest come) gives its room back, waits, and later goes on where it was.

    Used by the engine's thread alone.

    Args:
        cache: Where sequences get their room.
        chunk: The budget of a step, in positions.
        most: The most requests that run at once.
        costs: What steps cost, where drafts are wanted; None for no drafts.
    """

    def __init__(self, cache: Cache, *, chunk: int, most: int, costs: Costs | None = None) -> None:
        self._cache, self._chunk, self._most, self._costs = cache, chunk, most, costs
        self._waiting: list[Request] = []
        self._running: list[Request] = []

    @property
    def busy(self) -> bool:
        """Whether there is anything to do."""
        return bool(self._waiting or self._running)

    @property
    def queued(self) -> int:
        """How many wait."""
        return len(self._waiting)

    @property
    def requests(self) -> tuple[Request, ...]:
        """All that are waiting or running."""
        return (*self._running, *self._waiting)

    def add(self, request: Request) -> None:
        """Put a request into the queue, behind those of its rank."""
        bisect.insort(self._waiting, request, key=lambda r: r.rank)

    def drop(self) -> None:
        """End what was cancelled or is late, waiting or running, and what is computed ahead once somebody asks."""
        asked = not all(request.ahead for request in self.requests)
        for request in [r for r in self._waiting if r.cancelled or r.late or (r.ahead and asked)]:
            self._waiting.remove(request)
            if request.cancelled or request.preemptions or request.ahead:
                request.finish("cancelled")
            else:
                request.fail(EngineError("the deadline passed while the request was queued", code="queue_timeout"))
        for request in [r for r in self._running if r.cancelled or r.late or (r.ahead and asked)]:
            request.finish("cancelled")
            self.retire(request)

    def admit(self) -> Iterator[tuple[Request, Lease]]:
        """Admit as many of the waiting as there is room for, in order."""
        while self._waiting:
            request = self._waiting[0]
            lease = None
            if len(self._running) < self._most:
                try:
                    lease = self._lease(request)
                except Exception as error:  # noqa: BLE001  # no memory for this one: it is told, the others go on
                    self._waiting.remove(request)
                    request.fail(error)
                    continue
            if lease is None:
                if not self._overtakes(request):
                    return
                continue
            self._waiting.remove(request)
            self._running.append(request)
            yield request, lease

    def _lease(self, request: Request) -> Lease | None:
        n = len(request.content.ids)
        soon = n + QUANTUM * (len(self._running) + 2)
        if request.preemptions and self._running and self._cache.available < soon:
            return None  # the next steps would take its room again
        return self._cache.acquire(request.content, n + 1)

    def _overtakes(self, request: Request) -> bool:
        """Whether a running request of lower priority gave way."""
        least = max(self._running, key=lambda r: r.rank, default=None)
        if least is None or least.priority >= request.priority:
            return False
        self._preempt(least)
        return True

    def plan(self) -> list[Work]:
        """The next step: every request that decodes, then chunks of prompts, in turn."""
        works: list[Work] = []
        rows = 0
        for request in sorted((r for r in self._running if not r.prefilling), key=lambda r: r.rank):
            if part := self._part(request, self._chunk):
                rows += part.rows
                works.append(Work(request, part))
        works = self._with_drafts(works, rows)
        left = max(self._chunk - rows, min(self._chunk, LEAST_PROMPT))
        for request in sorted((r for r in self._running if r.prefilling), key=lambda r: -r.priority):
            if left <= 0:
                break
            if part := self._part(request, min(left, AHEAD) if request.ahead else left):
                left -= part.rows
                works.append(Work(request, part))
                self._running.remove(request)
                self._running.append(request)
        return [work for work in works if work.request.live is not None]

    def _part(self, request: Request, most: int) -> Part | None:
        """Its next positions, with room made for them; None where it had to give way itself, or before."""
        live = request.live
        if live is None:
            return None
        count = min(live.pending, most)
        if self._costs is not None and not request.prefilling:
            count = self._costs.split(count)
        count = live.kv.snapshots.split(live.length, count)
        while not self._cache.grow(live, live.length + count):
            least = max(self._running, key=lambda r: r.rank)
            if least is request and len(self._running) == 1:
                request.fail(EngineError("there is no room for keys and values", code="kv_exhausted"))
                self.retire(request)
                return None
            self._preempt(least)
            if least is request:
                return None
        return Part(live, count)

    def _with_drafts(self, works: list[Work], rows: int) -> list[Work]:
        """The same with drafts beside, where they pay and there is room without making any."""
        if self._costs is None:
            return works
        drafted = []
        for work in works:
            live = work.request.live
            if live is None:
                continue
            room = min(live.capacity - live.count, self._chunk)
            draft = work.request.draft(self._costs, rows, room) if work.part.wanted else ()
            rows += len(draft)
            drafted.append(Work(work.request, Part(live, work.part.count, draft)) if draft else work)
        return drafted

    def _preempt(self, request: Request) -> None:
        self._running.remove(request)
        live = request.live
        assert live is not None, "running requests have a sequence"
        request.preempt()
        self._cache.release(live)
        self.add(request)

    def retire(self, request: Request) -> None:
        """A running request is done: give its room back; what it computed stays live unless it failed."""
        self._running.remove(request)
        live, request.live = request.live, None
        assert live is not None, "running requests have a sequence"
        self._cache.release(live, keep=request.finish_reason != "error")
