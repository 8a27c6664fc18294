"""Small pictures that differ, made by hand."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path


def png(width: int, height: int, colour: tuple[int, int, int]) -> bytes:
    """A PNG of one colour."""
    rows = (b"\0" + bytes(colour) * width) * height
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", head), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    body = b"".join(struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in chunks)
    return b"\x89PNG\r\n\x1a\n" + body


def folder_of(folder: Path, count: int) -> Path:
    """``count`` pictures, each of another colour and size, in three folders below ``folder``."""
    for number in range(count):
        place = folder / f"set{number % 3}"
        place.mkdir(parents=True, exist_ok=True)
        colour = (number % 256, number // 256, 7)
        (place / f"{number:05}.png").write_bytes(png(1 + number % 13, 1 + number % 7, colour))
    return folder
