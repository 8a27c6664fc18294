"""Arrays and image objects as files without loss, so that they are stored, compared and digested as such."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

from qwen_agent_kit.errors import MediaError

__all__ = ["as_file"]

RATE = 16_000


def as_file(kind: str, source: Any, rate: int = RATE) -> bytes | None:
    """The bytes of a file that holds what ``source`` holds, None where it is neither array nor image object.

    Args:
        kind: ``image`` takes uint8 [h, w], [h, w, 3] or [h, w, 4] and Pillow's images; ``audio``
            takes float32, float64 or int16 [n] or [n, channels].
        source: An array (numpy, or anything with ``__array_interface__``), or an image.
        rate: Samples a second.

    Raises:
        MediaError: For an array of another shape or type.
    """
    if kind == "image" and callable(getattr(source, "save", None)) and hasattr(source, "getbands"):
        sink = io.BytesIO()
        source.save(sink, format="PNG")
        return sink.getvalue()
    if not hasattr(source, "__array_interface__"):
        return None
    import numpy as np

    array = np.ascontiguousarray(source)
    if (
        kind == "image"
        and array.dtype == np.uint8
        and array.size
        and (array.ndim == 2 or array.shape[2:] in ((3,), (4,)))
    ):
        return _png(array)
    if kind == "audio" and array.dtype in (np.float32, np.float64, np.int16) and array.ndim in (1, 2) and array.size:
        return _wav(array if array.dtype == np.int16 else array.astype(np.float32), rate)
    raise MediaError(
        f"the {kind} is an array of {array.dtype.name} {list(array.shape)}; allowed: uint8 [h, w, 3] for images, float "
        "or int16 [n] for audio"
    )


def _png(array: Any) -> bytes:
    height, width = array.shape[:2]
    colour = {1: 0, 3: 2, 4: 6}[array.shape[2] if array.ndim == 3 else 1]
    rows = array.reshape(height, -1)
    raw = b"".join(b"\0" + row.tobytes() for row in rows)

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = struct.pack(">IIBBBBB", width, height, 8, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(raw, 1)) + chunk(b"IEND", b"")


def _wav(array: Any, rate: int) -> bytes:
    channels = array.shape[1] if array.ndim == 2 else 1
    width = array.dtype.itemsize
    data: bytes = array.tobytes()
    form = struct.pack(
        "<HHIIHH", 1 if width == 2 else 3, channels, rate, rate * channels * width, channels * width, width * 8
    )
    body = b"WAVEfmt " + struct.pack("<I", len(form)) + form + b"data" + struct.pack("<I", len(data)) + data
    return b"RIFF" + struct.pack("<I", len(body)) + body
