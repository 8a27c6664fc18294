"""The process that decodes: reads a request from standard input, calls the decoder, writes arrays to standard output.

A message is an 8-byte header length, a JSON header, and the bytes that the header counts. Nothing is pickled, so that a
child that a file took over can lie about pixels and no more. The child ends when its input ends.
"""

from __future__ import annotations

import importlib
import json
import os
import struct
import sys
import threading
from collections.abc import Callable, Mapping
from typing import IO, Any

__all__ = ["main", "read_exactly", "send"]


def main() -> None:
    """Serve requests until the input ends."""
    source, sink = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints is no answer
    kept: dict[str, Callable[..., Any]] = {}
    while (head := source.read(8)) and len(head) == 8:
        request = json.loads(read_exactly(source, struct.unpack("<Q", head)[0]))
        data = read_exactly(source, request["size"])
        _answer(sink, request, data, kept)


def _answer(sink: IO[bytes], request: Mapping[str, Any], data: bytes, kept: dict[str, Callable[..., Any]]) -> None:
    try:
        name = request["decoder"]
        if name not in kept:
            module, _, function = name.partition(":")
            kept[name] = getattr(importlib.import_module(module), function)
            _bound(request["memory"])  # after the import, whose libraries need address space of their own
        facts, arrays = kept[name](data, **request["options"])
        shapes = [{"dtype": a.dtype.str, "shape": list(a.shape)} for a in arrays]
        send(sink, {"facts": facts, "arrays": shapes}, [a.tobytes() for a in arrays])
    except MemoryError:
        send(sink, {"error": "it needs more memory than it may take", "code": "too_large"}, [])
    except Exception as error:  # noqa: BLE001  # whatever a decoder raises over hostile bytes is the file's fault
        code = getattr(error, "code", None)
        told = str(error) if code else f"it cannot be decoded ({type(error).__name__})"
        send(sink, {"error": told[:500], "code": code or "invalid_media", "hint": getattr(error, "hint", None)}, [])


def _bound(memory: int) -> None:
    """Let this process grow by ``memory`` bytes and no further, write no file and leave no core."""
    try:
        import resource
    except ImportError:  # Windows has no limits; time and pixels still bound it there
        return
    threading.stack_size(1 << 20)
    with open("/proc/self/statm", encoding="ascii") as file:
        now = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + memory, resource.RLIM_INFINITY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))


def read_exactly(source: IO[bytes], size: int) -> bytes:
    """``size`` bytes; the process ends where the input does."""
    data = source.read(size)
    if len(data) != size:
        sys.exit(1)
    return data


def send(sink: IO[bytes], header: Mapping[str, Any], bodies: list[bytes]) -> None:
    """One message."""
    text = json.dumps(header).encode()
    sink.write(struct.pack("<Q", len(text)) + text)
    for body in bodies:
        sink.write(body)
    sink.flush()


if __name__ == "__main__":
    main()
