"""What machines can do, as data: used until a machine was measured, and said to be so.

GPU figures are the vendors' data sheets (memory bandwidth in GB/s, dense bfloat16 in TFLOP/s; float16 where a card has
no bfloat16). CPU figures are cautious guesses by thread count. ``SPEEDS`` holds how much of that our kernels reach.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from qwen_agent_kit.errors import UsageError

__all__ = ["SPEEDS", "Speed", "cpu_figures", "device_sizes", "gpu_figures", "parse_bytes"]

GIB = 2**30

_GPUS: dict[str, tuple[float, float, float]] = {
    # name: (GiB, GB/s, TFLOP/s)
    "b200": (180, 8000, 2250),
    "h200": (141, 4800, 989),
    "h100": (80, 3350, 989),
    "a100": (80, 2039, 312),
    "l40s": (48, 864, 362),
    "l4": (24, 300, 121),
    "a10": (24, 600, 125),
    "t4": (16, 320, 65),
    "v100": (32, 900, 125),
    "rtx 6000 ada": (48, 960, 364),
    "rtx a6000": (48, 768, 155),
    "rtx 5090": (32, 1792, 210),
    "rtx 4090": (24, 1008, 165),
    "rtx 4080": (16, 717, 97),
    "rtx 3090": (24, 936, 71),
    "rtx 3060": (12, 360, 26),
}

_UNKNOWN_GPU = ((80, 2000, 300), (40, 860, 150), (20, 600, 80), (0, 360, 30))
"""By the least memory in GiB, for cards that are not in the table."""

_CPU_GBS = ((16, 60.0), (8, 40.0), (4, 35.0), (2, 30.0), (1, 20.0))
"""Memory bandwidth in GB/s by the least thread count."""

_UNIT = {"": 1, "b": 1, "k": 1000, "m": 1000**2, "g": 1000**3, "t": 1000**4}


@dataclass(frozen=True, slots=True)
class Speed:
    """How our kernels use a device under a scheme.

    Args:
        stream: Part of the memory bandwidth at which one position's weights are read.
        layer_us: Microseconds that a layer costs besides, per position drawn.
        token_us: Microseconds that a position costs besides: sampling, text, scheduling.
        compute: Part of the device's bfloat16 rate that prefill reaches.
    """

    stream: float
    layer_us: float
    token_us: float
    compute: float


_NATIVE = Speed(0.95, 45, 0, 1.00)
"""A whole step is one call, in which either scheme is read about as fast as memory gives it."""

SPEEDS: dict[tuple[str, str], Speed] = {
    ("cpu", "fp32"): Speed(0.60, 560, 0, 0.35),
    ("cpu", "bf16"): Speed(0.60, 560, 0, 0.80),
    ("cpu", "int8"): Speed(0.40, 145, 0, 0.75),
    ("cpu", "int4"): Speed(0.47, 0, 5100, 0.37),
    ("native", "int8"): _NATIVE,
    ("native", "int4"): _NATIVE,
    ("cuda", "bf16"): Speed(0.70, 25, 300, 0.45),
    ("cuda", "int8"): Speed(0.60, 25, 300, 0.35),
    ("cuda", "int4"): Speed(0.55, 25, 300, 0.35),
    ("mps", "bf16"): Speed(0.60, 60, 500, 0.35),
}
"""By device kind and scheme; ``native`` is the CPU with native kernels. Measured: both rows of ``native``, and the
CPU's bf16 (docs/benchmarks.md); its int8 and int4 by torch's kernels too, on an earlier day. fp32's is bf16's, at twice
the bytes; the others are guesses."""

FALLBACK = Speed(0.5, 100, 1000, 0.3)


def gpu_figures(name: str, total: int) -> tuple[float, float]:
    """(bytes a second, FLOP a second) of a card by its name, else by its memory."""
    lowered = name.lower()
    for known in sorted(_GPUS, key=len, reverse=True):
        if known in lowered:
            _, bandwidth, tflops = _GPUS[known]
            return bandwidth * 1e9, tflops * 1e12
    gib = total / GIB
    _, bandwidth, tflops = next(row for row in _UNKNOWN_GPU if gib >= row[0])
    return bandwidth * 1e9, tflops * 1e12


def cpu_figures(threads: int, isa: tuple[str, ...]) -> tuple[float, float]:
    """(bytes a second, FLOP a second) of a CPU that was not measured."""
    bandwidth = next(gbs for least, gbs in _CPU_GBS if threads >= least or least == 1)
    per_thread = 200e9 if "avx512_bf16" in isa else 60e9 if "avx512f" in isa else 35e9
    return bandwidth * 1e9, per_thread * max(1, threads)


def parse_bytes(text: str) -> int:
    """Bytes that a user wrote: ``24GiB``, ``16GB``, ``512MiB``, ``24`` (GiB).

    Raises:
        UsageError: For anything else.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(?:([kmgt])(i?)b?|b)?\s*", text, re.IGNORECASE)
    if found is None:
        raise UsageError(f"the size is {text[:40]!r}; allowed: as in 24GiB, 16GB or 512MiB")
    number, unit, binary = float(found[1]), (found[2] or "").lower(), found[3]
    if not unit:
        return int(number) if text.strip().lower().endswith("b") else int(number * GIB)
    power = "kmgt".index(unit) + 1
    return int(number * (1024**power if binary else _UNIT[unit]))


def device_sizes(text: str) -> list[tuple[str, int]]:
    """The cards that ``--gpus`` names: ``2x24GiB``, ``rtx 4090``, ``24GiB,16GiB``; (name, bytes) for each.

    Raises:
        UsageError: For anything else.
    """
    cards: list[tuple[str, int]] = []
    for part in filter(None, (piece.strip() for piece in text.split(","))):
        counted = re.fullmatch(r"(\d{1,2})\s*[x*]\s*(.+)", part, re.IGNORECASE)
        count, what = (int(counted[1]), counted[2]) if counted else (1, part)
        known = next((name for name in _GPUS if name == what.strip().lower()), None)
        size = int(_GPUS[known][0] * GIB) if known else parse_bytes(what)
        cards += [(known or f"{size / GIB:.0f} GiB card", size)] * count
    if not cards or len(cards) > 64:
        raise UsageError(f"`--gpus` is {text[:40]!r}; allowed: as in 2x24GiB, rtx 4090 or 24GiB,16GiB")
    return cards
