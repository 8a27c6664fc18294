"""What the tables hold, a row at a time; called inside the store's transactions."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from qwen_agent_kit.errors import StoreError
from qwen_agent_kit.messages import Media, ToolResult
from qwen_agent_kit.store import codec

__all__ = [
    "Pending",
    "chained",
    "drop",
    "get_blob",
    "put_blob",
    "put_message",
    "read_pending",
    "waiting",
    "write_pending",
]


@dataclass(frozen=True, slots=True)
class Pending:
    """A step that waits: the ids of the calls to approve, and what its other calls returned, by call id."""

    waiting: tuple[str, ...]
    results: Mapping[str, ToolResult]


def chained(chain: str, digest: str) -> str:
    """The hash over a conversation that goes on with one more message."""
    return hashlib.sha256(f"{chain}{digest}".encode("ascii")).hexdigest()


def put_message(db: sqlite3.Connection, row: codec.Row) -> int:
    """The id of a message, which is written with its media where it is new."""
    known = db.execute("SELECT id FROM messages WHERE digest = ?", (row.digest,)).fetchone()
    if known:
        return int(known[0])
    ident = db.execute("INSERT INTO messages (digest, body) VALUES (?, ?)", (row.digest, row.body)).lastrowid
    for digest, content in row.blobs.items():
        db.execute("INSERT OR IGNORE INTO links VALUES (?, ?)", (ident, put_blob(db, digest, content)))
    return int(ident or 0)


def put_blob(db: sqlite3.Connection, digest: str, content: bytes) -> int:
    """The id of a medium, which is written where it is new."""
    known = db.execute("SELECT id FROM media WHERE digest = ?", (digest,)).fetchone()
    if known:
        return int(known[0])
    return int(db.execute("INSERT INTO media (digest, bytes) VALUES (?, ?)", (digest, content)).lastrowid or 0)


def get_blob(db: sqlite3.Connection, digest: str) -> bytes:
    """The bytes of a medium.

    Raises:
        StoreError: Where they are missing or are not those that were stored.
    """
    row = db.execute("SELECT bytes FROM media WHERE digest = ?", (digest,)).fetchone()
    if row is None or hashlib.sha256(row[0]).hexdigest() != digest:
        raise StoreError(f"the stored medium {digest[:12]} is {'missing' if row is None else 'damaged'}")
    return bytes(row[0])


def drop(db: sqlite3.Connection, conversations: Sequence[int]) -> None:
    """Remove conversations and everything that only they held."""
    for ident in conversations:
        db.execute("DELETE FROM entries WHERE conversation = ?", (ident,))
        db.execute("DELETE FROM conversations WHERE id = ?", (ident,))
    db.execute("DELETE FROM messages WHERE id NOT IN (SELECT message FROM entries)")
    db.execute("DELETE FROM links WHERE message NOT IN (SELECT id FROM messages)")
    waiting = {digest for (text,) in db.execute("SELECT pending FROM conversations") for digest in _named(text)}
    linked = "SELECT id, digest FROM media WHERE id NOT IN (SELECT media FROM links)"
    for ident, digest in db.execute(linked).fetchall():
        if digest not in waiting:
            db.execute("DELETE FROM media WHERE id = ?", (ident,))


def write_pending(pending: Pending | None, blobs: dict[str, bytes]) -> str | None:
    """A waiting step as JSON text; the media of its results go to ``blobs``."""
    if pending is None:
        return None
    results = {ident: codec.encode_part(result, blobs) for ident, result in pending.results.items()}
    return json.dumps({"waiting": list(pending.waiting), "results": results, "media": sorted(blobs)})


def _named(pending: str | None) -> list[str]:
    return list(json.loads(pending)["media"]) if pending else []


def read_pending(text: str | None, blob: Callable[[str], bytes], kinds: Sequence[type[Media]]) -> Pending | None:
    """What ``write_pending`` wrote."""
    if text is None:
        return None
    data = json.loads(text)
    classes = codec.media_classes(kinds)
    results: dict[str, ToolResult] = {}
    for ident, part in data["results"].items():
        result = codec.decode_part(part, blob, classes)
        assert isinstance(result, ToolResult), "only tool results are written here"
        results[ident] = result
    return Pending(tuple(data["waiting"]), results)


def waiting(pending: str | None) -> int:
    """How many calls of a stored step wait for approval."""
    return len(json.loads(pending)["waiting"]) if pending else 0
