"""Items on their way: read and loaded ahead by a few threads, run by many, handed over one by one.

An item is held from the moment it is read until it is written; there are never more than ``workers + ahead`` of them,
and never more than ``workers`` that have begun to run (as long as the order does not matter).
"""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from qwen_agent_kit.pipeline.attempt import Outcome, failure

if TYPE_CHECKING:
    from qwen_agent_kit.messages import Part
    from qwen_agent_kit.pipeline.items import Item

__all__ = ["Flow"]

LOADERS = 2
PATIENCE = 10.0
"""Seconds that the end waits for items in flight; each is stopped at its next event."""


class Flow:
    """A context manager; leaving it stops what is in flight.

    Args:
        items: Pulled one by one, by whichever thread has room for it.
        load: The prompt of an item; what it raises is the item's error.
        run: The outcome of an item, None where it was stopped; what it raises ends the flow.
        workers: Items that run at once.
        ahead: Items that may be loaded, or wait to be written, besides.
        ordered: Whether outcomes come in the order of the items.
        stop: Set when nothing more shall begin.
    """

    def __init__(
        self,
        items: Iterator[Item],
        load: Callable[[Item], list[Part]],
        run: Callable[[Item, list[Part]], Outcome | None],
        *,
        workers: int,
        ahead: int,
        ordered: bool,
        stop: threading.Event,
    ) -> None:
        self._items, self._load_parts, self._run = items, load, run
        self._ordered, self._stop = ordered, stop
        self._slots = threading.Semaphore(workers + ahead)
        # What ran and is not written counts as running: a kill costs no more than that. In order, one that is slow
        # would then hold up all others, so there only the slots bound it.
        self._running = threading.Semaphore(workers + ahead if ordered else workers)
        self._lock = threading.Lock()
        self._ready: queue.SimpleQueue[tuple[Item, list[Part]] | None] = queue.SimpleQueue()
        self._finished: queue.SimpleQueue[Outcome | Exception | None] = queue.SimpleQueue()
        self._order: deque[int] = deque()
        self._waiting: dict[int, Outcome] = {}
        self._loading, self._working = LOADERS, workers
        self._held = 0
        self.peak = 0
        self._threads = [
            *(threading.Thread(target=self._load, name=f"qak-load-{i}", daemon=True) for i in range(LOADERS)),
            *(threading.Thread(target=self._work, name=f"qak-item-{i}", daemon=True) for i in range(workers)),
        ]

    def __enter__(self) -> Flow:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def outcomes(self) -> Iterator[Outcome]:
        """Until the items are through; whoever takes one calls ``written`` once it is safe.

        Raises:
            Exception: What reading the source or ``run`` raised; first, what was finished is handed over.
        """
        broken: Exception | None = None
        while self._working:
            found = self._finished.get()
            if found is None:
                self._working -= 1
            elif isinstance(found, Exception):
                broken = broken or found
                self.halt()
            else:
                yield from self._in_order(found)
        if broken is not None:
            raise broken

    def written(self, outcome: Outcome) -> None:
        """One item less is held."""
        with self._lock:
            self._held -= 1
        if outcome.record["attempts"]:  # else it never ran
            self._running.release()
        self._slots.release()

    def halt(self) -> None:
        """Begin nothing more, and end what runs at its next event."""
        self._stop.set()
        for _ in self._threads:
            self._slots.release()
            self._running.release()
            self._ready.put(None)

    def close(self) -> None:
        """Stop, and wait a while for what is in flight."""
        self.halt()
        end = time.monotonic() + PATIENCE
        for thread in self._threads:
            thread.join(max(0.0, end - time.monotonic()))

    def _in_order(self, outcome: Outcome) -> Iterator[Outcome]:
        if not self._ordered:
            yield outcome
            return
        self._waiting[outcome.item.index] = outcome
        while self._order and self._order[0] in self._waiting:
            yield self._waiting.pop(self._order.popleft())

    # --- the threads -----------------------------------------------------------------------------------------------

    def _load(self) -> None:
        while self._load_one():
            pass
        with self._lock:
            self._loading -= 1
            last = not self._loading
        if last:
            for _ in self._threads:
                self._ready.put(None)

    def _load_one(self) -> bool:
        """Load one item; False where there is none."""
        self._slots.acquire()
        try:
            item = self._pull()
        except Exception as error:  # noqa: BLE001  # the source's own; it is raised where the outcomes are taken
            self._finished.put(error)
            return False
        if item is None:
            return False
        try:
            self._ready.put((item, self._load_parts(item)))
        except Exception as error:  # noqa: BLE001  # one item's failure is its own result and must lose no other
            self._finished.put(failure(item, error))
        return True

    def _pull(self) -> Item | None:
        with self._lock:
            item = None if self._stop.is_set() else next(self._items, None)
            if item is not None:
                self._held += 1
                self.peak = max(self.peak, self._held)
                if self._ordered:
                    self._order.append(item.index)
            return item

    def _work(self) -> None:
        while self._work_one():
            pass
        self._finished.put(None)

    def _work_one(self) -> bool:
        """Run one item; False where there is none. Its own frame, so that a thread that waits holds no item."""
        job = self._ready.get()
        if job is None:
            return False
        self._running.acquire()
        if self._stop.is_set():
            return False
        try:
            outcome = self._run(*job)
        except Exception as error:  # noqa: BLE001  # it is raised where the outcomes are taken
            self._finished.put(error)
            return False
        if outcome is not None:
            self._finished.put(outcome)
        return True
