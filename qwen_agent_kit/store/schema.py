"""The tables, their versions, and a connection that has them.

``PRAGMA user_version`` counts the migrations that were applied; a file of an older kit is brought up to date in one
transaction when it is opened, one of a newer kit is refused.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path

from qwen_agent_kit.errors import StoreError

__all__ = ["MIGRATIONS", "connect", "guarded", "transaction"]

MIGRATIONS: tuple[tuple[str, ...], ...] = (
    (
        """CREATE TABLE conversations (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, created REAL NOT NULL,
        updated REAL NOT NULL, count INTEGER NOT NULL, chain TEXT NOT NULL)""",
        "CREATE TABLE messages (id INTEGER PRIMARY KEY, digest TEXT NOT NULL UNIQUE, body TEXT NOT NULL)",
        """CREATE TABLE entries (conversation INTEGER NOT NULL, position INTEGER NOT NULL, message INTEGER NOT NULL,
        PRIMARY KEY (conversation, position)) WITHOUT ROWID""",
        "CREATE INDEX entries_message ON entries (message)",
        "CREATE TABLE media (id INTEGER PRIMARY KEY, digest TEXT NOT NULL UNIQUE, bytes BLOB NOT NULL)",
        """CREATE TABLE links (message INTEGER NOT NULL, media INTEGER NOT NULL, PRIMARY KEY (message, media))
        WITHOUT ROWID""",
    ),
    # Calls that wait for approval, with what the other calls of their step returned.
    ("ALTER TABLE conversations ADD COLUMN pending TEXT",),
)


def connect(path: Path, *, max_bytes: int, timeout: float) -> sqlite3.Connection:
    """A connection whose file exists (mode 0600), holds the newest tables and cannot outgrow ``max_bytes``.

    Raises:
        StoreError: Where the file cannot be opened, is no store, or is of a newer kit.
    """
    with guarded(path):
        try:
            # Only where there is none yet: closing a file that a connection of this process has open would drop its
            # POSIX locks (sqlite.org/howtocorrupt.html, 2.2).
            if not path.exists():
                os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
        except FileExistsError:
            pass  # another process was faster
        except OSError as error:
            raise StoreError(
                f"cannot open the conversation store `{path}`: {error.strerror}",
                hint="set QAK_HOME to a directory you can write",
            ) from error
        connection = sqlite3.connect(path, timeout=timeout, isolation_level=None, check_same_thread=False)
        try:
            _write_ahead(connection, timeout)
            _prepare(connection, path, max_bytes)
        except BaseException:
            connection.close()
            raise
        return connection


def _write_ahead(connection: sqlite3.Connection, timeout: float) -> None:
    """Switch the file to a write-ahead log, once for all; SQLite does not wait for others here, so this does."""
    until = time.monotonic() + timeout
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > until:
                raise
            time.sleep(0.01)


def _prepare(connection: sqlite3.Connection, path: Path, max_bytes: int) -> None:
    connection.execute("PRAGMA synchronous = NORMAL")  # a killed process loses nothing; the file is never torn
    connection.execute("PRAGMA secure_delete = ON")  # what a user deletes is overwritten, not only unlinked
    (page,) = connection.execute("PRAGMA page_size").fetchone()
    connection.execute(f"PRAGMA max_page_count = {max(16, max_bytes // page)}")
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version == len(MIGRATIONS):
        return
    with transaction(connection):
        (version,) = connection.execute("PRAGMA user_version").fetchone()  # another process may have been faster
        if version > len(MIGRATIONS):
            raise StoreError(
                f"the conversation store `{path}` has format {version}; this version reads up to {len(MIGRATIONS)}",
                hint="upgrade qwen-agent-kit, or set QAK_HOME to another directory",
            )
        for migration in MIGRATIONS[version:]:
            for statement in migration:
                connection.execute(statement)
        connection.execute(f"PRAGMA user_version = {len(MIGRATIONS)}")


@contextlib.contextmanager
def transaction(connection: sqlite3.Connection, *, write: bool = True) -> Iterator[None]:
    """All or nothing.

    A writer's lock is taken at the start, so that what is read inside stays true; a reader sees one moment of the file,
    however many statements it needs.
    """
    connection.execute("BEGIN IMMEDIATE" if write else "BEGIN")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        with contextlib.suppress(sqlite3.Error):  # a full disk may have rolled back already
            connection.execute("ROLLBACK")
        raise


@contextlib.contextmanager
def guarded(path: Path) -> Iterator[None]:
    """Turn what SQLite raises into ``StoreError`` with a cure; the data on disk is untouched in every case."""
    try:
        yield
    except sqlite3.Error as error:
        text = str(error)
        hint = next((cure for sign, cure in _CURES if sign in text), f"look at `{path}`, or set QAK_HOME elsewhere")
        raise StoreError(f"the conversation store `{path}` failed: {text}", hint=hint) from error


_CURES = (
    ("full", "free some space or run `qak sessions purge`; what was stored before is intact"),
    ("readonly", "make the file and its directory writable, or set QAK_HOME to a directory you can write"),
    ("not a database", "the file is damaged or no store: move it away; a new one is made"),
    ("malformed", "the file is damaged: move it away; `sqlite3 FILE .recover` may save what is in it"),
    ("locked", "another process holds the store; try again"),
    ("unable to open", "set QAK_HOME to a directory you can write"),
    ("disk I/O", "check the disk and its free space; what was stored before is intact"),
)
