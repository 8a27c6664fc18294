"""Bytes of packed matrices: one row per scheme, read by whoever packs and by whoever plans.

A matrix [N, K] takes ``N * K * bits / 8`` bytes for its weights, and ``scale`` bytes for each group of ``group``
weights along K. Sources: our own layouts are ``models/linear``; nf4 is bitsandbytes' blockwise format (block 64, its
scales quantised again in blocks of 256 where ``double``); GPTQ and AWQ keep float16 scales and packed zeros per group,
GPTQ an int32 index per column besides; FP8 is the block-scaled format of the Qwen3 releases (128 x 128).
"""

from __future__ import annotations

from dataclasses import dataclass

from qwen_agent_kit.errors import UsageError
from qwen_agent_kit.placement.kernels import compiler

__all__ = ["LAYOUTS", "Layout", "NATIVE", "head_scheme", "layout_of", "matrix_bytes", "native"]

ROW = -1
"""A group that is a whole row."""


@dataclass(frozen=True, slots=True)
class Layout:
    """How a scheme keeps a matrix.

    Args:
        bits: Of one weight.
        value: Bytes of an activation and of a KV value under it.
        group: Weights along K that share a scale; ``ROW`` for all of a row, 0 for none.
        scale: Bytes of scale and zero per group.
        rows: N must be a multiple of it.
        columns: K must be a multiple of it.
        block: Rows that share a scale as well.
        column: Further bytes per column.
        otherwise: The scheme of a matrix whose shape does not fit.
        pad: Rows and columns are filled up to multiples of these.
        line: What ``pad`` rows take together is filled up to a multiple of it.
        bias: Bytes of a bias's value, 0 for the activations' type.
        fixed: Further bytes per matrix.
        lookup: Whether rows can be looked up in it, so that a tied embedding needs no copy of its own.
        ours: Whether the kit packs it; the others are what released files hold.
        unpacks: Whether a forward of many positions unpacks a whole matrix.
    """

    bits: int
    value: int = 2
    group: int = 0
    scale: float = 0
    rows: int = 1
    columns: int = 1
    block: int = 1
    column: int = 0
    otherwise: str = ""
    pad: tuple[int, int] = (1, 1)
    line: int = 1
    bias: int = 0
    fixed: int = 0
    lookup: bool = False
    ours: bool = True
    unpacks: bool = False


LAYOUTS: dict[str, Layout] = {
    "fp32": Layout(32, value=4),
    "bf16": Layout(16),
    "int8": Layout(8, group=ROW, scale=2, unpacks=True),
    "int4": Layout(4, group=64, scale=4, rows=16, columns=64, otherwise="int8"),
    "fp16": Layout(16, ours=False),
    "fp8": Layout(8, group=128, block=128, scale=2, ours=False),
    "gptq8": Layout(8, group=128, scale=3, column=4, ours=False),
    "gptq4": Layout(4, group=128, scale=2.5, column=4, ours=False),
    "awq": Layout(4, group=128, scale=2.5, ours=False),
    "nf4": Layout(4, group=64, scale=4, ours=False),
    "nf4-double": Layout(4, group=64, scale=1 + 4 / 256, ours=False),
}

NATIVE: dict[str, Layout] = {
    "int8": Layout(8, group=32, scale=2, pad=(16, 32), line=64, bias=4, fixed=64, lookup=True),
    "int4": Layout(4, group=32, scale=3, pad=(16, 32), line=64, bias=4, fixed=64, lookup=True),
}
"""What replaces rows of ``LAYOUTS`` where the native kernels are used."""


def native() -> bool:
    """Whether int8 and int4 are laid out for native kernels on this machine."""
    return compiler() is not None


def layout_of(scheme: str) -> Layout:
    """The row of ``scheme``.

    Raises:
        UsageError: For an unknown one.
    """
    if scheme not in LAYOUTS:
        raise UsageError(f"`quant` is {scheme!r}; allowed: auto, {', '.join(LAYOUTS)}")
    return NATIVE[scheme] if scheme in NATIVE and native() else LAYOUTS[scheme]


def head_scheme(scheme: str) -> str:
    """How the head is kept under ``scheme``: in 8 bits under int4, which costs it far more than other matrices."""
    return "int8" if scheme == "int4" else scheme


def matrix_bytes(scheme: str, rows: int, columns: int) -> int:
    """What a matrix [rows, columns] takes under ``scheme``, scales and zeros counted."""
    layout = layout_of(scheme)
    if layout.otherwise and (rows % layout.rows or columns % layout.columns):
        return matrix_bytes(layout.otherwise, rows, columns)
    rows, columns = (-(-size // pad) * pad for size, pad in zip((rows, columns), layout.pad, strict=True))
    groups = 0
    if layout.group:
        groups = 1 if layout.group == ROW else -(-columns // layout.group)
        groups *= -(-rows // layout.block)
    whole = -(-rows * columns * layout.bits // 8) + round(groups * layout.scale)
    if layout.line > 1:
        together = max(1, rows // layout.pad[0])
        whole = together * -(-whole // (together * layout.line)) * layout.line
    return whole + layout.column * columns + layout.fixed
