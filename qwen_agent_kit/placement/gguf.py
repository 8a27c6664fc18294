"""Reads the header of a GGUF file: metadata, and where each tensor lies.

Every count, length and offset is checked against the file before anything is read or allocated by it. Format:
github.com/ggml-org/ggml docs/gguf.md, versions 2 and 3, little-endian.
"""

from __future__ import annotations

import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from qwen_agent_kit.errors import ModelError

__all__ = ["GGUFHeader", "GGUFTensor", "read_gguf", "refuse"]

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
MAX_ITEMS = 2**22
MAX_KEYS = 2**16
MAX_TENSORS = 2**18


@dataclass(frozen=True, slots=True)
class GGUFTensor:
    """A tensor as the header has it: ``shape`` rows first, ``kind`` ggml's type number, ``offset`` in the file."""

    name: str
    shape: tuple[int, ...]
    kind: int
    offset: int


@dataclass(frozen=True, slots=True)
class GGUFHeader:
    """Metadata (arrays as lists, or as their lengths where they were skipped), tensors, and the file's size."""

    metadata: dict[str, Any]
    tensors: tuple[GGUFTensor, ...]
    size: int


def refuse(name: str, what: str) -> NoReturn:
    """Raise the error for a damaged file.

    Raises:
        ModelError: Always.
    """
    raise ModelError(f"`{name}` {what}", hint="the file is damaged; fetch it again", code="invalid_weights")


def read_gguf(path: Path, *, arrays: bool = True) -> GGUFHeader:
    """The header of the file at ``path``.

    Args:
        path: The file.
        arrays: Whether arrays (the vocabulary) are read; otherwise only their lengths are kept.

    Raises:
        ModelError: Names the file, and the key or tensor at fault.
    """
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _header(_Cursor(data, path.name, arrays))
    except (OSError, ValueError) as error:  # mmap refuses an empty file with ValueError
        raise ModelError(f"`{path}` cannot be read: {getattr(error, 'strerror', None) or 'it is empty'}") from error


class _Cursor:
    """Reads forward through a map; refuses to leave it."""

    def __init__(self, data: mmap.mmap, name: str, arrays: bool) -> None:
        self._data, self._name, self._arrays = data, name, arrays
        self.size = len(data)
        self.at = 0

    def refuse(self, what: str) -> NoReturn:
        refuse(self._name, what)

    def skip(self, count: int) -> int:
        """Move on by ``count`` bytes; where the cursor was."""
        start, end = self.at, self.at + count
        if end > self.size:
            self.refuse(f"ends in its header: {count} bytes are wanted at {start} of {self.size}")
        self.at = end
        return start

    def take(self, count: int) -> bytes:
        start = self.skip(count)
        return self._data[start : self.at]

    def number(self, form: str) -> Any:
        return struct.unpack("<" + form, self.take(struct.calcsize("<" + form)))[0]

    def text(self) -> str:
        return self.take(self.number("Q")).decode("utf-8", errors="replace")

    def value(self, kind: int, key: str) -> Any:
        if kind == _STRING:
            return self.text()
        if kind in _SCALARS:
            return self.number(_SCALARS[kind])
        if kind != _ARRAY:
            self.refuse(f"gives `{key}` the unknown type {kind}")
        return self._array(key)

    def _array(self, key: str) -> list[Any] | int:
        inner, count = self.number("I"), self.number("Q")
        if count > MAX_ITEMS or inner == _ARRAY:
            self.refuse(f"gives `{key}` {count} items or lists of lists; allowed: at most {MAX_ITEMS} plain items")
        if inner != _STRING and inner not in _SCALARS:
            self.refuse(f"gives `{key}` items of the unknown type {inner}")
        if inner == _STRING:
            if self._arrays:
                return [self.text() for _ in range(count)]
            for _ in range(count):
                self.skip(self.number("Q"))
            return int(count)
        form = f"<{count}{_SCALARS[inner]}"
        raw = self.take(struct.calcsize(form))
        return list(struct.unpack(form, raw)) if self._arrays else int(count)


def _header(cursor: _Cursor) -> GGUFHeader:
    magic, version = cursor.take(4), cursor.number("I")
    if magic != b"GGUF" or version not in (2, 3):
        cursor.refuse(f"begins with {magic!r}, version {version}; allowed: GGUF, 2 or 3, little-endian")
    tensors, keys = cursor.number("Q"), cursor.number("Q")
    if tensors > MAX_TENSORS or keys > MAX_KEYS:
        cursor.refuse(f"says it has {tensors} tensors and {keys} keys; allowed: {MAX_TENSORS} and {MAX_KEYS}")
    metadata: dict[str, Any] = {}
    for _ in range(keys):
        key = cursor.text()
        if key in metadata:
            cursor.refuse(f"has the key `{key[:200]}` twice")
        metadata[key] = cursor.value(cursor.number("I"), key[:200])
    return GGUFHeader(metadata, _table(cursor, tensors, metadata.get("general.alignment", 32)), cursor.size)


def _table(cursor: _Cursor, count: int, align: Any) -> tuple[GGUFTensor, ...]:
    raw: dict[str, tuple[tuple[int, ...], int, int]] = {}
    for _ in range(count):
        name, dims = cursor.text(), cursor.number("I")
        if not 1 <= dims <= 4:
            cursor.refuse(f"gives `{name[:200]}` {dims} dimensions; allowed: 1 to 4")
        if name in raw:
            cursor.refuse(f"has the tensor `{name[:200]}` twice")
        sizes = [cursor.number("Q") for _ in range(dims)]
        raw[name] = (tuple(reversed(sizes)), cursor.number("I"), cursor.number("Q"))
    if not isinstance(align, int) or not 8 <= align <= 2**16 or align & (align - 1):
        cursor.refuse(f"has the alignment {align!r}; allowed: a power of two from 8 to {2**16}")
    base = -(-cursor.at // align) * align
    for name, (_, _, offset) in raw.items():
        if base + offset >= cursor.size:
            cursor.refuse(f"says `{name[:200]}` begins at {base + offset}; the file has {cursor.size} bytes")
    return tuple(GGUFTensor(name, shape, kind, base + offset) for name, (shape, kind, offset) in raw.items())
