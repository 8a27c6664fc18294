"""GGUF files as weights: the checked header of ``placement.gguf``, and the ``gguf`` package to dequantise."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np
import torch

from qwen_agent_kit.errors import ModelError
from qwen_agent_kit.models.naming import Naming, naming_for
from qwen_agent_kit.models.safetensors_file import read_into
from qwen_agent_kit.placement.gguf import GGUFTensor, read_gguf, refuse

__all__ = ["GGUFFile", "GGUFModel"]


@dataclass(frozen=True, slots=True)
class _Entry:
    kind: int
    shape: tuple[int, ...]
    offset: int
    size: int


class GGUFFile:
    """One file: metadata and tensor table, both checked; data copied out, tensor by tensor.

    Raises:
        ModelError: Names the file, and the key or tensor at fault.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        header = read_gguf(path)
        self.metadata = header.metadata
        self._size = header.size
        self.entries = {tensor.name: self._entry(tensor) for tensor in header.tensors}
        end = 0
        for name, entry in sorted(self.entries.items(), key=lambda item: item[1].offset):
            if entry.offset < end:
                refuse(path.name, f"says `{name[:200]}` begins at {entry.offset}, inside the tensor before it")
            end = entry.offset + entry.size

    def _entry(self, tensor: GGUFTensor) -> _Entry:
        from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

        name, shape = tensor.name[:200], tensor.shape
        try:
            block, block_bytes = GGML_QUANT_SIZES[GGMLQuantizationType(tensor.kind)]
        except (ValueError, KeyError):
            refuse(self.path.name, f"gives `{name}` the unknown type {tensor.kind}")
        count = prod(shape)
        if not 0 < count < 2**48 or shape[-1] % block:
            refuse(self.path.name, f"gives `{name}` the shape {list(shape)}; rows must be whole blocks of {block}")
        size = count // block * block_bytes
        end = tensor.offset + size
        if end > self._size:
            refuse(self.path.name, f"says `{name}` ends at {end}; the file has {self._size} bytes")
        return _Entry(tensor.kind, shape, tensor.offset, size)

    def read(self, name: str, index: int | None = None) -> torch.Tensor:
        """A tensor in float32, or one slice along its first axis.

        Raises:
            ModelError: Where its type cannot be dequantised, or the file was cut since its header was read.
        """
        from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
        from gguf.quants import dequantize

        entry = self.entries[name]
        shape, offset, size = entry.shape, entry.offset, entry.size
        if index is not None:
            size //= shape[0]
            offset, shape = offset + index * size, shape[1:]
        held = torch.empty(size, dtype=torch.uint8)
        read_into(held, self.path, offset)
        raw: np.ndarray = held.numpy()
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
