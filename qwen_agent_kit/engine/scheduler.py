"""Which requests run, and how many positions each computes in the next step."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

from qwen_agent_kit.engine.cache import Cache, Lease
from qwen_agent_kit.engine.request import Request
from qwen_agent_kit.errors import EngineError

__all__ = ["Scheduler", "Work"]


@dataclass(frozen=True, slots=True)
class Work:
    """Compute the next ``count`` positions of a request."""

    request: Request
    count: int


class Scheduler:
    """First come, first admitted; decoding goes before prefill; prompts take turns, a chunk each.

    Used by the engine's thread alone.

    Args:
        cache: Where sequences get their room.
        chunk: The most positions of one forward.
        most: The most requests that run at once.
    """

    def __init__(self, cache: Cache, *, chunk: int, most: int) -> None:
        self._cache, self._chunk, self._most = cache, chunk, most
        self._waiting: deque[Request] = deque()
        self._running: deque[Request] = deque()

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
        """Put a new request at the end of the queue."""
        self._waiting.append(request)

    def admit(self) -> Iterator[tuple[Request, Lease]]:
        """Drop what was cancelled or is late, then admit as many of the waiting as there is room for, in order."""
        for request in [r for r in self._waiting if r.cancelled or r.late]:
            self._waiting.remove(request)
            if request.cancelled:
                request.finish("cancelled")
            else:
                request.fail(EngineError("the deadline passed while the request was queued", code="queue_timeout"))
        while self._waiting and len(self._running) < self._most:
            request = self._waiting[0]
            try:
                lease = self._cache.acquire(request.content, len(request.content.ids) + request.rules.max_tokens)
            except Exception as error:  # noqa: BLE001  # no memory for this one: it is told, the others go on
                self._waiting.popleft()
                request.fail(error)
                continue
            if lease is None:
                return
            self._waiting.popleft()
            self._running.append(request)
            yield request, lease

    def plan(self) -> Iterator[Work]:
        """The next step: one forward for each request that decodes, then one chunk of one prompt."""
        for request in [r for r in self._running if not r.prefilling]:
            yield self._work(request)
        prompt = next((r for r in self._running if r.prefilling), None)
        if prompt is not None:
            self._running.remove(prompt)
            self._running.append(prompt)
            yield self._work(prompt)

    def _work(self, request: Request) -> Work:
        assert request.live is not None, "running requests have a sequence"
        return Work(request, min(request.live.pending, self._chunk))

    def retire(self, request: Request) -> None:
        """A running request is done: give its room back; what it computed stays live unless it failed."""
        self._running.remove(request)
        assert request.live is not None, "running requests have a sequence"
        self._cache.release(request.live, keep=request.finish_reason != "error")
