"""Packed weights on disk, made once per source and scheme and mapped from then on.

Two files per model: ``KEY.safetensors`` with our tensors, and ``KEY.json`` with the description, size and checksums.
The description and the header are held against their SHA-256 each time, and the size against the file's; the data's own
SHA-256, which takes seconds for large models, is written too and checked by ``verify`` (``qak doctor --cache``). Files
are written beside their place, synced and renamed, the description last, so that what can be found is whole.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import struct
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, cast

import torch

from qwen_agent_kit.errors import ModelError
from qwen_agent_kit.models.parked import ParkedLayers
from qwen_agent_kit.models.safetensors_file import MAX_HEADER, SafetensorsFile
from qwen_agent_kit.paths import write_private

__all__ = ["CACHE_BYTES", "WeightCache", "file_digest"]

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer as Buffer

_LOG = logging.getLogger("qwen_agent_kit")

LAYOUT = 1
"""Raised whenever packed tensors change their names, order or meaning."""

CACHE_BYTES = 64 * 2**30
"""The least recently used models are dropped beyond this."""

_PER_TENSOR = 160
_NAMES = {
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.int32: "I32",
}


class WeightCache:
    """A directory of packed models.

    Args:
        folder: Made private if missing.
        most_bytes: What all models together may take.
    """

    def __init__(self, folder: Path, *, most_bytes: int = CACHE_BYTES) -> None:
        self.folder = folder
        self._most = most_bytes
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def digest(self, path: Path) -> str:
        """SHA-256 of a file, remembered by its path, size, time and inode so that an unchanged file is read once."""
        known = path.stat()
        stamp = [known.st_size, known.st_mtime_ns, known.st_ino]
        place = self.folder / f"{hashlib.sha256(os.fsencode(path.absolute())).hexdigest()[:32]}.digest"
        try:
            kept = json.loads(place.read_bytes())
            if kept["stamp"] == stamp and isinstance(kept["sha256"], str) and len(kept["sha256"]) == 64:
                return str(kept["sha256"])
        except (OSError, ValueError, KeyError, TypeError):
            pass  # not there yet, or damaged: read the file
        found = file_digest(path)
        try:
            write_private(place, json.dumps({"stamp": stamp, "sha256": found}).encode())
        except OSError as error:
            _LOG.warning("a digest could not be kept: %s", error.strerror)
        return found

    def load(self, key: str) -> tuple[dict[str, torch.Tensor], dict[str, Any]] | None:
        """The tensors, mapped, and the description of a packed model; None where it is not here or not whole."""
        try:
            found = self._open(key)
            return None if found is None else ({name: found[0].mapped(name) for name in found[0].entries}, found[1])
        except (OSError, ModelError, KeyError, struct.error):
            return None

    def load_parked(self, key: str, layers: range) -> tuple[ParkedLayers, dict[str, Any]] | None:
        """The same with some ``layers`` left on disk and everything else read into memory.

        Raises:
            ModelError: Where the file is cut while it is read.
        """
        try:
            found = self._open(key)
        except (OSError, ModelError, KeyError, struct.error):
            return None
        return None if found is None else (ParkedLayers(found[0], layers), found[1])

    def _open(self, key: str) -> tuple[SafetensorsFile, dict[str, Any]] | None:
        weights, described = self._paths(key)
        record = _opened(described)
        if record is None or record["size"] != weights.stat().st_size:
            return None
        with weights.open("rb") as opened:
            if record["header_sha256"] != hashlib.sha256(_header(opened)).hexdigest():
                return None
        file = SafetensorsFile(weights)
        os.utime(described)
        return file, record["model"]

    def store(
        self, key: str, tensors: Iterable[tuple[str, torch.Tensor]], model: Mapping[str, Any], *, most: int
    ) -> None:
        """Write a packed model, one tensor at a time.

        Args:
            key: Its name.
            tensors: In the order in which they are kept.
            model: JSON data that describes it.
            most: How many tensors there are, at most.

        Raises:
            OSError: Where it cannot be written; nothing is left behind.
        """
        weights, described = self._paths(key)
        handle, temporary = tempfile.mkstemp(dir=self.folder, prefix=f".{key}.")
        try:
            with os.fdopen(handle, "w+b") as file:
                record = _write(file, tensors, most)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, weights)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
        try:
            write_private(described, _sealed({**record, "layout": LAYOUT, "model": model}))
        except BaseException:
            weights.unlink(missing_ok=True)  # nobody would find it, or make room by dropping it
            raise
        self._trim(described)

    def verify(self) -> list[str]:
        """Read every packed model whole; one line for each that is damaged."""
        problems = []
        for described in sorted(self.folder.glob("*.json")):
            key = described.stem
            record = _opened(described)
            if record is None or self.load(key) is None:
                problems.append(f"{key}: the header or the size is wrong")
            elif record["data_sha256"] != _data_digest(self._paths(key)[0]):
                problems.append(f"{key}: the data do not match their checksum")
        return problems

    def forget(self, key: str) -> None:
        """Delete a packed model; its maps stay valid where it is open."""
        for path in reversed(self._paths(key)):
            path.unlink(missing_ok=True)

    def _paths(self, key: str) -> tuple[Path, Path]:
        return self.folder / f"{key}.safetensors", self.folder / f"{key}.json"

    def _trim(self, newest: Path) -> None:
        kept = sorted(self.folder.glob("*.json"), key=lambda p: p.stat().st_mtime, reverse=True)
        total = 0
        for described in sorted(kept, key=lambda p: p != newest):
            weights = self._paths(described.stem)[0]
            total += weights.stat().st_size if weights.exists() else 0
            if total > self._most and described != newest:
                self.forget(described.stem)


def file_digest(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write(file: BinaryIO, tensors: Iterable[tuple[str, torch.Tensor]], most: int) -> dict[str, Any]:
    """Leave room for the header, write the data, then the header, filled up with spaces."""
    room = -(-(8 + 64 + most * _PER_TENSOR) // 4096) * 4096 - 8
    file.seek(8 + room)
    data, at = hashlib.sha256(), 0
    entries: dict[str, Any] = {}
    for name, tensor in tensors:
        raw = memoryview(cast("Buffer", tensor.detach().contiguous().view(-1).view(torch.uint8).numpy()))
        file.write(raw)
        data.update(raw)
        span = [at, at + len(raw)]
        entries[name] = {"dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": span}
        at += len(raw)
    text = json.dumps(entries, separators=(",", ":")).encode()
    assert len(text) <= room, f"a header of {len(text)} bytes was given {room}"
    header = struct.pack("<Q", room) + text.ljust(room)
    file.seek(0)
    file.write(header)
    return {
        "size": len(header) + at,
        "header_sha256": hashlib.sha256(header).hexdigest(),
        "data_sha256": data.hexdigest(),
    }


def _header(file: BinaryIO) -> bytes:
    prefix = file.read(8)
    length = struct.unpack("<Q", prefix)[0]
    return prefix + file.read(min(length, MAX_HEADER))


def _data_digest(path: Path) -> str:
    with path.open("rb") as file:
        _header(file)
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sealed(record: Mapping[str, Any]) -> bytes:
    text = json.dumps(record, separators=(",", ":"))
    return json.dumps({"sha256": hashlib.sha256(text.encode()).hexdigest(), "record": text}).encode()


def _opened(path: Path) -> dict[str, Any] | None:
    """What ``_sealed`` wrote, None where it is missing, damaged or of another layout."""
    try:
        sealed = json.loads(path.read_bytes())
        text = sealed["record"]
        if hashlib.sha256(text.encode()).hexdigest() != sealed["sha256"]:
            return None
        record = json.loads(text)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return record if isinstance(record, dict) and record.get("layout") == LAYOUT else None
