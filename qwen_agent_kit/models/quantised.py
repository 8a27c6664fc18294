"""Checkpoints that come quantised: every matrix undone exactly, one at a time, and then packed as the plan says.

``quantization_config`` in config.json names the method; which matrices it covers is told by their tensors. The rest
of the kit sees float matrices only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, Protocol

import torch

from qwen_agent_kit.errors import ModelError
from qwen_agent_kit.models.fields import Fields, read_json
from qwen_agent_kit.models.naming import Naming
from qwen_agent_kit.models.safetensors_file import SafetensorsModel

__all__ = ["Matrix", "Method", "QuantisedModel", "Source", "method_for", "quantisation_of", "spread", "unpack"]


@dataclass(frozen=True)
class Matrix:
    """A quantised matrix: its shape [N, K], and how to undo it to float32."""

    shape: tuple[int, int]
    undo: Callable[[], torch.Tensor]


class Method(Protocol):
    """One way to quantise."""

    def find(self, source: Source, module: str) -> Matrix | None:
        """The matrix of ``module``, its tensors checked against each other; None where it is not quantised."""


class Source:
    """The tensors of a checkpoint as they are; what does not fit together is named with its file."""

    def __init__(self, model: SafetensorsModel) -> None:
        self._model = model

    def has(self, name: str) -> bool:
        """Whether there is a tensor of this name."""
        return self._model.shape(name) is not None

    def dtype(self, name: str) -> str:
        """As safetensors names it, empty where there is no such tensor."""
        return self._model.dtype(name)

    def shape(self, name: str) -> tuple[int, ...]:
        """Of a tensor.

        Raises:
            ModelError: Where it is missing.
        """
        found = self._model.shape(name)
        if found is None:
            self.refuse(name, "is missing; the matrix was quantised with it")
        return found

    def expect(self, name: str, shape: tuple[int, ...], *dtypes: str) -> None:
        """Insist on a tensor's shape, and on one of the dtypes where any are given.

        Raises:
            ModelError: Where it is another one, or missing.
        """
        if (found := self.shape(name)) != shape:
            self.refuse(name, f"is of shape {list(found)}; the other tensors ask for {list(shape)}")
        if dtypes and self.dtype(name) not in dtypes:
            self.refuse(name, f"is of dtype {self.dtype(name)}; allowed: {', '.join(dtypes)}")

    def raw(self, name: str) -> torch.Tensor:
        """A tensor."""
        return self._model.raw(name)

    def refuse(self, name: str, what: str) -> NoReturn:
        """Raise the error for a tensor.

        Raises:
            ModelError: Always.
        """
        raise ModelError(
            f"`{name[:200]}` in `{self._model.where(name)}` {what}",
            hint="the file is damaged, or belongs to another config.json",
            code="invalid_weights",
        )


class QuantisedModel:
    """A ``packing.Checkpoint`` whose matrices are undone as they are read."""

    def __init__(self, model: SafetensorsModel, method: Method) -> None:
        self._model = model
        self._method = method
        self._source = Source(model)

    @property
    def naming(self) -> Naming:
        return self._model.naming

    def _matrix(self, name: str) -> Matrix | None:
        module, dot, kind = name.rpartition(".")
        return self._method.find(self._source, module) if dot and kind == "weight" else None

    def shape(self, name: str) -> tuple[int, ...] | None:
        """Of a tensor, undone; None where there is none of this name."""
        matrix = self._matrix(name)
        return self._model.shape(name) if matrix is None else matrix.shape

    def where(self, name: str) -> str:
        """The file that a tensor, or what it is made of, is in."""
        module = name.removesuffix(".weight")
        for known in (name, f"{module}.qweight", f"{module}.weight_packed"):
            if self._source.has(known):
                return self._model.where(known)
        return self._model.where(name)

    def read(self, name: str, index: int | None = None) -> torch.Tensor:
        """A tensor in a floating dtype, or one slice along its first axis; quantised ones in float32.

        Raises:
            ModelError: Where its tensors do not fit together.
        """
        matrix = self._matrix(name)
        if matrix is None:
            return self._model.read(name, index)
        undone = matrix.undo()
        return undone if index is None else undone[index]


def quantisation_of(config: Mapping[str, Any], folder: Path) -> Mapping[str, Any] | None:
    """What config.json, or the file that older tools wrote beside it, says of quantisation; None where nothing does.

    Raises:
        ModelError: Where it is no object.
    """
    given = config.get("quantization_config")
    if given is None:
        for name, method in (("quantize_config.json", "gptq"), ("quant_config.json", "awq")):
            if (folder / name).is_file():
                return {"quant_method": method, **read_json(folder / name, largest=2**20)}
        return None
    if not isinstance(given, Mapping):
        Fields(config, "config.json").refuse("quantization_config", "an object")
    return given


def method_for(given: Mapping[str, Any]) -> Method:
    """The reader for a ``quantization_config``.

    Raises:
        ModelError: Names the field that is unknown or out of range.
    """
    from qwen_agent_kit.models.quantised_bnb import BitsAndBytes
    from qwen_agent_kit.models.quantised_float import CompressedTensors, Float8
    from qwen_agent_kit.models.quantised_int import AWQ, GPTQ

    methods: dict[str, Callable[[Fields], Method]] = {
        "gptq": GPTQ,
        "awq": AWQ,
        "fp8": Float8,
        "fbgemm_fp8": Float8,
        "bitsandbytes": BitsAndBytes,
        "compressed-tensors": CompressedTensors,
    }
    fields = Fields(given, "config.json: quantization_config")
    name = fields.text("quant_method").lower()
    if name not in methods:
        fields.refuse("quant_method", ", ".join(methods), hint="take the unquantised weights, or a GGUF file")
    return methods[name](fields)


def unpack(packed: torch.Tensor, bits: int, *, rows: bool) -> torch.Tensor:
    """The unsigned integers that int32 words hold, lowest bits first.

    Args:
        packed: int32 [R, C].
        bits: 4 or 8.
        rows: Whether a word holds values that lie below each other; beside each other where not.

    Returns:
        uint8 [R * 32 / bits, C], or [R, C * 32 / bits].
    """
    shifts = torch.arange(0, 32, bits, dtype=torch.int32)
    mask = (1 << bits) - 1
    if rows:
        values = (packed.unsqueeze(1) >> shifts.view(1, -1, 1)) & mask
        return values.to(torch.uint8).view(-1, packed.shape[1])
    values = (packed.unsqueeze(2) >> shifts) & mask
    return values.to(torch.uint8).view(packed.shape[0], -1)


def spread(scale: torch.Tensor, shape: tuple[int, int], block: tuple[int, int]) -> torch.Tensor:
    """A scale per block to one per value.

    Args:
        scale: [ceil(N / block rows), ceil(K / block columns)].
        shape: (N, K).
        block: Rows and columns that share a scale; where it is the whole axis, the axis stays 1 and broadcasts.

    Returns:
        float32, broadcastable to [N, K].
    """
    wide = scale.float()
    for axis in (0, 1):
        if block[axis] < shape[axis]:
            wide = wide.repeat_interleave(block[axis], axis).narrow(axis, 0, shape[axis])
    return wide
