"""``Store``: named conversations that survive the process.

A conversation is a chain of content-addressed messages. Appending names the position that the writer believes to be
the last one; where another process was faster the append is refused, so that two never mix.
"""

from __future__ import annotations

import os
import sqlite3
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from qwen_agent_kit.errors import StoreError, UsageError
from qwen_agent_kit.messages import Media, Message
from qwen_agent_kit.paths import data_dir, safe_name
from qwen_agent_kit.store import codec, rows
from qwen_agent_kit.store.rows import Pending
from qwen_agent_kit.store.schema import connect, guarded, transaction

__all__ = ["Pending", "Position", "SessionInfo", "Store", "Stored"]

MAX_BYTES = 8 * 2**30
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Position:
    """Where a conversation ends: how many messages, and a hash over all of them."""

    count: int = 0
    chain: str = ""


@dataclass(frozen=True, slots=True)
class Stored:
    """A conversation as it was read."""

    messages: tuple[Message, ...]
    position: Position
    pending: Pending | None = None


@dataclass(frozen=True, slots=True)
class SessionInfo:
    """A line of ``list``: times are seconds since the epoch; ``waiting`` counts calls that wait for approval."""

    name: str
    created: float
    updated: float
    messages: int
    waiting: int = 0

    def to_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__slots__}


class Store:
    """Conversations in one SQLite file (WAL). Thread-safe; any number of processes may share the file.

    Args:
        path: The file; ``sessions/store.sqlite3`` under the kit's data directory where None.
        max_bytes: How large the file may become; past it writes are refused and nothing is lost.
        timeout: Seconds to wait for another process's transaction.

    Raises:
        StoreError: From every method, where the file cannot be read or written; what was stored before is intact.
    """

    def __init__(self, path: str | Path | None = None, *, max_bytes: int = MAX_BYTES, timeout: float = 10.0) -> None:
        self.path = Path(path) if path is not None else data_dir("sessions") / "store.sqlite3"
        self._max_bytes = max_bytes
        self._timeout = timeout
        self._lock = threading.RLock()
        self._connection: sqlite3.Connection | None = None
        self._owner = 0
        self._finalizer: weakref.finalize[..., Any] | None = None

    # --- reading ---------------------------------------------------------------------------------------------------

    def load(self, name: str, kinds: Sequence[type[Media]] = ()) -> Stored:
        """The conversation ``name``; an empty one where there is none yet.

        Args:
            name: As ``append`` was given it.
            kinds: The part types of installed backends, besides Image, Audio and Video.

        Raises:
            UsageError: Where the name could not be one.
        """
        safe_name(name, "the session name")

        def read(db: sqlite3.Connection) -> Stored:
            with transaction(db, write=False):
                found = self._head(db, name)
                return Stored((), Position()) if found is None else _read(db, name, found, kinds)

        return self._run(read)

    def position(self, name: str) -> Position:
        """Where the conversation ends, without reading it."""
        safe_name(name, "the session name")
        found = self._run(lambda db: self._head(db, name))
        return found[1] if found else Position()

    def list(self) -> tuple[SessionInfo, ...]:
        """The conversations, the latest first."""
        listed = self._run(
            lambda db: db.execute(
                "SELECT name, created, updated, count, pending FROM conversations ORDER BY updated DESC, id DESC"
            ).fetchall()
        )
        return tuple(
            SessionInfo(name, created, updated, count, rows.waiting(pending))
            for name, created, updated, count, pending in listed
        )

    def export(self, name: str, kinds: Sequence[type[Media]] = ()) -> dict[str, Any]:
        """The conversation as JSON data, media as base64; ``Message.from_dict`` reads each of ``messages``.

        Raises:
            UsageError: Where there is no such conversation.
        """
        stored = self.load(name, kinds)
        info = next((info for info in self.list() if info.name == name), None)
        if info is None:
            raise self._unknown(name)
        return {
            "schema_version": 1,
            "name": name,
            "created": info.created,
            "updated": info.updated,
            "messages": [message.to_dict() for message in stored.messages],
            "pending": list(stored.pending.waiting) if stored.pending else [],
        }

    # --- writing ---------------------------------------------------------------------------------------------------

    def append(
        self, name: str, messages: Sequence[Message], expected: Position, pending: Pending | None = None
    ) -> Position:
        """Add messages in one transaction; costs as much as they do, however long the conversation is.

        Args:
            name: Of the conversation; it is made where ``expected`` is the beginning.
            messages: What to add.
            expected: Where the writer believes that the conversation ends.
            pending: The step that waits for approval from now on, None where none does.

        Returns:
            The new end.

        Raises:
            StoreError: ``code="conflict"`` where the conversation ends elsewhere; nothing was written.
        """
        safe_name(name, "the session name")
        encoded = [codec.encode(message) for message in messages]
        blobs: dict[str, bytes] = {}
        waiting = rows.write_pending(pending, blobs)

        def write(db: sqlite3.Connection) -> Position:
            with transaction(db):
                found = self._head(db, name)
                position = found[1] if found else Position()
                if position != expected:
                    raise _conflict(name, expected, position)
                now = time.time()
                if found is None:
                    insert = "INSERT INTO conversations (name, created, updated, count, chain) VALUES (?, ?, ?, 0, '')"
                    ident = int(db.execute(insert, (name, now, now)).lastrowid or 0)
                else:
                    ident = found[0]
                for row in encoded:
                    message = rows.put_message(db, row)
                    db.execute("INSERT INTO entries VALUES (?, ?, ?)", (ident, position.count, message))
                    position = Position(position.count + 1, rows.chained(position.chain, row.digest))
                for digest, content in blobs.items():
                    rows.put_blob(db, digest, content)
                db.execute(
                    "UPDATE conversations SET updated = ?, count = ?, chain = ?, pending = ? WHERE id = ?",
                    (now, position.count, position.chain, waiting, ident),
                )
                return position

        return self._run(write)

    def fork(self, name: str, new: str) -> Position:
        """Copy a conversation under a new name; the messages are shared, so this costs a row each.

        Raises:
            UsageError: Where ``name`` is not there, or ``new`` is.
        """
        safe_name(new, "the session name")

        def write(db: sqlite3.Connection) -> Position:
            with transaction(db):
                found = self._head(db, name)
                if found is None:
                    raise self._unknown(name)
                if self._head(db, new) is not None:
                    raise UsageError(f"session {new!r} is there already", hint="choose another name", code="exists")
                ident, position, pending = found
                now = time.time()
                copy = db.execute(
                    "INSERT INTO conversations (name, created, updated, count, chain, pending)"
                    " VALUES (?, ?, ?, ?, ?, ?)",
                    (new, now, now, position.count, position.chain, pending),
                ).lastrowid
                db.execute(
                    "INSERT INTO entries SELECT ?, position, message FROM entries WHERE conversation = ?", (copy, ident)
                )
                return position

        return self._run(write)

    def delete(self, name: str) -> None:
        """Remove a conversation, and the messages and media that no other one holds.

        Raises:
            UsageError: Where there is no such conversation.
        """
        safe_name(name, "the session name")

        def write(db: sqlite3.Connection) -> None:
            with transaction(db):
                found = self._head(db, name)
                if found is None:
                    raise self._unknown(name)
                rows.drop(db, [found[0]])
            db.execute("PRAGMA wal_checkpoint(TRUNCATE)")  # the journal holds copies of what is gone

        self._run(write)

    def purge(self, older_than: float | None = None, keep: int | None = None) -> tuple[str, ...]:
        """Remove old conversations and give the space back.

        Args:
            older_than: Seconds; what was not touched for longer goes.
            keep: Only so many stay, the latest.

        Returns:
            The names that are gone.

        Raises:
            UsageError: Where neither is given, or one is negative.
        """
        if older_than is None and keep is None:
            raise UsageError("purge was given neither `older_than` nor `keep`", hint="keep=0 removes everything")
        if (older_than is not None and not older_than >= 0) or (keep is not None and keep < 0):
            raise UsageError(f"purge was given older_than={older_than!r}, keep={keep!r}; allowed: numbers from 0")

        def write(db: sqlite3.Connection) -> tuple[str, ...]:
            with transaction(db):
                query = "SELECT id, name, updated FROM conversations ORDER BY updated DESC, id DESC"
                found = db.execute(query).fetchall()
                oldest = time.time() - older_than if older_than is not None else float("-inf")
                gone = [row for i, row in enumerate(found) if row[2] < oldest or (keep is not None and i >= keep)]
                rows.drop(db, [row[0] for row in gone])
            if gone:
                db.execute("VACUUM")
                db.execute("PRAGMA wal_checkpoint(TRUNCATE)")  # the journal holds copies of what is gone
            return tuple(row[1] for row in gone)

        return self._run(write)

    # --- the connection --------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Close the file; the next use opens it again."""
        with self._lock:
            if self._finalizer is not None and self._owner == os.getpid():
                self._finalizer()
            self._connection = self._finalizer = None

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _run(self, work: Callable[[sqlite3.Connection], _T]) -> _T:
        with self._lock, guarded(self.path):
            return work(self._open())

    def _open(self) -> sqlite3.Connection:
        if self._connection is None or self._owner != os.getpid():  # a connection must not cross a fork
            if self._finalizer is not None:
                self._finalizer.detach()
            self._connection = connect(self.path, max_bytes=self._max_bytes, timeout=self._timeout)
            self._owner = os.getpid()
            self._finalizer = weakref.finalize(self, _close, self._connection, self._owner)
        return self._connection

    def _head(self, db: sqlite3.Connection, name: str) -> tuple[int, Position, str | None] | None:
        query = "SELECT id, count, chain, pending FROM conversations WHERE name = ?"
        row = db.execute(query, (name,)).fetchone()
        return None if row is None else (row[0], Position(row[1], row[2]), row[3])

    def _unknown(self, name: str) -> UsageError:
        hint = "`qak sessions list` names them"
        return UsageError(f"there is no session {name!r}", hint=hint, code="session_not_found")


