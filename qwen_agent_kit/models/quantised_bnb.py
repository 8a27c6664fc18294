"""bitsandbytes as transformers serialises it: int8 rows, and nf4 or fp4 blocks, their scales perhaps quantised again.

Layouts: bitsandbytes/functional.py (QuantState.as_dict, dequantize_4bit, int8_vectorwise_dequant).
"""

from __future__ import annotations

import math

import torch

from qwen_agent_kit.errors import ModelError
from qwen_agent_kit.models.fields import Fields, parse_json
from qwen_agent_kit.models.quantised import Matrix, Source

__all__ = ["BitsAndBytes"]

_MOST_STATE = 2**16


class BitsAndBytes:
    """int8: ``weight`` [N, K] and ``SCB`` [N]. 4 bits: ``weight`` [N * K / 2, 1], two values a byte, the first high.

    Raises:
        ModelError: Where neither is named.
    """

    def __init__(self, fields: Fields) -> None:
        if not (fields.flag("load_in_4bit", False) or fields.flag("load_in_8bit", False)):
            fields.refuse("load_in_4bit", "true, or `load_in_8bit` true")

    def find(self, source: Source, module: str) -> Matrix | None:
        """See ``quantised.Method``."""
        name = f"{module}.weight"
        kind = source.dtype(name)
        if kind == "I8":
            return _int8(source, module)
        for form in ("nf4", "fp4"):
            if source.has(f"{name}.quant_state.bitsandbytes__{form}"):
                return _FourBits(source, name, form).matrix()
        return None


def _int8(source: Source, module: str) -> Matrix:
    name, scale = f"{module}.weight", f"{module}.SCB"
    shape = source.shape(name)
    if len(shape) != 2:
        source.refuse(name, f"is of shape {list(shape)}; allowed: two axes")
    source.expect(scale, (shape[0],), "F32", "F16")

    def undo() -> torch.Tensor:
        return source.raw(name).float() * (source.raw(scale).float() / 127.0).unsqueeze(1)

    return Matrix((shape[0], shape[1]), undo)


class _FourBits:
    """One matrix, its state read and held against its tensors."""

    def __init__(self, source: Source, name: str, form: str) -> None:
        self.source, self.name = source, name
        state = self._state(f"{name}.quant_state.bitsandbytes__{form}", form)
        shape = state.wholes("shape", 1, 2**24, 2)
        if len(shape) != 2:
            state.refuse("shape", "two whole numbers")
        self.shape = (shape[0], shape[1])
        self.block = state.whole("blocksize", 16, 2**16)
        count = shape[0] * shape[1]
        blocks = -(-count // self.block)
        if math.prod(source.shape(name)) != (count + 1) // 2 or source.dtype(name) != "U8":
            source.refuse(name, f"holds {list(source.shape(name))} of {source.dtype(name)}; its shape is {list(shape)}")
        source.expect(f"{name}.quant_map", (16,), "F32")
        self.nested = source.has(f"{name}.nested_absmax")
        source.expect(f"{name}.absmax", (blocks,), "U8" if self.nested else "F32")
        if self.nested:
            self.nested_block = state.whole("nested_blocksize", 16, 2**16)
            self.nested_offset = state.real("nested_offset", -1e30, 1e30)
            source.expect(f"{name}.nested_quant_map", (256,), "F32")
            source.expect(f"{name}.nested_absmax", (-(-blocks // self.nested_block),), "F32")

    def _state(self, name: str, form: str) -> Fields:
        shape = self.source.shape(name)
        if len(shape) != 1 or self.source.dtype(name) != "U8" or shape[0] > _MOST_STATE:
            self.source.refuse(name, "is no JSON text in bytes")
        try:
            data = parse_json(bytes(self.source.raw(name).tolist()), name)
        except ModelError:
            self.source.refuse(name, "is no JSON object")
        fields = Fields(data, name)
        if fields.text("quant_type") != form:
            fields.refuse("quant_type", form)
        return fields

    def matrix(self) -> Matrix:
        return Matrix(self.shape, self._undo)

    def _undo(self) -> torch.Tensor:
        raw, name, count = self.source.raw, self.name, self.shape[0] * self.shape[1]
        packed = raw(name).view(-1)
        codes = torch.stack((packed >> 4, packed & 15), 1).view(-1)[:count]
        values = raw(f"{name}.quant_map")[codes.int()]
        scale = self._scale()
        whole = count // self.block * self.block
        parts = [(values[:whole].view(-1, self.block) * scale[: whole // self.block, None]).view(-1)]
        if whole < count:
            parts.append(values[whole:] * scale[-1])
        return torch.cat(parts).view(self.shape)

    def _scale(self) -> torch.Tensor:
        raw, name = self.source.raw, self.name
        if not self.nested:
            return raw(f"{name}.absmax")
        small = raw(f"{name}.nested_quant_map")[raw(f"{name}.absmax").int()]
        outer = raw(f"{name}.nested_absmax").repeat_interleave(self.nested_block)[: len(small)]
        return small * outer + self.nested_offset
