"""From a row to an item: a key that names it in every run, and the parts of its prompt."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

from qwen_agent_kit.errors import MediaError, UsageError
from qwen_agent_kit.media import kind_of_file, read_bytes
from qwen_agent_kit.messages import Audio, Image, Media, Part, Text, Video
from qwen_agent_kit.pipeline.rows import Row, Source
from qwen_agent_kit.pipeline.template import Template

__all__ = ["Columns", "Item", "items_of", "parts_of"]

MAX_KEY = 1000
"""Characters."""
_KINDS: dict[str, type[Media]] = {"image": Image, "audio": Audio, "video": Video}


@dataclass(frozen=True, slots=True)
class Columns:
    """Which fields mean what.

    Args:
        key: The field that names an item; None for the source's own name or a digest of the fields.
        media: The kind of medium (``image``, ``audio``, ``video``) by field.
        outside: Whether paths in rows may lead out of the source's folder.
    """

    key: str | None = None
    media: Mapping[str, str] = field(default_factory=dict)
    outside: bool = False

    @classmethod
    def of(
        cls,
        key: str | None,
        images: str | Sequence[str],
        audio: str | Sequence[str],
        video: str | Sequence[str],
        *,
        outside: bool,
    ) -> Columns:
        """From the fields of each kind.

        Raises:
            UsageError: Where one is no name, or has two kinds.
        """
        kinds: dict[str, str] = {}
        for kind, names in (("image", images), ("audio", audio), ("video", video)):
            for name in (names,) if isinstance(names, str) else names:
                if not isinstance(name, str) or name in kinds:
                    raise UsageError(f"the {kind} column is {str(name)[:80]!r}; allowed: a field's name, each once")
                kinds[name] = kind
        return cls(key, kinds, outside)

    def check(self, found: tuple[str, ...]) -> None:
        """Refuse a mapping of columns that items do not have.

        Raises:
            UsageError: Names the column and those that were found.
        """
        for name in (*([self.key] if self.key is not None else []), *self.media):
            if name not in found:
                shown = ", ".join(repr(column[:80]) for column in found[:20])
                raise UsageError(f"there is no column {name[:80]!r}; columns found: {shown}", code="unknown_field")


@dataclass(frozen=True, slots=True)
class Item:
    """One item of a job.

    Args:
        index: Its place in the source, from 0.
        key: Names it in every run.
        row: What the source said.
        repeated: Whether an earlier item has the same value in the key column.
    """

    index: int
    key: str
    row: Row
    repeated: bool = False

    @property
    def mark(self) -> bytes:
        """The key in 16 bytes, for sets of many."""
        return mark_of(self.key)


def mark_of(key: str) -> bytes:
    """A key in 16 bytes."""
    return hashlib.blake2b(key.encode("utf-8", errors="surrogatepass"), digest_size=16).digest()


def items_of(source: Source, columns: Columns) -> Iterator[Item]:
    """The source's rows with their keys.

    Rows without a name are named by a digest of their fields, so that a row keeps its name when others are put before
    it; equal rows are numbered.
    """
    seen: dict[bytes, int] = {}
    for index, row in enumerate(source.rows()):
        key, given, row = _key(row, columns)
        mark = mark_of(key)
        before = seen.get(mark, 0)
        seen[mark] = before + 1
        if before and not given:
            key = f"{key}-{before + 1}"
        yield Item(index, key, row, repeated=bool(before and given))


def _key(row: Row, columns: Columns) -> tuple[str, bool, Row]:
    """(key, whether it was given, the row or its fault)."""
    if row.name is not None and columns.key is None:
        return row.name, True, row
    if columns.key is not None and row.error is None:
        value = row.fields.get(columns.key)
        if isinstance(value, str | int) and not isinstance(value, bool) and 0 < len(str(value)) <= MAX_KEY:
            return str(value), True, row
        kind = "an empty text or one that is too long" if isinstance(value, str) else type(value).__name__
        problem = f"{row.where}: the key {columns.key[:80]!r} is {kind}; allowed: a text or a whole number"
        row = Row(row.where, row.fields, raw=row.raw, error=UsageError(problem, code="invalid_key"))
    try:
        return f"row-{_digest(row)}", False, row
    except UsageError as error:
        return f"row-{row.where}", False, Row(row.where, error=row.error or error)


def _digest(row: Row) -> str:
    data = row.raw or json.dumps(dict(row.fields), sort_keys=True, default=_told).encode("utf-8", "surrogatepass")
    return hashlib.sha256(data).hexdigest()[:20]


def _told(value: Any) -> Any:
    """What JSON lacks, as something that is the same in every run."""
    if isinstance(value, bytes | bytearray):
        return ["bytes", hashlib.sha256(value).hexdigest()]
    if isinstance(value, os.PathLike):
        return ["path", os.fspath(value)]
    if isinstance(value, Media):
        return ["media", value.kind, value.source, dict(value.options)]
    raise UsageError(
        f"a field holds a {type(value).__name__}, which has no digest; allowed: JSON data, bytes, paths and media",
        hint="name the items by one of their fields with key=",
    )


def parts_of(item: Item, template: Template, columns: Columns, root: Path | None) -> list[Part]:
    """The prompt of an item, its media read and checked.

    Raises:
        QakError: Where the row or one of its media cannot be read, or the template does not fit.
    """
    row = item.row
    if row.error is not None:
        raise row.error
    media: dict[str, tuple[Part, ...]] = {}
    for name, value in row.fields.items():
        kind = columns.media.get(name)
        if kind is not None or isinstance(value, Media):
            several = value if isinstance(value, list | tuple) else (value,)
            parts = [_medium(kind, one, columns, root) for one in several if one is not None and one != ""]
            media[name] = tuple(_read(part) for part in parts)
    if row.file is not None:
        media["file"] = (_content(row.file),)
    return template.fill(row.fields, media)


def _medium(kind: str | None, value: Any, columns: Columns, root: Path | None) -> Media:
    """One medium, its source trusted as far as it comes from the caller's own code."""
    if isinstance(value, Media):
        if kind not in (None, value.kind):
            raise MediaError(f"the column of {kind} holds {value.kind}")
        return value
    make = _KINDS[kind or "image"]
    if root is None or isinstance(value, bytes):
        return make(value)
    if not isinstance(value, str):
        raise MediaError(f"the {kind} is a {type(value).__name__}; allowed: a path or a `data:` URL")
    if value[:5].lower() == "data:" or "://" in value[:16]:
        return make(value, "found")
    try:
        path = (root / value).resolve()
    except (OSError, RuntimeError, ValueError) as error:
        raise MediaError(f"the {kind} is no path that can be followed", code="unreadable") from error
    if not columns.outside and not path.is_relative_to(root.resolve()):
        raise MediaError(
            f"the {kind} is a path that leads out of the source's folder",
            hint="--allow-outside (outside=True) follows it",
            code="outside_root",
        )
    return make(path)


class _File(Media):
    """A file whose first bytes will tell what it is."""

    kind: ClassVar[str] = "file"


def _read(part: Media) -> Media:
    """The part with its bytes, so that the model need not wait for the disk."""
    if isinstance(part.source, bytes | bytearray | str | os.PathLike):
        return replace(part, source=read_bytes(part))
    return part


def _content(path: Path) -> Part:
    """A file of a folder as the medium that its first bytes tell, or as text.

    Raises:
        MediaError: Where it is neither.
    """
    data = read_bytes(_File(path))
    kind = (kind_of_file(data) or "").split("/")[0]
    if kind in _KINDS:
        return _KINDS[kind](data)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:
        raise MediaError(f"`{path.name[:80]}` is no picture, clip, video or UTF-8 text that the kit knows")
    return Text(text)
