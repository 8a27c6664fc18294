"""Which kernel multiplies by a matrix: every way that there is, and which one a layer takes for how many rows.

A layout is how a matrix is held. Several kernels may multiply by one, so that prompts and decoding use different ones
over a single copy. Which is quickest depends on the CPU and on the shape: ``probing`` checks and times them in
processes of their own and keeps the choice, per CPU and version of torch. Shapes that were not timed take what is
usual.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.metadata
import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.nn import functional as F  # noqa: N812  # the name everyone knows it by

from qwen_agent_kit.errors import QakError
from qwen_agent_kit.models.native.build import cpu_features, source_digest
from qwen_agent_kit.paths import cache_dir, write_private

__all__ = ["Choices", "KERNELS", "Kernel", "Multiply", "Ranges", "read_choices", "usual", "write_choices"]

INT4_GROUP = 64
_VERSION = 1

_TALL = 2**15
"""Matrices of more rows than this are taken to behave like one of so many: heads differ in their vocabulary only."""

_SMALL = 2**18
"""Weights of a matrix so small that some more rows cost less than a kernel for a number of rows not met before: oneDNN
builds one for each in half precision, which takes half a millisecond."""

Multiply = Callable[[Any, torch.Tensor], torch.Tensor]
"""Of a layer and x [n, K], to [n, N]."""

Ranges = tuple[tuple[float, Multiply], ...]
"""Up to so many rows this one, in order; the last is for any number."""


@dataclass(frozen=True, slots=True)
class Kernel:
    """A way to multiply.

    Args:
        name: As it is printed and kept.
        layout: How the matrix is held: ``fp32``, ``bf16``, ``int8 rows``, ``int4 groups``, or the native kernels'
            ``int8 tiles`` and ``int4 tiles``.
        multiply: Adds the bias, too.
        needs: A package that is imported before, where it is not torch's own.
    """

    name: str
    layout: str
    multiply: Multiply
    needs: str = ""

    @property
    def scheme(self) -> str:
        """Under which matrices are held so."""
        return self.layout.split()[0]

    @property
    def native(self) -> bool:
        """Whether it is our own, which needs a C compiler."""
        return self.layout.endswith("tiles")

    def takes(self, k: int) -> bool:
        """Whether it is known to stand rows of ``k`` values."""
        # This one reads 16 values of a row at a time and dies where a row ends within them.
        return self.name != "aten int8pack" or k % 16 == 0

    def ready(self) -> bool:
        """Whether it is there; imports what it needs."""
        try:
            return not self.needs or importlib.import_module(self.needs) is not None
        except Exception:  # noqa: BLE001  # a package for another torch raises what it likes
            return False


def _plus(layer: Any, y: torch.Tensor) -> torch.Tensor:
    return y if layer.bias is None else y + layer.bias


def _dense(layer: Any, x: torch.Tensor) -> torch.Tensor:
    return F.linear(x, layer.weight, layer.bias)


def _even_rows(rows: int) -> int:
    """The next of eight numbers of rows per doubling, from 16 on: few kernels then serve batches of any size."""
    step = 1 << max(0, (rows - 1).bit_length() - 4)
    return rows if rows <= 16 else -(-rows // step) * step


def _dense_half(layer: Any, x: torch.Tensor) -> torch.Tensor:
    rows = len(x)
    padded = _even_rows(rows) if layer.weight.numel() <= _SMALL and x.device.type == "cpu" else rows
    if padded == rows:
        return _dense(layer, x)
    return _dense(layer, F.pad(x, (0, 0, 0, padded - rows)))[:rows]


def _int8pack(layer: Any, x: torch.Tensor) -> torch.Tensor:
    return _plus(layer, torch.ops.aten._weight_int8pack_mm(x, layer.weight, layer.scale))


def _dequantise(layer: Any, x: torch.Tensor) -> torch.Tensor:
    return _plus(layer, F.linear(x, layer.weight.to(x.dtype)) * layer.scale)


def _zentorch(layer: Any, x: torch.Tensor) -> torch.Tensor:
    return _plus(layer, torch.ops.zentorch.zentorch_dynamic_qlinear(x, layer.weight, layer.scale))


def _int4pack(layer: Any, x: torch.Tensor) -> torch.Tensor:
    return _plus(layer, torch.ops.aten._weight_int4pack_mm_for_cpu(x, layer.weight, INT4_GROUP, layer.scale))


def _native(layer: Any, x: torch.Tensor) -> torch.Tensor:
    found: torch.Tensor = layer(x)
    return found


KERNELS = (
    Kernel("aten linear fp32", "fp32", _dense),
    Kernel("aten linear bf16", "bf16", _dense_half),
    Kernel("aten int8pack", "int8 rows", _int8pack),
    Kernel("dequantise int8", "int8 rows", _dequantise),
    Kernel("zentorch int8", "int8 rows", _zentorch, "zentorch"),
    Kernel("aten int4pack", "int4 groups", _int4pack),
    Kernel("native int8", "int8 tiles", _native),
    Kernel("native int4", "int4 tiles", _native),
)

_BY_NAME = {kernel.name: kernel for kernel in KERNELS}

_USUAL: Mapping[str, tuple[tuple[float, str], ...]] = {
    "fp32": ((math.inf, "aten linear fp32"),),
    "bf16": ((math.inf, "aten linear bf16"),),
    # Up to 8 rows the packed kernel is faster than unpacking the matrix (design.md section 4).
    "int8 rows": ((8, "aten int8pack"), (math.inf, "dequantise int8")),
    "int4 groups": ((math.inf, "aten int4pack"),),
}


def usual(layout: str, k: int) -> Ranges:
    """What a layer of ``k`` columns takes where nothing was timed."""
    return _ranges(_USUAL[layout], k)


def _ranges(named: Iterable[tuple[float, str]], k: int) -> Ranges:
    return tuple((most, _BY_NAME[name].multiply) for most, name in named if _BY_NAME[name].takes(k))


@dataclass(frozen=True, slots=True)
class Choices:
    """What was found on this machine.

    Args:
        ranges: By layout and shape, as ``key`` writes them: up to so many rows this kernel; None for any number.
        refused: Kernels that are wrong or end their process, and how.
    """

    ranges: Mapping[str, tuple[tuple[int | None, str], ...]] = field(default_factory=dict)
    refused: Mapping[str, str] = field(default_factory=dict)

    @staticmethod
    def key(layout: str, n: int, k: int) -> str:
        """Names a matrix [n, k] in a layout."""
        n, k = Choices.tall(n, k)
        return f"{layout} {n}x{k}"

    @staticmethod
    def tall(n: int, k: int) -> tuple[int, int]:
        """The matrix that stands for those of its width that are as tall or taller."""
        return min(n, _TALL), k

    def of(self, layout: str, n: int, k: int) -> Ranges:
        """For a matrix [n, k]: what was chosen, where all of it is there, else what is usual."""
        named = self.ranges.get(self.key(layout, n, k))
        if named is None or not all(
            name in _BY_NAME and _BY_NAME[name].layout == layout and _BY_NAME[name].ready() for _, name in named
        ):
            return usual(layout, k)
        chosen = _ranges(((math.inf if most is None else most, name) for most, name in named), k)
        return chosen if chosen and chosen[-1][0] == math.inf else usual(layout, k)


def _place() -> Any:
    """A file per CPU, version of torch and of what else multiplies."""
    try:
        zentorch = importlib.metadata.version("zentorch")
    except importlib.metadata.PackageNotFoundError:
        zentorch = ""
    about = f"{torch.__version__}\0{zentorch}\0{source_digest()}\0".encode() + cpu_features()
    return cache_dir("kernels") / f"{hashlib.sha256(about).hexdigest()[:32]}.json"


def read_choices() -> Choices:
    """What ``write_choices`` kept; empty where nothing was, or where it cannot be read."""
    try:
        data = json.loads(_place().read_bytes())
        if data["version"] != _VERSION:
            return Choices()
        ranges = {
            str(key): tuple((None if most is None else int(most), str(name)) for most, name in of)
            for key, of in data["ranges"].items()
        }
        return Choices(ranges, {str(name): str(why) for name, why in data["refused"].items()})
    except (OSError, ValueError, KeyError, TypeError, AttributeError, QakError):
        return Choices()


def write_choices(found: Choices) -> None:
    """Keep ``found`` beside what is known of other shapes; what it refuses replaces what was refused.

    Raises:
        OSError: Where the cache cannot be written.
        UsageError: Where there is no cache directory.
    """
    data = {
        "version": _VERSION,
        "torch": torch.__version__,
        "ranges": {**read_choices().ranges, **found.ranges},
        "refused": dict(found.refused),
    }
    write_private(_place(), json.dumps(data).encode())
