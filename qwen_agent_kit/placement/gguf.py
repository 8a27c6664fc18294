"""Reads the header of a GGUF file: metadata and where each tensor lies (GGUF v2 and v3, ggml docs/gguf.md).

Every count, length and offset is checked against the file's size before anything is read or allocated by it.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qwen_agent_kit.errors import ModelError

__all__ = ["GgufHeader", "GgufTensor", "read_gguf"]

_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_STRING, _ARRAY = 8, 9
_MOST_STRING = 2**24
_MOST_ITEMS = 2**22


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """A tensor as the file has it.

    ``shape`` is in rows-first order, ``kind`` is ggml's type number, ``offset`` counts from the file's beginning.
    """

    name: str
    shape: tuple[int, ...]
    kind: int
    offset: int

    @property
    def count(self) -> int:
        """How many values it has."""
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class GgufHeader:
    """Metadata (arrays as lists, or as their length where arrays were skipped) and tensors."""

    meta: dict[str, Any]
    tensors: tuple[GgufTensor, ...]
    size: int


class _Cursor:
    def __init__(self, data: memoryview, size: int) -> None:
        self.data, self.size, self.at = data, size, 0

    def take(self, count: int) -> memoryview:
        if count > len(self.data) - self.at:
            raise ValueError("the file ends inside its header")
        self.at += count
        return self.data[self.at - count : self.at]

    def number(self, form: str) -> Any:
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def text(self) -> str:
        size = self.number("<Q")
        if size > _MOST_STRING:
            raise ValueError("a string is too long")
        return bytes(self.take(size)).decode("utf-8", errors="replace")

    def value(self, kind: int, arrays: bool) -> Any:
        if kind == _STRING:
            return self.text()
        if kind in _SCALARS:
            return self.number(_SCALARS[kind])
        if kind != _ARRAY:
            raise ValueError(f"a value has the unknown type {kind}")
        inner, count = self.number("<I"), self.number("<Q")
        if count > _MOST_ITEMS or (inner != _STRING and inner not in _SCALARS):
            raise ValueError("an array is too long or nested")
        if inner in _SCALARS:
            width = struct.calcsize(_SCALARS[inner])
            raw = self.take(count * width)
            return list(struct.unpack(f"<{count}{_SCALARS[inner][1]}", raw)) if arrays else count
        if arrays:
            return [self.text() for _ in range(count)]
        for _ in range(count):
            self.take(self.number("<Q"))
        return count


def read_gguf(path: Path, *, arrays: bool = True) -> GgufHeader:
    """The header of the file at ``path``.

    Args:
        path: The file.
        arrays: Whether arrays (the vocabulary) are read; otherwise only their lengths are kept.

    Raises:
        ModelError: Where the file is missing or its header is broken.
    """
    import mmap

    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
            data = memoryview(mapped)
            try:
                return _read(_Cursor(data, len(data)), arrays)
            finally:
                data.release()
    except OSError as error:
        raise ModelError(f"cannot read `{path.name}`: {error.strerror}", hint="check the path") from error
    except (ValueError, struct.error, OverflowError) as error:
        raise ModelError(f"`{path.name}` is not a readable GGUF file: {error}", hint="fetch it again") from error


def _read(cursor: _Cursor, arrays: bool) -> GgufHeader:
    if bytes(cursor.take(4)) != b"GGUF" or cursor.number("<I") not in (2, 3):
        raise ValueError("it does not begin with GGUF version 2 or 3")
    tensors, pairs = cursor.number("<Q"), cursor.number("<Q")
    if tensors > 2**20 or pairs > 2**16:
        raise ValueError(f"it claims {tensors} tensors and {pairs} settings")
    meta: dict[str, Any] = {}
    for _ in range(pairs):
        key = cursor.text()
        meta[key] = cursor.value(cursor.number("<I"), arrays)
    rows = [_tensor(cursor) for _ in range(tensors)]
    align = meta.get("general.alignment", 32)
    if not isinstance(align, int) or not 0 < align <= 2**16:
        raise ValueError(f"its alignment is {align!r}")
    base = -(-cursor.at // align) * align
    if len({row.name for row in rows}) != len(rows):
        raise ValueError("two tensors have one name")
    placed = tuple(GgufTensor(row.name, row.shape, row.kind, base + row.offset) for row in rows)
    for row in placed:
        if row.offset >= cursor.size or row.count < 1 or row.count > 2**38:
            raise ValueError(f"tensor {row.name[:80]!r} lies outside the file")
    return GgufHeader(meta, placed, cursor.size)


def _tensor(cursor: _Cursor) -> GgufTensor:
    name, dims = cursor.text(), cursor.number("<I")
    if not 1 <= dims <= 4:
        raise ValueError(f"tensor {name[:80]!r} has {dims} dimensions")
    shape = tuple(cursor.number("<Q") for _ in range(dims))
    return GgufTensor(name, shape[::-1], cursor.number("<I"), cursor.number("<Q"))
