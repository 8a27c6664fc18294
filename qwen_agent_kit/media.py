"""From a media part's source to checked bytes.

Sources that the user configured may be paths; sources that were found inside a message, a tool result or a file may be
neither paths nor addresses, only bytes and ``data:`` URLs. Modality plugins build their decoding on this.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
import stat
from pathlib import Path
from urllib.parse import unquote_to_bytes

from qwen_agent_kit.errors import MediaError
from qwen_agent_kit.messages import Media

__all__ = ["MAX_BYTES", "digest_of", "kind_of_file", "read_bytes"]

MAX_BYTES = 64 * 2**20


def read_bytes(part: Media, *, limit: int = MAX_BYTES) -> bytes:
    """The bytes of a part.

    Args:
        part: Its source is ``bytes``, a path, or a ``data:`` URL.
        limit: The most bytes that are read.

    Raises:
        MediaError: Where the source is missing, too large, of an unknown form, or not allowed for ``part.trust``.
    """
    source = part.source
    if isinstance(source, bytes | bytearray | memoryview):
        if len(source) > limit:
            raise _too_large(part, len(source), limit)
        return bytes(source)
    if isinstance(source, str) and source[:5].lower() == "data:":
        return _data_url(part, source, limit)
    if isinstance(source, str) and "://" in source[:16]:
        scheme = source.split(":", 1)[0][:16]
        raise MediaError(
            f"the {part.kind} source is an address with scheme {scheme!r}; allowed: bytes, a path or a `data:` URL",
            hint="fetch it yourself and pass the bytes",
            code="blocked_url",
        )
    if not isinstance(source, str | os.PathLike):
        raise MediaError(
            f"the {part.kind} source is a {type(source).__name__}; allowed: bytes, a path or a `data:` URL"
        )
    if part.trust != "configured":
        raise MediaError(
            f"the {part.kind} source is a path that came inside a message or a tool result; allowed there: bytes or a "
            "`data:` URL",
            hint="a tool returns Image(bytes), not Image(path)",
            code="blocked_path",
        )
    return _file(part, Path(source), limit)


def digest_of(data: bytes) -> str:
    """The sha256 under which media are cached and stored."""
    return hashlib.sha256(data).hexdigest()


def kind_of_file(data: bytes) -> str | None:
    """The MIME type that the first bytes tell, None where they tell none that the kit knows."""
    for magic, mime in _MAGIC:
        if data.startswith(magic):
            return mime
    if data[:4] == b"RIFF":
        return {b"WEBP": "image/webp", b"WAVE": "audio/wav"}.get(data[8:12])
    return None


_MAGIC = (
    (b"\x89PNG\r\n\x1a\n", "image/png"),
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"GIF87a", "image/gif"),
    (b"GIF89a", "image/gif"),
    (b"BM", "image/bmp"),
    (b"fLaC", "audio/flac"),
    (b"OggS", "audio/ogg"),
    (b"ID3", "audio/mpeg"),
    (b"\xff\xfb", "audio/mpeg"),
    (b"%PDF-", "application/pdf"),
)


def _too_large(part: Media, found: int, limit: int) -> MediaError:
    return MediaError(f"the {part.kind} has {found} bytes; allowed: at most {limit}", code="too_large")


def _data_url(part: Media, url: str, limit: int) -> bytes:
    header, comma, body = url.partition(",")
    if not comma:
        raise MediaError(f"the {part.kind}'s `data:` URL has no comma", code="invalid_data_url")
    if len(body) > limit * 4 // 3 + 8:
        raise _too_large(part, len(body) * 3 // 4, limit)
    try:
        packed = header.lower().endswith(";base64")
        data = base64.b64decode(body, validate=True) if packed else unquote_to_bytes(body)
    except (binascii.Error, ValueError) as error:
        raise MediaError(f"the {part.kind}'s `data:` URL is not base64", code="invalid_data_url") from error
    if len(data) > limit:
        raise _too_large(part, len(data), limit)
    if not data:
        raise MediaError(f"the {part.kind}'s `data:` URL is empty", code="invalid_data_url")
    return data


def _file(part: Media, path: Path, limit: int) -> bytes:
    try:
        # Non-blocking, so that a named pipe cannot hold the process; it is refused below like any special file.
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "not a path"
        raise MediaError(f"cannot read the {part.kind} `{path.name[:80]}`: {reason}", code="unreadable") from error
    status = os.fstat(handle)
    if not stat.S_ISREG(status.st_mode):
        os.close(handle)
        raise MediaError(f"the {part.kind} `{path.name[:80]}` is not a regular file", code="unreadable")
    with os.fdopen(handle, "rb") as file:
        if status.st_size > limit:
            raise _too_large(part, status.st_size, limit)
        data = file.read(limit + 1)
    if len(data) > limit:
        raise _too_large(part, len(data), limit)
    return data
