"""Safetensors files, read by our own few lines: a checked header, then the data, copied out or mapped.

Checkpoints are copied out, tensor by tensor: a file that is cut meanwhile is then an error, where touching a map of it
would be a signal that ends the process. Packed weights, which nobody else writes, are mapped.

Format: 8 bytes of header length, a JSON header, the data (github.com/huggingface/safetensors, README "Format").
"""

from __future__ import annotations

import json
import mmap
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, cast

import torch

from qwen_agent_kit.errors import ModelError
from qwen_agent_kit.models.fields import read_json
from qwen_agent_kit.models.naming import Naming, naming_for

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer as Buffer

__all__ = ["SafetensorsFile", "SafetensorsModel", "read_into", "tensor_at"]

MAX_HEADER = 100 * 2**20  # the library's own limit
MAX_TENSORS = 2**20

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}
_FLOATS = frozenset({"F64", "F32", "F16", "BF16"})


@dataclass(frozen=True, slots=True)
class _Entry:
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


class SafetensorsFile:
    """One file: its header checked whole, its data mapped and read on demand.

    Raises:
        ModelError: Names the file, and the tensor where one is at fault: a header that is too long, cut or no JSON, a
            name twice, an unknown dtype, offsets past the end, that do not fit the shape, overlap or leave gaps.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._map: mmap.mmap | None = None
        try:
            with path.open("rb") as file:
                size = path.stat().st_size
                prefix = file.read(8)
                if len(prefix) < 8:
                    self._refuse(f"has {size} bytes; a header takes at least 8")
                length = struct.unpack("<Q", prefix)[0]
                if length > MAX_HEADER or 8 + length > size:
                    self._refuse(f"says its header has {length} bytes; it has {size} in all, and at most {MAX_HEADER}")
                header = file.read(length)
        except OSError as error:
            raise ModelError(f"`{path}` cannot be read: {error.strerror}") from error
        self._data = 8 + length
        self.metadata, self.entries = self._entries(self._parsed(header), size - self._data)

    def _refuse(self, what: str) -> NoReturn:
        raise ModelError(
            f"`{self.path.name}` {what}", hint="the file is damaged; fetch it again", code="invalid_weights"
        )

    def _parsed(self, header: bytes) -> dict[str, Any]:
        def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
            made: dict[str, Any] = {}
            for key, value in pairs:
                if key in made:
                    self._refuse(f"has `{key[:200]}` twice in its header")
                made[key] = value
            return made

        try:
            data = json.loads(header, object_pairs_hook=unique)
        except (ValueError, RecursionError):
            self._refuse("has a header that is no JSON")
        if not isinstance(data, dict) or len(data) > MAX_TENSORS:
            self._refuse("has a header that is no object, or holds too many tensors")
        return data

    def _entries(self, header: dict[str, Any], size: int) -> tuple[dict[str, str], dict[str, _Entry]]:
        metadata = header.pop("__metadata__", None) or {}
        if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
            self._refuse("has `__metadata__` that is not strings")
        entries = {name: self._entry(name, given) for name, given in header.items()}
        for name, entry in entries.items():
            if entry.end > size:
                self._refuse(f"says `{name[:200]}` ends at {entry.end}; the data has {size} bytes")
        end = 0
        for name, entry in sorted(entries.items(), key=lambda item: (item[1].start, item[1].end)):
            if entry.start != end:
                kind = "overlaps another tensor" if entry.start < end else "leaves a gap before it"
                self._refuse(f"says `{name[:200]}` begins at {entry.start}, which {kind} that ends at {end}")
            end = entry.end
        if end != size:
            self._refuse(f"has {size} bytes of data; its tensors take {end}")
        return metadata, entries

    def _entry(self, name: str, given: Any) -> _Entry:
        label = name[:200]
        if not isinstance(given, Mapping) or set(given) != {"dtype", "shape", "data_offsets"}:
            self._refuse(f"describes `{label}` with other fields than dtype, shape and data_offsets")
        dtype, shape, offsets = given["dtype"], given["shape"], given["data_offsets"]
        if not isinstance(dtype, str) or dtype not in _DTYPES:
            self._refuse(f"gives `{label}` the dtype {str(dtype)[:40]!r}; allowed: {', '.join(_DTYPES)}")
        if not _counts(shape, 8) or not _counts(offsets, 2) or len(offsets) != 2:
            self._refuse(f"gives `{label}` a shape or offsets that are not whole numbers from 0 on")
        start, end = offsets
        if end - start != prod(shape) * _DTYPES[dtype].itemsize:
            self._refuse(
                f"gives `{label}` {end - start} bytes; its shape {list(shape)} of {dtype} takes another number"
            )
        return _Entry(dtype, tuple(shape), start, end)

    def read(self, name: str, index: int | None = None) -> torch.Tensor:
        """A copy of a tensor, or of one slice along its first axis.

        Raises:
            ModelError: Where there is none of this name, or the file was cut since its header was read.
        """
        entry = self._known(name)
        shape, start, dtype = entry.shape, self._data + entry.start, _DTYPES[entry.dtype]
        if index is not None:
            shape = shape[1:]
            start += index * prod(shape) * dtype.itemsize
        made = torch.empty(shape, dtype=dtype)
        read_into(made, self.path, start)
        return made

    def _known(self, name: str) -> _Entry:
        entry = self.entries.get(name)
        if entry is None:
            self._refuse(f"holds no tensor `{name}`")
        return entry

    def mapped(self, name: str) -> torch.Tensor:
        """A tensor whose memory is the file's; private to this process, so that nothing written reaches the file.

        Raises:
            ModelError: Where there is none of this name.
        """
        if self._map is None:
            with self.path.open("rb") as file:
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        return self.tensor(name, self._map)

    def shared(self) -> tuple[mmap.mmap, int]:
        """A map of the whole file that cannot be written to, whose pages are the system's, and where the data begin."""
        with self.path.open("rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), self._data

    def tensor(self, name: str, data: mmap.mmap) -> torch.Tensor:
        """A tensor that lies in a map of this file."""
        entry = self._known(name)
        return tensor_at(data, self._data + entry.start, _DTYPES[entry.dtype], entry.shape)


def _counts(value: Any, most: int) -> bool:
    return (
        isinstance(value, list)
        and len(value) <= most
        and all(isinstance(v, int) and not isinstance(v, bool) and 0 <= v < 2**62 for v in value)
    )


def read_into(tensor: torch.Tensor, path: Path, offset: int) -> None:
    """Fill a contiguous tensor from the bytes of a file.

    Raises:
        ModelError: Where the file ends before, or cannot be read.
    """
    raw = memoryview(cast("Buffer", tensor.view(-1).view(torch.uint8).numpy()))
    try:
        with path.open("rb", buffering=0) as file:
            file.seek(offset)
            while raw:
                got = file.readinto(raw)
                if not got:
                    raise ModelError(
                        f"`{path.name}` was cut while it was read: {len(raw)} bytes are missing",
                        hint="fetch it again, and let nothing else write to it meanwhile",
                        code="invalid_weights",
                    )
                raw = raw[got:]
    except OSError as error:
        raise ModelError(f"`{path}` cannot be read: {error.strerror}") from error


def tensor_at(data: mmap.mmap, offset: int, dtype: torch.dtype, shape: tuple[int, ...]) -> torch.Tensor:
    """The tensor that lies at an offset of a map; copied where the offset is not aligned for its dtype."""
    count = prod(shape)
    if not count:
        return torch.empty(shape, dtype=dtype)
    if offset % dtype.itemsize:
        raw = bytearray(data[offset : offset + count * dtype.itemsize])
        return torch.frombuffer(raw, dtype=dtype).view(shape)
    return torch.frombuffer(data, dtype=dtype, count=count, offset=offset).view(shape)


class SafetensorsModel:
    """The weights of a model directory: one file, or several behind an index. A ``packing.Checkpoint``.

    Args:
        folder: Holds ``model.safetensors``, or ``model.safetensors.index.json`` and what it names.
        convention: See ``naming``.

    Raises:
        ModelError: Where there is no safetensors file, where one is refused, or where two hold one name.
    """

    def __init__(self, folder: Path, convention: str) -> None:
        self.folder = folder
        self.paths = weight_files(folder)
        self._files = [SafetensorsFile(path) for path in self.paths]
        self._homes: dict[str, SafetensorsFile] = {}
        for file in self._files:
            for name in file.entries:
                if name in self._homes:
                    other = self._homes[name].path.name
                    raise ModelError(
                        f"`{name[:200]}` is in `{other}` and again in `{file.path.name}`", code="invalid_weights"
                    )
                self._homes[name] = file
        self.naming: Naming = naming_for(convention, self._homes)

    @property
    def names(self) -> tuple[str, ...]:
        """Of all tensors."""
        return tuple(self._homes)

    def shape(self, name: str) -> tuple[int, ...] | None:
        """Of a tensor, None where there is none of this name."""
        file = self._homes.get(name)
        return None if file is None else file.entries[name].shape

    def dtype(self, name: str) -> str:
        """As the file names it, empty where there is no tensor of this name."""
        file = self._homes.get(name)
        return "" if file is None else file.entries[name].dtype

    def raw(self, name: str) -> torch.Tensor:
        """A tensor of any dtype."""
        return self._homes[name].read(name)

    def where(self, name: str) -> str:
        """The file that a tensor is in; the directory where it is in none."""
        file = self._homes.get(name)
        return (self.folder if file is None else file.path).name

    def read(self, name: str, index: int | None = None) -> torch.Tensor:
        """A tensor, or one slice along its first axis, as the file holds it.

        Raises:
            ModelError: Where it is not of a floating dtype.
        """
        file = self._homes[name]
        if (dtype := file.entries[name].dtype) not in _FLOATS:
            raise ModelError(
                f"`{name}` in `{file.path.name}` is of dtype {dtype}; allowed: {', '.join(sorted(_FLOATS))}",
                hint="config.json does not say how it was quantised",
                code="invalid_weights",
            )
        return file.read(name, index)


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a model directory, in order of their names.

    Raises:
        ModelError: Where there are none; pickled checkpoints are named and refused.
    """
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if index.is_file():
        return _sharded(folder, index)
    if single.is_file():
        return [single]
    found = sorted(path for path in folder.glob("*.safetensors") if path.is_file())
    if len(found) == 1:
        return found
    pickled = sorted(p.name for p in folder.iterdir() if p.suffix in (".bin", ".pt", ".pth", ".pkl", ".ckpt"))
    if pickled and not found:
        raise ModelError(
            f"`{pickled[0]}` is a pickled checkpoint, which can run code when opened; allowed: .safetensors, .gguf",
            hint="take the model's safetensors files, or convert it where you trust it",
            code="pickled_weights",
        )
    what = f"{len(found)} safetensors files and no index" if found else "no safetensors file"
    raise ModelError(
        f"`{folder}` holds {what}; allowed: model.safetensors, or model.safetensors.index.json and its files",
        hint="fetch the model again",
    )


def _sharded(folder: Path, index: Path) -> list[Path]:
    shards = read_json(index).get("weight_map")
    if not isinstance(shards, dict) or not shards or len(shards) > MAX_TENSORS:
        raise ModelError(f"`{index.name}` has no `weight_map`", code="invalid_weights")
    paths = []
    for name in sorted({str(shard) for shard in shards.values()}):
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise ModelError(
                f"`{index.name}` names {name[:200]!r}; allowed: .safetensors files beside it", code="invalid_weights"
            )
        if not (folder / name).is_file():
            raise ModelError(f"`{name}` is missing; `{index.name}` names it", hint="fetch the model again")
        paths.append(folder / name)
    return paths
