"""How far a download is, on stderr: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import threading
import time
from typing import TextIO

__all__ = ["Progress"]


class Progress:
    """Counts bytes from several threads and says so.

    Args:
        what: What is fetched.
        total: Bytes in all.
        out: Where it is said; nowhere where None.
    """

    def __init__(self, what: str, total: int, out: TextIO | None = None) -> None:
        self._what = what
        self._total = total
        self._out = out
        self._lock = threading.Lock()
        self._done = 0
        self._began = self._said = time.monotonic()
        self._start: int | None = None
        self._live = out is not None and out.isatty()

    @classmethod
    def on_stderr(cls, what: str, total: int) -> Progress:
        """What command line and agents use."""
        sys.stderr.write(f"{what}, {total / 2**20:,.1f} MiB\n")
        return cls(what, total, sys.stderr)

    @property
    def done(self) -> int:
        """Bytes that are here."""
        return self._done

    def have(self, count: int) -> None:
        """Count what an earlier run left; it says nothing about the rate."""
        with self._lock:
            self._done += count

    def __call__(self, count: int) -> None:
        """``count`` more bytes are here, or fewer where a file begins anew."""
        with self._lock:
            if self._start is None:
                self._start = self._done
            self._done += count
            now = time.monotonic()
            if now - self._said >= (0.2 if self._live else 10.0):
                self._said = now
                self._say(now)

    def finish(self) -> None:
        """End the line."""
        with self._lock:
            if self._live:
                self._say(time.monotonic())
                assert self._out is not None, "a live bar has a stream"
                self._out.write("\n")

    def _say(self, now: float) -> None:
        if self._out is None:
            return
        share = self._done / max(1, self._total)
        rate = (self._done - (self._start or 0)) / max(1e-3, now - self._began)
        left = (self._total - self._done) / rate if rate > 0 else 0.0
        size = f"{share:4.0%} of {self._total / 2**20:,.1f} MiB"
        text = f"{self._what}: {size}, {rate / 2**20:,.1f} MiB/s, {left:,.0f} s left"
        if self._live:
            filled = int(20 * min(1.0, share))
            self._out.write(f"\r[{'#' * filled}{'.' * (20 - filled)}] {text}\x1b[K")
        else:
            self._out.write(f"{text}\n")
        self._out.flush()
