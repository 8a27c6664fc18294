"""FP8 as transformers and DeepSeek write it, and the formats of compressed-tensors: FP8, int8, and int4 in words.

Layouts: transformers integrations/finegrained_fp8; compressed_tensors/compressors of vllm-project/compressed-tensors.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from qwen_agent_kit.models.fields import Fields
from qwen_agent_kit.models.quantised import Matrix, Source, spread, unpack

__all__ = ["CompressedTensors", "Float8"]

_FLOATS = ("F32", "BF16", "F16")
_FP8 = ("F8_E4M3", "F8_E5M2")


class Float8:
    """``weight`` [N, K] in 8-bit floats, times ``weight_scale_inv`` or ``weight_scale``: one, or one a row or block.

    Raises:
        ModelError: For a block size that is none.
    """

    def __init__(self, fields: Fields) -> None:
        block = fields.wholes("weight_block_size", 1, 2**16, 2)
        if len(block) not in (0, 2):
            fields.refuse("weight_block_size", "two whole numbers")
        self.blocks = [(block[0], block[1])] if block else []

    def find(self, source: Source, module: str) -> Matrix | None:
        """See ``quantised.Method``."""
        if source.dtype(f"{module}.weight") not in _FP8:
            return None
        inverse = f"{module}.weight_scale_inv"
        return _scaled(source, module, inverse if source.has(inverse) else f"{module}.weight_scale", self.blocks)


class CompressedTensors:
    """What llm-compressor writes: ``float-quantized``, ``int-quantized`` and ``pack-quantized``.

    Raises:
        ModelError: For a format, a sparsity or a rotation that is not read.
    """

    def __init__(self, fields: Fields) -> None:
        for name in ("sparsity_config", "transform_config"):
            if fields.data.get(name):
                fields.refuse(name, "nothing")
        self.blocks: list[tuple[int, int]] = []
        self.bits: set[int] = set()
        groups = fields.data.get("config_groups")
        if not isinstance(groups, Mapping) or not 0 < len(groups) <= 1024:
            fields.refuse("config_groups", "an object")
        for group in groups.values():
            self._group(fields, group)

    def _group(self, fields: Fields, group: Any) -> None:
        given = group.get("weights") if isinstance(group, Mapping) else None
        if not isinstance(given, Mapping):
            fields.refuse("config_groups", "objects with `weights`")
        weights = Fields(given, fields.where)
        bits, kind = weights.whole("num_bits", 1, 64), weights.text("type")
        if (kind, bits) not in (("float", 8), ("int", 8), ("int", 4)):
            weights.refuse("num_bits", "8 for floats, 4 or 8 for integers")
        self.bits.add(bits)
        block = weights.wholes("block_structure", 1, 2**16, 2)
        if len(block) == 2:
            self.blocks.append((block[0], block[1]))
        if (size := weights.whole("group_size", -1, 2**17, -1)) > 0:
            self.blocks.append((1, size))

    def find(self, source: Source, module: str) -> Matrix | None:
        """See ``quantised.Method``."""
        if source.has(f"{module}.weight_packed"):
            return self._packed(source, module)
        if source.dtype(f"{module}.weight") in (*_FP8, "I8"):
            return _scaled(source, module, f"{module}.weight_scale", self.blocks)
        return None

    def _packed(self, source: Source, module: str) -> Matrix:
        name = f"{module}.weight_packed"
        told = f"{module}.weight_shape"
        source.expect(told, (2,), "I64", "I32")
        n, k = (int(v) for v in source.raw(told).tolist())
        bits = next((b for b in sorted(self.bits) if source.shape(name) == (n, -(-k * b // 32))), 0)
        if not bits or not 0 < n * k < 2**40:
            source.refuse(name, f"is of shape {list(source.shape(name))}; it does not hold the {n} x {k} of its shape")
        source.expect(name, (n, -(-k * bits // 32)), "I32")
        block = _block(source, f"{module}.weight_scale", (n, k), self.blocks)
        zeros, index = f"{module}.weight_zero_point", f"{module}.weight_g_idx"
        columns = -(-k // block[1])
        if source.has(zeros):
            source.expect(zeros, (-(-n * bits // 32), columns), "I32")
        if source.has(index):
            source.expect(index, (k,), "I32", "I64")

        def undo() -> torch.Tensor:
            middle = 1 << (bits - 1)
            values = unpack(source.raw(name), bits, rows=False)[:, :k].float() - middle
            scale = source.raw(f"{module}.weight_scale").float().view(-1, columns)
            zero = torch.zeros(n, columns)
            if source.has(zeros):
                zero = unpack(source.raw(zeros), bits, rows=True)[:n].float() - middle
            if not source.has(index):
                return (values - spread(zero, (n, k), (1, block[1]))) * spread(scale, (n, k), block)
            order = source.raw(index).long()
            if not 0 <= int(order.min()) <= int(order.max()) < columns:
                source.refuse(index, f"names groups outside 0 to {columns - 1}")
            return (values - zero[:, order]) * scale[:, order]

        return Matrix((n, k), undo)


def _scaled(source: Source, module: str, scale: str, blocks: list[tuple[int, int]]) -> Matrix:
    """A matrix of 8-bit values with a scale, and for integers perhaps a zero, per block."""
    name, zeros = f"{module}.weight", f"{module}.weight_zero_point"
    shape = source.shape(name)
    if len(shape) != 2 or not all(shape):
        source.refuse(name, f"is of shape {list(shape)}; allowed: two axes")
    n, k = shape
    block = _block(source, scale, (n, k), blocks)
    counts = (-(-n // block[0]), -(-k // block[1]))
    shifted = source.dtype(name) == "I8" and source.has(zeros)
    if shifted:
        source.expect(zeros, counts, "I8", "I32")

    def undo() -> torch.Tensor:
        values = source.raw(name).float()
        if shifted:
            values = values - spread(source.raw(zeros), (n, k), block)
        return values * spread(source.raw(scale).view(counts), (n, k), block)

    return Matrix((n, k), undo)


def _block(source: Source, scale: str, shape: tuple[int, int], blocks: list[tuple[int, int]]) -> tuple[int, int]:
    """How many rows and columns share a scale, told by how many scales there are."""
    n, k = shape
    found = source.shape(scale)
    source.expect(scale, found, *_FLOATS)
    counts = (*found, 1, 1)[:2] if len(found) != 1 else (found[0], 1)
    for rows, columns in ((n, k), (1, k), *blocks):
        if counts == (-(-n // rows), -(-k // columns)) and len(found) <= 2:
            break
    else:
        allowed = "one in all, one a row" + "".join(f", one per {r} x {c}" for r, c in blocks)
        source.refuse(scale, f"is of shape {list(found)} for a matrix of {n} x {k}; allowed: {allowed}")
    return min(rows, n), min(columns, k)
