"""GGUF files: a header walk of our own with every count and offset checked, and the ``gguf`` package to dequantise.

Format: github.com/ggml-org/ggml docs/gguf.md, versions 2 and 3, little-endian.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch

from qwen_agent_kit.errors import ModelError
from qwen_agent_kit.models.naming import Naming, naming_for

__all__ = ["GGUFFile", "GGUFModel"]

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
MAX_ITEMS = 2**22
MAX_KEYS = 2**16
MAX_TENSORS = 2**18


@dataclass(frozen=True, slots=True)
class _Entry:
    kind: int
    shape: tuple[int, ...]
    offset: int
    size: int


class _Cursor:
    """Reads forward through a map; refuses to leave it."""

    def __init__(self, data: mmap.mmap, name: str) -> None:
        self._data, self._name = data, name
        self.at = 0

    def refuse(self, what: str) -> NoReturn:
        raise ModelError(f"`{self._name}` {what}", hint="the file is damaged; fetch it again", code="invalid_weights")

    def take(self, count: int) -> bytes:
        end = self.at + count
        if end > len(self._data):
            self.refuse(f"ends in its header: {count} bytes are wanted at {self.at} of {len(self._data)}")
        taken = self._data[self.at : end]
        self.at = end
        return taken

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
        inner, count = self.number("I"), self.number("Q")
        if count > MAX_ITEMS or inner == _ARRAY:
            self.refuse(f"gives `{key}` {count} items or lists of lists; allowed: at most {MAX_ITEMS} plain items")
        if inner == _STRING:
            return [self.text() for _ in range(count)]
        if inner not in _SCALARS:
            self.refuse(f"gives `{key}` items of the unknown type {inner}")
        form = f"<{count}{_SCALARS[inner]}"
        return list(struct.unpack(form, self.take(struct.calcsize(form))))


class GGUFFile:
    """One file: metadata and tensor table, both checked; data mapped.

    Raises:
        ModelError: Names the file, and the key or tensor at fault.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with path.open("rb") as file:
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:  # mmap refuses an empty file with ValueError
            raise ModelError(f"`{path}` cannot be read: {getattr(error, 'strerror', None) or 'it is empty'}") from error
        cursor = _Cursor(self._map, path.name)
        magic, version = cursor.take(4), cursor.number("I")
        if magic != b"GGUF" or version not in (2, 3):
            cursor.refuse(f"begins with {magic!r}, version {version}; allowed: GGUF, 2 or 3, little-endian")
        tensors, keys = cursor.number("Q"), cursor.number("Q")
        if tensors > MAX_TENSORS or keys > MAX_KEYS:
            cursor.refuse(f"says it has {tensors} tensors and {keys} keys; allowed: {MAX_TENSORS} and {MAX_KEYS}")
        self.metadata = self._metadata(cursor, keys)
        self.entries = self._table(cursor, tensors)

    def _metadata(self, cursor: _Cursor, count: int) -> dict[str, Any]:
        metadata: dict[str, Any] = {}
        for _ in range(count):
            key = cursor.text()
            if key in metadata:
                cursor.refuse(f"has the key `{key[:200]}` twice")
            metadata[key] = cursor.value(cursor.number("I"), key[:200])
        return metadata

    def _table(self, cursor: _Cursor, count: int) -> dict[str, _Entry]:
        raw = []
        for _ in range(count):
            name, dims = cursor.text(), cursor.number("I")
            if not 1 <= dims <= 4:
                cursor.refuse(f"gives `{name[:200]}` {dims} dimensions; allowed: 1 to 4")
            sizes = [cursor.number("Q") for _ in range(dims)]
            raw.append((name, tuple(reversed(sizes)), cursor.number("I"), cursor.number("Q")))
        align = self.metadata.get("general.alignment", 32)
        if not isinstance(align, int) or not 8 <= align <= 2**16 or align & (align - 1):
            cursor.refuse(f"has the alignment {align!r}; allowed: a power of two from 8 to {2**16}")
        base = -(-cursor.at // align) * align
        entries: dict[str, _Entry] = {}
        for name, shape, kind, offset in raw:
            if name in entries:
                cursor.refuse(f"has the tensor `{name[:200]}` twice")
            entries[name] = self._entry(cursor, name[:200], shape, kind, base + offset)
        end = 0
        for name, entry in sorted(entries.items(), key=lambda item: item[1].offset):
            if entry.offset < end:
                cursor.refuse(f"says `{name[:200]}` begins at {entry.offset}, inside the tensor before it")
            end = entry.offset + entry.size
        return entries

    def _entry(self, cursor: _Cursor, name: str, shape: tuple[int, ...], kind: int, offset: int) -> _Entry:
        from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

        try:
            block, block_bytes = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
        except (ValueError, KeyError):
            cursor.refuse(f"gives `{name}` the unknown type {kind}")
        count = prod(shape)
        if not 0 < count < 2**48 or shape[-1] % block:
            cursor.refuse(f"gives `{name}` the shape {list(shape)}; rows must be whole blocks of {block}")
        size = count // block * block_bytes
        if offset + size > len(self._map):
            cursor.refuse(f"says `{name}` ends at {offset + size}; the file has {len(self._map)} bytes")
        return _Entry(kind, shape, offset, size)

    def read(self, name: str, index: int | None = None) -> torch.Tensor:
        """A tensor in float32, or one slice along its first axis.

        Raises:
            ModelError: Where its type cannot be dequantised.
        """
        from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
        from gguf.quants import dequantize

        entry = self.entries[name]
        shape, offset, size = entry.shape, entry.offset, entry.size
        if index is not None:
            size //= shape[0]
            offset, shape = offset + index * size, shape[1:]
        raw = np.frombuffer(self._map, np.uint8, size, offset)
        kind = GGMLQuantizationType(entry.kind)
        if kind in (GGMLQuantizationType.F32, GGMLQuantizationType.F16):
            values = raw.view(np.float32 if kind == GGMLQuantizationType.F32 else np.float16).astype(np.float32)
        else:
            block, block_bytes = GGML_QUANT_SIZES[kind]
            try:
                values = dequantize(raw.reshape(-1, shape[-1] // block * block_bytes), kind)
            except NotImplementedError as error:
                raise ModelError(
                    f"`{name[:200]}` in `{self.path.name}` is of type {kind.name}, which is not supported"
                ) from error
        return torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32)).view(shape)


class GGUFModel:
    """The weights of a GGUF file as a ``packing.Checkpoint``."""

    def __init__(self, file: GGUFFile, *, heads: int, kv_heads: int) -> None:
        self._file = file
        arch = file.metadata.get("general.architecture")
        self.naming: Naming = naming_for("gguf-qwen" if arch == "qwen" else "gguf", file.entries)
        # llama.cpp's converter reorders the rows of llama's queries and keys for its own rotary layout.
        self._permuted: Mapping[str, int] = {"attn_q.": heads, "attn_k.": kv_heads} if arch == "llama" else {}

    def shape(self, name: str) -> tuple[int, ...] | None:
        """Of a tensor, None where there is none of this name."""
        entry = self._file.entries.get(name)
        return None if entry is None else entry.shape

    def where(self, name: str) -> str:
        """The file's name."""
        del name  # all are in one file
        return self._file.path.name

    def read(self, name: str, index: int | None = None) -> torch.Tensor:
        """A tensor in float32, in transformers' row order."""
        tensor = self._file.read(name, index)
        for mark, heads in self._permuted.items():
            if mark in name:
                rows = tensor.shape[0] // heads // 2
                tensor = tensor.view(heads, rows, 2, -1).transpose(1, 2).reshape(tensor.shape)
        return tensor
