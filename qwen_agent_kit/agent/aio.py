"""The async twin of every sync generator here: one worker thread, one queue."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import threading
from collections.abc import AsyncGenerator, Callable, Generator
from typing import Any, TypeVar

from qwen_agent_kit.agent.cancel import Cancel

__all__ = ["drive"]

BUFFER = 256
"""Events that may wait for a slow consumer before the worker waits too."""
T = TypeVar("T")


async def drive(
    start: Callable[[Cancel, asyncio.AbstractEventLoop], Generator[T, None, Any]],
) -> AsyncGenerator[T, None]:
    """The events of a sync generator, which runs in a thread of its own.

    Closing this iterator, or cancelling the task that waits for it, sets the generator's ``Cancel``, closes the
    generator at its next event and returns when the thread has ended.

    Args:
        start: Makes the generator; it gets the flag to watch and the loop that coroutine tools run on.
    """
    worker = _Worker(start, asyncio.get_running_loop())
    worker.thread.start()
    try:
        while True:
            event, error, ended = await worker.queue.get()
            if error is not None:
                raise error
            if ended:
                return
            worker.room.release()
            yield event
    finally:
        worker.leave()
        await worker.ended()


class _Worker:
    """Runs the generator and hands its events over."""

    def __init__(self, start: Callable[..., Generator[Any, None, Any]], loop: asyncio.AbstractEventLoop) -> None:
        self.cancel = Cancel()
        self.room = threading.Semaphore(BUFFER)
        self.queue: asyncio.Queue[tuple[Any, BaseException | None, bool]] = asyncio.Queue()
        self.thread = threading.Thread(
            target=contextvars.copy_context().run, args=(self._work,), name="qak-agent", daemon=True
        )
        self._start = start
        self._loop = loop
        self._done: asyncio.Future[None] = loop.create_future()
        self._alone = False

    def leave(self) -> None:
        """Nobody reads any more."""
        self._alone = True
        self.cancel.set()
        self.room.release()

    async def ended(self) -> None:
        """Wait for the thread, whatever happens to the task meanwhile."""
        cancelled: asyncio.CancelledError | None = None
        while not self._done.done():
            try:
                await asyncio.shield(self._done)
            except asyncio.CancelledError as error:
                cancelled = error
        self.thread.join()  # it has nothing left to do
        if cancelled is not None:
            raise cancelled

    def _work(self) -> None:
        try:
            with contextlib.closing(self._start(self.cancel, self._loop)) as generator:
                for event in generator:
                    self.room.acquire()
                    if self._alone or not self._post((event, None, False)):
                        break
            self._post((None, None, True))
        except BaseException as error:  # noqa: BLE001  # carried over to the task that waits
            self._post((None, error, True))
        finally:
            self._call(self._done.set_result, None)

    def _post(self, item: tuple[Any, BaseException | None, bool]) -> bool:
        return self._call(self.queue.put_nowait, item)

    def _call(self, function: Callable[..., Any], *arguments: Any) -> bool:
        try:
            self._loop.call_soon_threadsafe(function, *arguments)
        except RuntimeError:  # the loop was closed: nobody reads any more
            self.leave()
            return False
        return True
