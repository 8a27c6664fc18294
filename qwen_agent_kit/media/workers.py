"""A few child processes that decode: kept between calls, killed when late, started anew when one dies."""

from __future__ import annotations

import json
import math
import os
import queue
import select
import struct
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from qwen_agent_kit.errors import MediaError

if TYPE_CHECKING:
    import numpy as np

__all__ = ["Decoded", "MediaLimits", "Workers"]

MAX_HEADER = 1 << 20
DTYPES = frozenset({"|u1", "<f4", "<i8"})


@dataclass(frozen=True, slots=True)
class MediaLimits:
    """What one item may cost.

    Args:
        size: Bytes of the file.
        pixels: Of one decoded image or frame.
        frames: Decoded frames of a clip, or pages of a document.
        seconds: Length of a clip.
        wall: Seconds that decoding may take.
        memory: Bytes that decoding may take beyond what its libraries take.
        items: Media in one request.
        total_pixels: Of all images and frames of one request together, after resizing.
        stated_pixels: Of all images of one request together, as their headers state them before one is decoded.
    """

    size: int = 64 * 2**20
    pixels: int = 50_000_000
    frames: int = 768
    seconds: float = 3600.0
    wall: float = 30.0
    memory: int = 1 << 30
    items: int = 128
    total_pixels: int = 200_000_000
    stated_pixels: int = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Decoded:
    """What a decoder gave: JSON data, and arrays."""

    facts: Mapping[str, Any]
    arrays: tuple[np.ndarray, ...] = field(default=())


class Workers:
    """Decodes in child processes. Thread-safe; the processes start on first use.

    Args:
        decoder: ``module:function``, imported in the child; ``function(data, **options) -> (facts, arrays)``. Facts
            are JSON data, arrays uint8, float32 or int64. What it raises becomes a ``MediaError``, with the text where
            the exception has a ``code``.
        most: How many processes there are at once.
        limits: Of each call.
    """

    def __init__(self, decoder: str, *, most: int = 2, limits: MediaLimits | None = None) -> None:
        self.decoder, self.limits = decoder, limits or MediaLimits()
        self.started = 0
        self._idle: queue.LifoQueue[_Worker | None] = queue.LifoQueue()
        self._all: set[_Worker] = set()
        self._lock = threading.Lock()
        for _ in range(most):
            self._idle.put(None)
        self._finalizer = weakref.finalize(self, _end, self._all)

    def decode(self, data: bytes, kind: str, options: Mapping[str, Any] | None = None) -> Decoded:
        """Decode one file.

        Args:
            data: The file.
            kind: The part's kind, for errors.
            options: Keyword arguments of the decoder, JSON data.

        Raises:
            MediaError: ``too_large``, ``timeout``, ``decoder_died``, or what the decoder found.
        """
        if len(data) > self.limits.size:
            raise MediaError(f"the {kind} has {len(data)} bytes; allowed: at most {self.limits.size}", code="too_large")
        worker = self._idle.get()
        try:
            if worker is None or not worker.alive:
                worker = self._start()
            return worker.ask(self.decoder, data, kind, dict(options or {}), self.limits)
        finally:
            if worker is not None and not worker.alive:
                self._drop(worker)
                worker = None
            self._idle.put(worker)

    def _start(self) -> _Worker:
        worker = _Worker()
        with self._lock:
            self._all.add(worker)
            self.started += 1
        return worker

    def _drop(self, worker: _Worker) -> None:
        worker.kill()
        with self._lock:
            self._all.discard(worker)

    def close(self) -> None:
        """End the processes."""
        self._finalizer()


def _end(workers: set[_Worker]) -> None:
    for worker in list(workers):
        worker.kill()
    workers.clear()


class _Worker:
    """One child and its two pipes."""

    def __init__(self) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        self._process = subprocess.Popen(  # our own interpreter, fixed arguments
            [sys.executable, "-m", "qwen_agent_kit.media.child"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
            start_new_session=True,
        )
        assert self._process.stdin is not None, "the child has pipes"
        assert self._process.stdout is not None, "the child has pipes"
        self._in, self._out = self._process.stdin.fileno(), self._process.stdout.fileno()
        os.set_blocking(self._in, False)

    @property
    def alive(self) -> bool:
        """Whether it can be asked again."""
        return self._process.poll() is None

    def kill(self) -> None:
        """End it now."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            with suppress(OSError):
                pipe.close()  # type: ignore[union-attr]  # both are pipes

    def ask(self, decoder: str, data: bytes, kind: str, options: dict[str, Any], limits: MediaLimits) -> Decoded:
        """One request. Whatever leaves the pipes in an unknown state kills the child."""
        until = time.monotonic() + limits.wall
        header = {"decoder": decoder, "options": options, "memory": limits.memory, "size": len(data)}
        text = json.dumps(header).encode()
        try:
            self._write(struct.pack("<Q", len(text)) + text, until)
            self._write(data, until)
            answer = json.loads(self._read(self._length(until), until))
            arrays = () if "error" in answer else tuple(self._array(a, limits, until) for a in answer["arrays"])
        except TimeoutError:
            self.kill()
            raise MediaError(
                f"decoding the {kind} took longer than {limits.wall:g} s", code="timeout", hint="send a smaller file"
            ) from None
        except (EOFError, OSError):
            self.kill()
            raise MediaError(
                f"the {kind} brought its decoder down; the file is broken or hostile", code="decoder_died"
            ) from None
        except (ValueError, KeyError, TypeError):
            self.kill()
            raise MediaError(f"the {kind}'s decoder gave no sound answer", code="decoder_died") from None
        except BaseException:
            self.kill()
            raise
        if "error" in answer:
            raise MediaError(f"the {kind} is refused: {answer['error']}", code=answer["code"], hint=answer.get("hint"))
        return Decoded(answer["facts"], arrays)

    def _length(self, until: float) -> int:
        length: int = struct.unpack("<Q", self._read(8, until))[0]
        if length > MAX_HEADER:
            raise ValueError("header")
        return length

    def _array(self, told: Mapping[str, Any], limits: MediaLimits, until: float) -> np.ndarray:
        import numpy as np

        shape = tuple(int(n) for n in told["shape"])
        if told["dtype"] not in DTYPES or any(n < 0 for n in shape):
            raise ValueError("array")
        dtype = np.dtype(told["dtype"])
        size = math.prod(shape) * dtype.itemsize
        if size > 4 * limits.memory:
            raise ValueError("array")
        return np.frombuffer(self._read(size, until), dtype).reshape(shape)

    def _write(self, data: bytes, until: float) -> None:
        view = memoryview(data)
        while view:
            _, ready, _ = select.select([], [self._in], [], _left(until))
            if not ready:
                raise TimeoutError
            view = view[os.write(self._in, view[: 1 << 16]) :]

    def _read(self, size: int, until: float) -> bytearray:
        data = bytearray(size)
        view = memoryview(data)
        while view:
            ready, _, _ = select.select([self._out], [], [], _left(until))
            if not ready:
                raise TimeoutError
            count = os.readv(self._out, [view])
            if count == 0:
                raise EOFError
            view = view[count:]
        return data


def _left(until: float) -> float:
    return max(0.0, until - time.monotonic())
