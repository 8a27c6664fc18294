"""The engine's thread: takes what was submitted, schedules, runs, hands over."""

from __future__ import annotations

import os
import queue
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial

import torch

from qwen_agent_kit.engine.cache import Cache
from qwen_agent_kit.engine.costs import Costs
from qwen_agent_kit.engine.request import Request
from qwen_agent_kit.engine.runner import Part, Runner
from qwen_agent_kit.engine.scheduler import Scheduler, Work
from qwen_agent_kit.errors import EngineError

__all__ = ["Worker"]

MOST_RUNNING = 64

SAVE_SECONDS = 2.0
"""How long the end may wait for prefixes that are still to be written."""


class Worker:
    """The thread and what it owns. Knows the engine's parts, not the engine, so that a dropped engine can end it.

    Args:
        runner: Runs the model.
        cache: Keeps keys and values.
        chunk: The positions of one step.
        queued: The most requests that may wait.
        drafts: Whether ids are drafted.
    """

    def __init__(self, runner: Runner, cache: Cache, *, chunk: int, queued: int, drafts: bool) -> None:
        self.runner, self.cache = runner, cache
        self._costs = Costs()
        self._scheduler = Scheduler(cache, chunk=chunk, most=MOST_RUNNING, costs=self._costs if drafts else None)
        self._queued = queued
        self._inbox: queue.SimpleQueue[Request | None] = queue.SimpleQueue()
        self._lock = threading.RLock()  # a dropped engine may be collected, and stop us, while we hold it
        self._thread: threading.Thread | None = None
        self._ended: EngineError | None = None
        self._process = os.getpid()

    # --- any thread ------------------------------------------------------------------------------------------------

    def require_own(self) -> None:
        """Refuse a forked child: the thread is its parent's, and locks may be held by threads that it does not have.

        Raises:
            EngineError: In any process but the one that made this.
        """
        if os.getpid() != self._process:
            raise EngineError(
                f"this engine belongs to process {self._process}, this is its fork {os.getpid()}",
                code="forked",
                hint="open the model in the child, or start it with the `spawn` method",
            )

    def submit(self, request: Request) -> None:
        """Queue it; raises ``EngineError`` where that is refused."""
        with self._lock:
            if self._ended is not None:
                raise EngineError(self._ended.message, code=self._ended.code) from self._ended
            if self._inbox.qsize() + self._scheduler.queued >= self._queued:
                raise EngineError(f"{self._queued} requests are waiting already", code="queue_full", hint="try later")
            self._inbox.put(request)
            if self._thread is None:
                self._thread = threading.Thread(target=self._main, name="qak-engine", daemon=True)
                self._thread.start()

    def alive(self) -> bool:
        """Whether the thread that serves requests is running.

        Raises:
            EngineError: In a forked child.
        """
        self.require_own()
        return self._thread is not None and self._thread.is_alive()

    def stop(self) -> None:
        """End the thread; what is in flight ends with an error. In a forked child there is nothing to end."""
        if os.getpid() != self._process:
            return
        with self._lock:
            self._ended = self._ended or EngineError("the engine was closed", code="engine_closed")
        self._inbox.put(None)
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()

    # --- the engine's thread -----------------------------------------------------------------------------------------

    def _main(self) -> None:
        try:
            with torch.inference_mode():
                while self._receive():
                    self._step()
        except BaseException as error:  # noqa: BLE001  # whatever ends this thread must reach every consumer
            self._end(error)
        else:
            self._end(None)

    def _end(self, error: BaseException | None) -> None:
        with self._lock:
            if error is not None:
                self._ended = EngineError(f"the engine's thread died of {type(error).__name__}", code="engine_dead")
                self._ended.__cause__ = error
            ended = self._ended or EngineError("the engine was closed", code="engine_closed")
        left = list(self._scheduler.requests)
        while not self._inbox.empty():
            if (request := self._inbox.get()) is not None:
                left.append(request)
        for request in left:
            request.fail(EngineError(ended.message, code=ended.code))
        until = time.monotonic() + SAVE_SECONDS
        while error is None and time.monotonic() < until and self.cache.save(tail=True):
            pass
        self.cache.clear()

    def _receive(self) -> bool:
        """Take what was submitted; waits only where there is nothing else to do. False for the end."""
        while not (self._scheduler.busy and self._inbox.empty()):
            if self._inbox.empty() and self.cache.save():
                continue  # nobody waits: keep prefixes, a block at a time
            request = self._inbox.get()
            if request is None:
                return False
            self._scheduler.add(request)
        return True

    def _step(self) -> None:
        self._scheduler.drop()
        for request, lease in self._scheduler.admit():
            self._guarded(request, partial(request.start, lease))
        works = self._scheduler.plan()
        if not works:
            return
        for work in works:
            work.request.deliver()
        began = time.perf_counter()
        decoding = not any(work.request.prefilling for work in works)
        found = self._forward([work.part for work in works])
        seconds = time.perf_counter() - began
        if decoding:
            self._costs.note(sum(work.part.rows for work in works), seconds)
        for work, logits in zip(works, found, strict=True):
            self._guarded(work.request, partial(_advance, work, logits, seconds))

    def _guarded(self, request: Request, action: Callable[[], None]) -> None:
        """Do something that belongs to one request: where it fails that request ends, the others go on."""
        try:
            action()
        except Exception as error:  # noqa: BLE001  # whatever it is
            request.fail(error)
        if request.done:
            self._scheduler.retire(request)

    def _forward(self, parts: Sequence[Part]) -> list[torch.Tensor | Exception | None]:
        """One forward for all; where it fails each alone, so that it only fails for whom it must.

        That is safe to repeat: keys and values are written at positions that do not count yet.
        """
        try:
            return list(self.runner.step(parts))
        except Exception as error:  # noqa: BLE001  # whatever it is
            if _no_memory(error):
                self.cache.clear()
            elif len(parts) == 1:
                return [error]
        return [self._alone(part) for part in parts]

    def _alone(self, part: Part) -> torch.Tensor | Exception | None:
        try:
            return self.runner.step([part])[0]
        except Exception as error:  # noqa: BLE001  # it belongs to this request alone
            return error


def _advance(work: Work, logits: torch.Tensor | Exception | None, seconds: float) -> None:
    if isinstance(logits, Exception):
        raise logits
    work.request.computed(work.part.count, seconds)
    if logits is not None:
        work.request.advance(logits, work.part.draft)


def _no_memory(error: Exception) -> bool:
    """Tell it by type or, as torch's CPU allocator raises a plain ``RuntimeError``, by its text."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)
