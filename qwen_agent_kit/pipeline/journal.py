"""Results as lines of JSON that are only ever appended, so that a run which was killed goes on where it was.

A line is whole once its newline is written; what follows the last newline was torn by the end of a process and is cut
off when the file is opened again. The file is locked while it is open.
"""

from __future__ import annotations

import contextlib
import json
import os
import stat
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from qwen_agent_kit.errors import StoreError, UsageError
from qwen_agent_kit.pipeline.items import mark_of

__all__ = ["Journal", "read_lines"]


class Journal:
    """The results that are on disk, and the file that takes more.

    Args:
        path: Made if missing.

    Attributes:
        done: One mark per key that has a line.
        failed: How many of the lines are errors.

    Raises:
        UsageError: Where it is no regular file, or another process has it.
        StoreError: Where a line that is not the last is no result, or the file cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = _locked(path)
        self.done: set[bytes] = set()
        self.failed = 0
        self._end = 0

    @property
    def empty(self) -> bool:
        """Whether nothing was ever written."""
        return os.fstat(self._file.fileno()).st_size == 0

    def restart(self) -> None:
        """Forget every result."""
        self._file.truncate(0)
        self._end = 0
        self.done.clear()
        self.failed = 0

    def recover(self) -> None:
        """Cut a torn end off and read which keys are done.

        Raises:
            StoreError: As the class says.
        """
        self._end = 0
        self._file.seek(0)
        for number, line in enumerate(self._file, 1):
            if not line.endswith(b"\n"):
                break
            key, failed = _key_of(line, number, self.path)
            self.done.add(mark_of(key))
            self.failed += failed
            self._end += len(line)
        self._file.truncate(self._end)

    def drop_failed(self) -> None:
        """Write the file anew without its errors, so that these items run again; whole or not at all."""
        if not self.failed:
            return
        temporary = self.path.with_name(f".{self.path.name}.new")
        temporary.unlink(missing_ok=True)
        kept = _locked(temporary)
        try:
            self._file.seek(0)
            for line in self._file:
                if json.loads(line)["error"] is None:
                    kept.write(line)
            kept.flush()
            os.fsync(kept.fileno())
            os.replace(temporary, self.path)
        except BaseException:
            kept.close()
            temporary.unlink(missing_ok=True)
            raise
        self._file.close()
        self._file = kept
        self.done.clear()
        self.failed = 0
        self.recover()

    def append(self, record: Mapping[str, Any]) -> None:
        """Add one result; it is the system's, and outlives this process, when this returns.

        Raises:
            StoreError: Where the disk refuses it; what was written of it is cut off again.
        """
        line = _line(record)
        try:
            written = 0
            while written < len(line):
                written += os.write(self._file.fileno(), line[written:])
        except OSError as error:
            with contextlib.suppress(OSError):
                self._file.truncate(self._end)
            raise StoreError(
                f"cannot write `{self.path.name[:80]}`: {error.strerror}", hint="make room; the same command goes on"
            ) from error
        self._end += len(line)
        self.done.add(mark_of(record["key"]))

    def sync(self) -> None:
        """Wait until what was appended would survive a power cut."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Give the file free."""
        self._file.close()


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The results of a journal, one by one."""
    with path.open("rb") as file:
        for line in file:
            if line.endswith(b"\n"):
                yield json.loads(line)


def _line(record: Mapping[str, Any]) -> bytes:
    try:
        return json.dumps(record, ensure_ascii=False).encode("utf-8") + b"\n"
    except UnicodeEncodeError:  # half of a surrogate pair: only an escape can carry it
        return json.dumps(record).encode("ascii") + b"\n"


def _key_of(line: bytes, number: int, path: Path) -> tuple[str, bool]:
    """(key, whether it failed) of a line."""
    try:
        record = json.loads(line)
        key, failed = record["key"], record["error"] is not None
        if not isinstance(key, str):
            raise TypeError
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise StoreError(
            f"line {number} of `{path.name[:80]}` is no result of a pipeline",
            hint="take the line out, or begin anew with --restart",
        ) from error
    return key, failed


def _locked(path: Path) -> IO[bytes]:
    """Open a regular file for reading and appending, and keep others out."""
    flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    try:
        handle = os.open(path, flags, 0o666)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "not a path"
        raise UsageError(f"cannot write `{str(path)[:200]}`: {reason}", hint="check the path") from error
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise UsageError(f"the sink `{str(path)[:200]}` is no regular file")
    file = os.fdopen(handle, "r+b")
    if sys.platform != "win32":
        import fcntl

        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.close()
            raise UsageError(
                f"another process writes `{path.name[:80]}`", hint="wait for it, or name another sink", code="busy"
            ) from error
    return file