def _close(connection: sqlite3.Connection, owner: int) -> None:
    if owner == os.getpid():  # a forked child that ends leaves its parent's connection alone
        connection.close()


def _read(
    db: sqlite3.Connection, name: str, head: tuple[int, Position, str | None], kinds: Sequence[type[Media]]
) -> Stored:
    ident, position, pending = head
    bodies = db.execute(
        "SELECT body FROM entries JOIN messages ON messages.id = entries.message"
        " WHERE conversation = ? ORDER BY position",
        (ident,),
    )
    seen: dict[str, bytes] = {}

    def blob(digest: str) -> bytes:
        if digest not in seen:
            seen[digest] = rows.get_blob(db, digest)
        return seen[digest]

    messages = tuple(codec.decode(body, blob, kinds) for (body,) in bodies)
    if len(messages) != position.count:
        raise StoreError(f"session {name!r} has {len(messages)} of its {position.count} messages")
    return Stored(messages, position, rows.read_pending(pending, blob, kinds))


def _conflict(name: str, expected: Position, found: Position) -> StoreError:
    return StoreError(
        f"session {name!r} was changed by another process: expected {expected.count} messages, found {found.count}",
        hint="open it again with agent.chat(session=...) and repeat the turn, or chat.fork()",
        code="conflict",
    )
