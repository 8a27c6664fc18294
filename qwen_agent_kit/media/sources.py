"""From a media part's source to checked bytes.

Sources that the user configured may be paths and any http(s) address; sources that were found inside a message, a
tool result or a file may be bytes, ``data:`` URLs and public addresses (``net``), and paths only under a root that the
caller names. Modality plugins build their decoding on this.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
import re
import stat
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote_to_bytes

from qwen_agent_kit.errors import FetchError, MediaError, UsageError
from qwen_agent_kit.messages import Media

if TYPE_CHECKING:
    from qwen_agent_kit.net import Network

__all__ = ["MAX_BYTES", "SECONDS", "digest_of", "kind_of_file", "read_bytes"]

MAX_BYTES = 64 * 2**20

SECONDS = 15.0
"""What fetching a part's address may take in all, unless the caller says otherwise."""


def read_bytes(
    part: Media,
    *,
    limit: int = MAX_BYTES,
    seconds: float = SECONDS,
    root: Path | None = None,
    network: Network | None = None,
) -> bytes:
    """The bytes of a part.

    Args:
        part: Its source is ``bytes``, a path, or a ``data:``, ``file:`` or http(s) URL.
        limit: The most bytes that are read, after decompression too.
        seconds: What fetching an address may take in all.
        root: A directory whose files ``found`` sources may name; none where None.
        network: Resolver and sockets, the system's where None.

    Raises:
        MediaError: Where the source is missing, too large, of an unknown form, or not allowed for ``part.trust``.
    """
    source = part.source
    if isinstance(source, bytes | bytearray | memoryview):
        if len(source) > limit:
            raise _too_large(part, len(source), limit)
        return bytes(source)
    if not isinstance(source, str | os.PathLike):
        raise MediaError(f"the {part.kind} source is a {type(source).__name__}; allowed: {_ALLOWED}")
    if isinstance(source, str) and (scheme := _scheme(source)):
        if scheme == "data":
            return _data_url(part, source.strip(), limit)
        if scheme in ("http", "https"):
            return _fetched(part, source, limit, seconds, network)
        if scheme != "file":
            raise MediaError(
                f"the {part.kind} source is an address with scheme {scheme[:16]!r}; allowed: {_ALLOWED}",
                hint="fetch it yourself and pass the bytes",
                code="blocked_url",
            )
        source = _path_of(part, source)
    if part.trust == "configured":
        return _file(part, Path(source), limit)
    return _found_file(part, Path(source), limit, root)


_ALLOWED = "bytes, a path, or a `data:`, `file:` or http(s) URL"
_SCHEMES = re.compile(r"\s*(?:(data|https?):|([A-Za-z][A-Za-z0-9+.-]+)://|(file):)", re.IGNORECASE)


def _scheme(source: str) -> str:
    """Of an address, in lower case; empty for a path."""
    match = _SCHEMES.match(source)
    return "" if match is None else next(group for group in match.groups() if group).lower()


def _fetched(part: Media, url: str, limit: int, seconds: float, network: Network | None) -> bytes:
    from qwen_agent_kit import net  # it brings httpx, which importing an Agent can do without

    trust: net.Trust = "configured" if part.trust == "configured" else "found"
    try:
        return net.fetch(url, trust=trust, limit=limit, seconds=seconds, network=network or net.SYSTEM).data
    except (UsageError, FetchError) as error:
        raise MediaError(
            f"the {part.kind} is not fetched: {error.message}", hint=error.hint, code=error.code
        ) from error


def _path_of(part: Media, url: str) -> str:
    """The path in a ``file:`` URL of this machine."""
    rest = url.strip()[5:]
    if rest.startswith("//"):
        host, slash, path = rest[2:].partition("/")
        rest = slash + path if host.lower() in ("", "localhost") else ""
    if not rest.startswith("/"):
        raise MediaError(f"the {part.kind}'s `file:` URL names no file of this machine", code="blocked_url")
    return os.fsdecode(unquote_to_bytes(rest))


def _found_file(part: Media, path: Path, limit: int, root: Path | None) -> bytes:
    """A file that a message or a tool result names: only one that lies under the root, links followed."""
    refused = MediaError(
        f"the {part.kind} source is a path that came inside a message or a tool result; allowed there: bytes, a "
        "`data:` URL or a public address",
        hint="a tool returns Image(bytes), not Image(path)",
        code="blocked_path",
    )
    if root is None:
        raise refused
    try:
        base = root.resolve(strict=True)
        place = (base / path).resolve()
        inside = place.relative_to(base).parts
    except (OSError, ValueError, RuntimeError):  # a loop of links is a RuntimeError before Python 3.13
        raise refused from None
    if not inside:
        raise refused
    return _file(part, place, limit, opened=_opener(base, inside))


def _opener(base: Path, inside: tuple[str, ...]) -> Callable[[], int] | None:
    """Opens step by step without following links, so that none can be put in the way after the check."""
    if os.open not in os.supports_dir_fd:  # Windows
        return None

    def opened() -> int:
        folder = os.open(base, os.O_RDONLY | os.O_DIRECTORY)
        try:
            for name in inside[:-1]:
                inner = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=folder)
                os.close(folder)
                folder = inner
            return os.open(inside[-1], os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW, dir_fd=folder)
        finally:
            os.close(folder)

    return opened


def digest_of(data: bytes) -> str:
    """The sha256 under which media are cached and stored."""
    return hashlib.sha256(data).hexdigest()


def kind_of_file(data: bytes) -> str | None:
    """The MIME type that the first bytes tell, None where they tell none that the kit knows."""
    for magic, mime in _MAGIC:
        if data.startswith(magic):
            return mime
    if data[:4] == b"RIFF":
        return {b"WEBP": "image/webp", b"WAVE": "audio/wav", b"AVI ": "video/x-msvideo"}.get(data[8:12])
    if data[4:8] == b"ftyp":
        brand = data[8:12]
        if brand in (b"avif", b"avis"):
            return "image/avif"
        if brand in (b"heic", b"heix", b"mif1", b"msf1", b"heim", b"heis"):
            return "image/heic"
        return "audio/mp4" if brand in (b"M4A ", b"M4B ") else "video/mp4"
    if len(data) > 2 and data[0] == 0xFF and data[1] & 0xE6 == 0xE2:  # an MPEG audio frame of layer III
        return "audio/mpeg"
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
    (b"%PDF-", "application/pdf"),
    (b"II*\0", "image/tiff"),
    (b"MM\0*", "image/tiff"),
    (b"\x1a\x45\xdf\xa3", "video/webm"),
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


def _file(part: Media, path: Path, limit: int, opened: Callable[[], int] | None = None) -> bytes:
    try:
        # Non-blocking, so that a named pipe cannot hold the process; it is refused below like any special file.
        handle = opened() if opened is not None else os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
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
