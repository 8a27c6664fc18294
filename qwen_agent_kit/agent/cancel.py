"""A flag that also wakes whoever waits."""

from __future__ import annotations

import threading
from collections.abc import Callable

__all__ = ["Cancel"]


class Cancel:
    """Set once, from any thread; every waker that was added is called then, or at once where it is set already."""

    def __init__(self) -> None:
        self.event = threading.Event()
        self._lock = threading.Lock()
        self._wakers: list[Callable[[], None]] = []

    @property
    def is_set(self) -> bool:
        """Whether it was set."""
        return self.event.is_set()

    def set(self) -> None:
        """Set the flag and call the wakers."""
        with self._lock:
            self.event.set()
            wakers, self._wakers = self._wakers, []
        for wake in wakers:
            wake()

    def add(self, wake: Callable[[], None]) -> None:
        """Call ``wake`` when the flag is set."""
        with self._lock:
            if not self.event.is_set():
                self._wakers.append(wake)
                return
        wake()

    def remove(self, wake: Callable[[], None]) -> None:
        """Forget a waker."""
        with self._lock:
            if wake in self._wakers:
                self._wakers.remove(wake)
