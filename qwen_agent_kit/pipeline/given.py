"""What a caller passes as items: a place on disk, or values of their own code."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Iterator, Mapping, Sized
from pathlib import Path
from typing import Any

from qwen_agent_kit.errors import UsageError
from qwen_agent_kit.messages import Media
from qwen_agent_kit.pipeline.folder import Folder
from qwen_agent_kit.pipeline.rows import Row, Source, fault
from qwen_agent_kit.pipeline.tables import CsvFile, JsonLines

__all__ = ["Given", "source_of"]

_TABLES = {".csv": ",", ".tsv": "\t"}
_LINES = (".jsonl", ".ndjson")


def source_of(items: Any, *, pattern: str | None = None, outside: bool = False) -> Source:
    """The source that ``items`` names or is.

    Args:
        items: A folder, a ``.csv``, ``.tsv``, ``.jsonl`` or ``.ndjson`` file, or any iterable of mappings, strings (the
            field ``text``) or media (the field of their kind).
        pattern: For a folder: which names are items.
        outside: For a folder: whether links may lead out of it.

    Raises:
        UsageError: Where it is none of these or cannot be read.
    """
    if not isinstance(items, str | os.PathLike):
        if isinstance(items, Mapping | bytes) or not isinstance(items, Iterable):
            raise UsageError(f"`items` is a {type(items).__name__}; allowed: a path, or an iterable of items")
        return Given(items)
    path = Path(items)
    suffix = path.suffix.lower()
    if path.is_dir():
        return Folder(path, pattern, outside=outside)
    if pattern is not None:
        raise UsageError(f"`pattern` goes with a folder; found `{str(path)[:200]}`")
    if suffix in _TABLES:
        return CsvFile(path, _TABLES[suffix])
    if suffix in _LINES:
        return JsonLines(path)
    found = f"a file with suffix {path.suffix[:20]!r}" if path.exists() else "nothing"
    raise UsageError(
        f"the source `{str(path)[:200]}` is {found}; allowed: a folder, .csv, .tsv, .jsonl or .ndjson",
        hint="check the path",
    )


class Given:
    """Items from the caller's own code; what can be iterated once is read once.

    Args:
        items: Read lazily.
    """

    def __init__(self, items: Iterable[Any]) -> None:
        self.root: Path | None = None
        self._sized = items if isinstance(items, Sized) else None
        self._items = iter(items)

    def columns(self) -> tuple[str, ...] | None:
        """The fields of the first item."""
        first = list(itertools.islice(self._items, 1))
        self._items = itertools.chain(first, self._items)
        return tuple(_row(0, first[0]).fields) if first else None

    def rows(self) -> Iterator[Row]:
        for number, item in enumerate(self._items):
            yield _row(number, item)

    def reads(self, path: Path) -> bool:
        del path
        return False

    def total(self) -> int | None:
        return len(self._sized) if self._sized is not None else None


def _row(number: int, item: Any) -> Row:
    where = f"item {number}"
    if isinstance(item, str):
        return Row(where, {"text": item})
    if isinstance(item, Media):
        return Row(where, {item.kind: item})
    if isinstance(item, Mapping) and all(isinstance(name, str) for name in item):
        return Row(where, dict(item))
    kind = "mapping with keys that are no strings" if isinstance(item, Mapping) else type(item).__name__
    return fault(where, f"it is a {kind}; allowed: a mapping, a string, Image, Audio or Video")
