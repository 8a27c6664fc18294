"""How large a picture is by its first bytes, so that a request can be judged before anything is decoded."""

from __future__ import annotations

import struct
from pathlib import Path

from qwen_agent_kit.messages import Media

__all__ = ["image_size", "stated_pixels"]

HEAD = 1 << 18
"""Bytes that are looked at; a JPEG whose size lies deeper states none."""


def stated_pixels(part: Media) -> int:
    """Pixels that a picture's own header states; 0 where it has none that is known, or where it is not here yet."""
    source = part.source
    if isinstance(source, str | Path) and part.trust == "configured":
        try:
            if not Path(source).is_file():  # a pipe would hold us
                return 0
            with Path(source).open("rb") as file:
                source = file.read(HEAD)
        except (OSError, ValueError):
            return 0
    size = image_size(bytes(source[:HEAD])) if isinstance(source, bytes | bytearray | memoryview) else None
    return 0 if size is None else size[0] * size[1]


def image_size(data: bytes) -> tuple[int, int] | None:
    """Width and height of PNG, JPEG, GIF, BMP and WebP by their headers; None where they state none."""
    try:
        if data.startswith(b"\x89PNG\r\n\x1a\n"):
            width, height = struct.unpack_from(">II", data, 16)
        elif data.startswith((b"GIF87a", b"GIF89a")):
            width, height = struct.unpack_from("<HH", data, 6)
        elif data.startswith(b"BM"):
            old = struct.unpack_from("<I", data, 14)[0] < 16
            width, height = struct.unpack_from("<HH" if old else "<ii", data, 18)
        elif data.startswith(b"\xff\xd8\xff"):
            return _jpeg(data)
        elif data[:4] == b"RIFF" and data[8:12] == b"WEBP":
            return _webp(data)
        else:
            return None
    except struct.error:
        return None
    return abs(width), abs(height)


def _jpeg(data: bytes) -> tuple[int, int] | None:
    """From the first frame header (SOF); segments before it are stepped over."""
    at = 2
    while at < len(data) and data[at] == 0xFF:
        marker, length = struct.unpack_from(">xBH", data, at)
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height, width = struct.unpack_from(">HH", data, at + 5)
            return width, height
        at += 2 + max(2, length)
    return None


def _webp(data: bytes) -> tuple[int, int] | None:
    form = data[12:16]
    if form == b"VP8X":
        return 1 + int.from_bytes(data[24:27], "little"), 1 + int.from_bytes(data[27:30], "little")
    if form == b"VP8L":
        bits = struct.unpack_from("<I", data, 21)[0]
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    width, height = struct.unpack_from("<HH", data, 26)
    return width & 0x3FFF, height & 0x3FFF
