"""Threads that run the tool calls of one run."""

from __future__ import annotations

import contextvars
import queue
import threading
from collections.abc import Callable
from typing import Any

__all__ = ["Crew"]


class Crew:
    """Daemon threads, made when they are needed and reused from step to step.

    ``concurrent.futures`` joins its threads when the interpreter exits, so that one tool that hangs would hang the
    process; these are left behind.

    Args:
        size: The most threads; further jobs wait for one.
    """

    def __init__(self, size: int = 16) -> None:
        self._size = size
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._idle = 0
        self._threads = 0
        self._closed = False

    def submit(self, work: Callable[[], Any], done: Callable[[Any], None]) -> None:
        """Run ``done(work())`` in a thread, with the caller's context variables. ``work`` must not raise."""
        context = contextvars.copy_context()

        def job() -> None:
            value = context.run(work)
            with self._lock:
                self._idle += 1  # before `done`, so that the next step finds this thread free
            done(value)

        with self._lock:
            free = self._idle > 0
            self._idle -= free
            grow = not free and self._threads < self._size
            self._threads += grow
        self._jobs.put(job)
        if grow:
            threading.Thread(target=self._work, name="qak-agent-tool", daemon=True).start()

    def close(self) -> None:
        """Let idle threads end now and busy ones when their job does."""
        with self._lock:
            self._closed = True
            threads = self._threads
        for _ in range(threads):
            self._jobs.put(None)

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            job()
