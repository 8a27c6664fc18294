"""One file from a hub to disk: resumed where it was cut, checked before it gets its name."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Protocol

from qwen_agent_kit.errors import FetchError
from qwen_agent_kit.placement.fetch_hubs import Reference, RemoteFile, refusal

if TYPE_CHECKING:
    from qwen_agent_kit import net

__all__ = ["PART", "Stopped", "fetch_file", "matches", "no_space"]

PART = ".part"
"""Ends the name of a file that is not whole yet."""

TRIES = 5
"""So many failures in a row without a new byte end a transfer."""

_BLOCK = 2**20
_RANGE = re.compile(r"bytes (\d+)-\d+/(\d+|\*)")
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class Stopped(Exception):  # noqa: N818  # no error: another file's failure ended this one
    """The transfer was told to stop."""


class _Hash(Protocol):
    def update(self, data: bytes, /) -> None: ...

    def hexdigest(self) -> str: ...


def fetch_file(
    reference: Reference,
    file: RemoteFile,
    target: Path,
    *,
    headers: Mapping[str, str],
    tell: Callable[[int], None],
    stop: threading.Event,
    pause: Callable[[float], None] = time.sleep,
) -> None:
    """Bring ``file`` to ``target``, which exists afterwards only if it is whole and its checksum is right.

    Args:
        reference: For messages.
        file: What and where from.
        target: Its place; ``target`` + ``.part`` holds what has come so far, also of earlier runs.
        headers: Sent to the hub.
        tell: Gets how many bytes more (or, after a restart, fewer) are here.
        stop: Ends the transfer between two blocks.
        pause: Waits before a repeat, in seconds.

    Raises:
        FetchError: ``disk_full``, ``checksum``, or why the transfer failed.
        Stopped: Where ``stop`` was set.
    """
    if not file.checksum:
        raise FetchError(
            f"the hub tells no checksum of `{file.path}`, so it cannot be verified",
            hint="check the endpoint; a mirror must pass on what the hub lists",
            code="checksum",
        )
    part = target.with_name(target.name + PART)
    try:
        for attempt in range(2):
            _fill(reference, file, part, headers, tell, stop, pause)
            if matches(part, file, stop):
                os.replace(part, target)
                return
            tell(-part.stat().st_size)
            part.unlink()  # a damaged piece, perhaps of an earlier run: once more from the start
            del attempt
    except OSError as error:
        raise _trouble(file, error) from error
    raise FetchError(
        f"`{file.path}` of `{reference}` does not match its checksum {file.checksum[:19]}..., twice",
        hint="something between here and the hub changes the bytes; try another network or endpoint",
        code="checksum",
    )


def matches(path: Path, file: RemoteFile, stop: threading.Event | None = None) -> bool:
    """Whether a file on disk has the size and the checksum."""
    if path.stat().st_size != file.size:
        return False
    kind, _, expected = file.checksum.partition(":")
    digest: _Hash = hashlib.sha256() if kind == "sha256" else hashlib.sha1(usedforsecurity=False)
    if kind == "git":
        digest.update(f"blob {file.size}\0".encode())
    with path.open("rb") as opened:
        while block := opened.read(_BLOCK):
            digest.update(block)
            if stop is not None and stop.is_set():
                raise Stopped
    return digest.hexdigest() == expected


def no_space(needed: int, free: int, where: Path) -> FetchError:
    """The error for a disk that is too small."""
    return FetchError(
        f"{needed / 2**20:,.1f} MiB are to be fetched and `{where}` has {free / 2**20:,.1f} MiB free",
        hint="free some space, or set QAK_HOME to a larger disk",
        code="disk_full",
    )


def _trouble(file: RemoteFile, error: OSError) -> FetchError:
    if error.errno in _FULL:
        return FetchError(
            f"the disk is full: `{file.path}` ({file.size / 2**20:,.1f} MiB) could not be written",
            hint="free some space and fetch again; what has come is kept",
            code="disk_full",
        )
    return FetchError(f"`{file.path}` cannot be written: {error.strerror}", hint="check QAK_HOME and its permissions")


def _fill(
    reference: Reference,
    file: RemoteFile,
    part: Path,
    headers: Mapping[str, str],
    tell: Callable[[int], None],
    stop: threading.Event,
    pause: Callable[[float], None],
) -> None:
    """Ask for what is missing until nothing is."""
    failures = 0
    with part.open("ab") as out:
        if out.tell() > file.size:
            _restart(out, tell)
        while (have := out.tell()) < file.size:
            try:
                _continue(reference, file, out, headers, tell, stop)
            except FetchError as error:
                failures = 0 if out.tell() > have else failures + 1
                if failures >= TRIES or not _transient(error):
                    raise
                pause(min(8.0, 0.2 * 2**failures))
        out.flush()
        os.fsync(out.fileno())


def _transient(error: FetchError) -> bool:
    return error.code in ("fetch", "timeout")


def _continue(
    reference: Reference,
    file: RemoteFile,
    out: BinaryIO,
    headers: Mapping[str, str],
    tell: Callable[[int], None],
    stop: threading.Event,
) -> None:
    """One request: from where the file ends to its end, or as far as the connection lasts."""
    from qwen_agent_kit.net import open_url

    have = out.tell()
    asked = {**headers, "Range": f"bytes={have}-"} if have else dict(headers)
    with open_url(file.url, trust="configured", headers=asked, seconds=None) as reply:
        if reply.status not in (200, 206):
            raise refusal(reference, reply)
        if have and not (reply.status == 206 and _starts_at(reply, have)):
            _restart(out, tell)  # the server does not know ranges, and sends all of it
        for chunk in reply.chunks():
            if out.tell() + len(chunk) > file.size:
                raise FetchError(
                    f"`{file.path}` has more than the {file.size} bytes that the hub lists",
                    hint="check the endpoint",
                    code="size",
                )
            out.write(chunk)
            tell(len(chunk))
            if stop.is_set():
                raise Stopped
    if out.tell() < file.size:
        raise FetchError(f"`{file.path}` ended after {out.tell()} of {file.size} bytes", hint="fetch again")


def _restart(out: BinaryIO, tell: Callable[[int], None]) -> None:
    tell(-out.tell())
    out.seek(0)
    out.truncate()


def _starts_at(reply: net.Reply, start: int) -> bool:
    match = _RANGE.match(reply.headers.get("content-range", ""))
    return match is not None and int(match[1]) == start
