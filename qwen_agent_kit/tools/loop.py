"""The one event loop of the kit's own, for coroutine tools of callers that have none.

A process has one, as it has one main thread: it holds no data, starts on first use, and works beside a loop that is
already running in the caller's thread (Jupyter), because it has a thread of its own.
"""

from __future__ import annotations

import atexit
import os
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncio

__all__ = ["private_loop"]


class _LoopThread:
    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._process = 0

    def loop(self) -> asyncio.AbstractEventLoop:
        """The running loop; a new one after a fork, which leaves threads behind, and after a loop that ended."""
        with self._lock:
            if self._loop is None or self._thread is None or not self._thread.is_alive():
                self._start()
            assert self._loop is not None, "_start makes the loop"
            return self._loop

    def _start(self) -> None:
        import asyncio

        self._loop = asyncio.new_event_loop()
        self._process = os.getpid()
        self._thread = threading.Thread(target=self._loop.run_forever, name="qak-tools-loop", daemon=True)
        running = threading.Event()
        self._loop.call_soon(running.set)
        self._thread.start()
        running.wait()
        atexit.register(self._stop, self._loop, self._thread, self._process)

    @staticmethod
    def _stop(loop: asyncio.AbstractEventLoop, thread: threading.Thread, process: int) -> None:
        if process != os.getpid() or not thread.is_alive():
            return
        loop.call_soon_threadsafe(loop.stop)
        thread.join(timeout=1)
        if not thread.is_alive():
            loop.close()

    def forget(self) -> None:
        """In a forked child: the thread stayed behind, and another one may have held the lock."""
        self._lock = threading.Lock()
        self._loop = self._thread = None


_PRIVATE = _LoopThread()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_PRIVATE.forget)


def private_loop() -> asyncio.AbstractEventLoop:
    """The running loop of the kit's own thread."""
    return _PRIVATE.loop()
