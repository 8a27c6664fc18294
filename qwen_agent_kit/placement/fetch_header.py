"""What a model consists of, read from its headers alone: on a hub by range requests, here from its files.

A safetensors file begins with a table of its tensors, a GGUF file with its metadata and the same; both take a few
megabytes at most where the weights take gigabytes.
"""

from __future__ import annotations

import json
import struct
import tempfile
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any, NoReturn

from qwen_agent_kit import net
from qwen_agent_kit.errors import FetchError, ModelError
from qwen_agent_kit.placement.fetch_choice import choose, refuse_code
from qwen_agent_kit.placement.fetch_hubs import Reference, RemoteFile, headers_for, list_files, refusal
from qwen_agent_kit.placement.gguf import GGUFHeader, read_gguf

__all__ = ["ModelHeader", "TensorInfo", "read_header"]

FIRST = 512 * 2**10
"""Bytes of the first request; more than most safetensors headers take."""

MAX_HEADER = 100 * 2**20
_CONFIG_BYTES = 2**22
_GGUF_STEPS = (2**20, 2**24, 2**26, MAX_HEADER)


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """A tensor as its file's header has it: ``dtype`` as the format names it, ``size`` in bytes."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    size: int
    file: str


@dataclass(frozen=True)
class ModelHeader:
    """All that can be known of a model without its weights.

    Args:
        name: As it was asked for.
        commit: The hub's, empty for a local model.
        config: config.json, empty for a GGUF file.
        tensors: Every tensor; for GGUF ``dtype`` is ``ggml:TYPE``, and sizes run to the next tensor.
        files: Bytes by file, of what would be fetched.
        gguf: The header of a GGUF file, arrays as their lengths.
    """

    name: str
    commit: str = ""
    config: Mapping[str, Any] = field(default_factory=dict)
    tensors: tuple[TensorInfo, ...] = ()
    files: Mapping[str, int] = field(default_factory=dict)
    gguf: GGUFHeader | None = None

    @property
    def weight_bytes(self) -> int:
        """What the tensors take as they are."""
        return sum(tensor.size for tensor in self.tensors)


def read_header(model: Reference | Path, *, token: str | None = None) -> ModelHeader:
    """Read a model's headers: of a hub model by range requests, of a local directory or GGUF file from disk.

    Raises:
        FetchError: Where the hub cannot be reached or refuses.
        ModelError: Where the model is refused, or a header is damaged; names the file.
    """
    return _local(model) if isinstance(model, Path) else _remote(model, token)


def _remote(reference: Reference, token: str | None) -> ModelHeader:
    listing = list_files(reference, token)
    chosen = choose(listing)
    headers = headers_for(reference, token)
    sizes = {file.path: file.size for file in chosen}
    if chosen[0].path.lower().endswith(".gguf"):
        gguf = _remote_gguf(reference, chosen[0], headers)
        tensors = _gguf_tensors(gguf, chosen[0].path)
        return ModelHeader(str(reference), listing.commit, {}, tensors, sizes, gguf)
    config: dict[str, Any] = {}
    for file in chosen:
        if file.path == "config.json":
            config = _config(_range(reference, file, 0, min(file.size, _CONFIG_BYTES), headers), str(reference))
    weights = [file for file in chosen if file.path.endswith(".safetensors")]
    with ThreadPoolExecutor(8, thread_name_prefix="qak-header") as pool:
        tables = pool.map(lambda file: _remote_table(reference, file, headers), weights)
        tensors = tuple(tensor for table in tables for tensor in table)
    return ModelHeader(str(reference), listing.commit, config, tensors, sizes)


def _local(path: Path) -> ModelHeader:
    if path.is_file():
        gguf = read_gguf(path, arrays=False)
        return ModelHeader(path.name, "", {}, _gguf_tensors(gguf, path.name), {path.name: gguf.size}, gguf)
    files = sorted(file for file in path.glob("*.safetensors") if file.is_file())
    tensors: list[TensorInfo] = []
    for file in files:
        with file.open("rb") as opened:
            prefix = opened.read(8)
            length = _length(prefix, file.stat().st_size, file.name)
            tensors.extend(_table(opened.read(length), file.name))
    try:
        config = _config((path / "config.json").read_bytes(), path.name)
    except OSError as error:
        raise ModelError(f"cannot read `{path / 'config.json'}`", hint="a model directory holds it") from error
    return ModelHeader(path.name, "", config, tuple(tensors), {file.name: file.stat().st_size for file in files})


def _config(data: bytes, where: str) -> dict[str, Any]:
    try:
        config = json.loads(data)
    except (ValueError, RecursionError):
        config = None
    if not isinstance(config, dict):
        raise ModelError(f"`config.json` of `{where}` is no JSON object", code="invalid_config")
    refuse_code(config, where)
    return config


def _range(reference: Reference, file: RemoteFile, start: int, end: int, headers: Mapping[str, str]) -> bytes:
    """The bytes from ``start`` to ``end``; a server that does not know ranges is left after as many."""
    if end <= start:
        return b""
    asked = {**headers, "Range": f"bytes={start}-{end - 1}"}
    with net.open_url(file.url, trust="configured", headers=asked, seconds=60.0) as reply:
        if reply.status not in (200, 206):
            raise refusal(reference, reply)
        skip = start if reply.status == 200 else 0
        parts, have = [], 0
        for chunk in reply.chunks():
            parts.append(chunk)
            have += len(chunk)
            if have >= skip + end - start:
                break
    data = b"".join(parts)[skip : skip + end - start]
    if len(data) < end - start:
        raise FetchError(f"`{file.path}` of `{reference}` ended after {len(data)} of {end - start} bytes asked for")
    return data


def _remote_table(reference: Reference, file: RemoteFile, headers: Mapping[str, str]) -> list[TensorInfo]:
    data = _range(reference, file, 0, min(file.size, FIRST), headers)
    length = _length(data[:8], file.size, file.path)
    if 8 + length > len(data):
        data += _range(reference, file, len(data), 8 + length, headers)
    return list(_table(data[8 : 8 + length], file.path))


def _damaged(name: str, what: str) -> NoReturn:
    raise ModelError(f"`{name}` {what}", hint="the file is damaged; take another revision", code="invalid_weights")


def _length(prefix: bytes, size: int, name: str) -> int:
    length: int = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else size
    if 8 + length > size or length > MAX_HEADER:
        _damaged(name, f"says its header has {length} bytes; it has {size} in all")
    return length


def _table(header: bytes, name: str) -> Iterable[TensorInfo]:
    try:
        data = json.loads(header)
        for key, entry in data.items():
            if key == "__metadata__":
                continue
            start, end = (int(v) for v in entry["data_offsets"])
            if not 0 <= start <= end:
                raise ValueError
            yield TensorInfo(key, str(entry["dtype"]), tuple(int(v) for v in entry["shape"]), end - start, name)
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError):
        _damaged(name, "has a header that is no table of tensors")


def _remote_gguf(reference: Reference, file: RemoteFile, headers: Mapping[str, str]) -> GGUFHeader:
    """Read ever more of the file's beginning into a sparse copy of its length, until the table lies within."""
    with tempfile.TemporaryDirectory(prefix="qak-header-") as folder:
        path = Path(folder) / Path(file.path).name
        have = 0
        for step in _GGUF_STEPS:
            end = min(step, file.size)
            with path.open("ab") as out:
                out.truncate(have)
                out.seek(have)
                out.write(_range(reference, file, have, end, headers))
                have = end
                out.truncate(file.size)
            try:
                header = read_gguf(path, arrays=False)
            except ModelError:
                if end in (file.size, MAX_HEADER):
                    raise
                continue
            if min((tensor.offset for tensor in header.tensors), default=0) <= have:
                return header  # the data begins within what was read, so the table before it was read whole
    _damaged(file.path, f"has no table of tensors in its first {MAX_HEADER} bytes")


def _gguf_tensors(header: GGUFHeader, name: str) -> tuple[TensorInfo, ...]:
    placed = sorted(header.tensors, key=lambda tensor: tensor.offset)
    ends = [tensor.offset for tensor in placed[1:]] + [header.size]
    return tuple(
        TensorInfo(t.name, f"ggml:{t.kind}", t.shape, max(0, end - t.offset), name)
        for t, end in zip(placed, ends, strict=True)
        if prod(t.shape)
    )
