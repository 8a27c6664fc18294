"""``qak bench kernels``: every way to multiply by a matrix that is here, checked and timed on a model's shapes.

Each runs in a process of its own, because a kernel that does not take a shape or an instruction may end its process.
Its matrix holds numbers that the scheme holds exactly, so that what is off is the kernel, not the scheme. What is
quickest for each shape and number of rows is kept for the models that are opened from then on.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from qwen_agent_kit.bench.compare import model_path, threads_here
from qwen_agent_kit.bench.rows import Row

if TYPE_CHECKING:
    import torch

    from qwen_agent_kit.models.config import DecoderConfig
    from qwen_agent_kit.models.kernels import Kernel

__all__ = ["ROWS", "exact_matrix", "kernels", "shapes_of"]

ROWS = (1, 4, 8, 16, 64, 256)
"""How many rows are multiplied at once: one stream, several, and chunks of prompts."""

SECONDS = 0.05
"""How long each is timed."""

MOST_OFF = 0.02
"""Of the result's size: int8 activations are off by less, a wrong kernel by more."""

CLEAR = 1.05
"""How many times quicker another kernel has to be to take over between two numbers of rows."""

MOST_WORK = 2**34
"""Multiplications of one product that is timed: a head is not multiplied by whole chunks."""

MOST_SECONDS = 300
"""A kernel that takes longer for a shape than this, all rows together, hangs."""

Shape = tuple[int, int]


@dataclass(slots=True)
class Found:
    """What a kernel showed.

    Args:
        off: The worst error, of the result's size.
        us: Microseconds by shape and number of rows.
        problem: Why it is not used; empty where it is.
    """

    off: float = 0.0
    us: dict[Shape, dict[int, float]] = field(default_factory=dict)
    problem: str = ""


def kernels(model: str = "smollm2") -> list[Row]:
    """Microseconds that the matrices of one layer take together, per kernel and number of rows, then what was chosen.

    Args:
        model: Whose shapes: a shape of ``SHAPES``, a GGUF file, a directory or a catalog name.
    """
    from qwen_agent_kit.models import DecoderConfig, load_model
    from qwen_agent_kit.models.kernels import KERNELS, Choices, write_choices

    config = load_model(model_path(model, "int8"), quant="int8").config
    assert isinstance(config, DecoderConfig), "the others are refused in int8"
    write_choices(Choices())  # what was refused is tried again
    layer = shapes_of(config)
    shapes = list(dict.fromkeys([*layer, (config.vocab_size, config.hidden)]))
    found = {kernel: measured(kernel, shapes) for kernel in KERNELS}
    choices = chosen(found, shapes)
    write_choices(choices)
    rows = [row for kernel, answer in found.items() for row in _rows(kernel, answer, layer)]
    return [*rows, *_choice_rows(found, choices, shapes)]


def shapes_of(config: DecoderConfig) -> list[Shape]:
    """N and K of one dense layer's matrices: qkv, out, gate and up, down."""
    hidden, dim, wide = config.hidden, config.head_dim, config.intermediate or config.expert_intermediate
    heads = config.heads * dim
    return [(heads + 2 * config.kv_heads * dim, hidden), (hidden, heads), (2 * wide, hidden), (hidden, wide)]


def measured(kernel: Kernel, shapes: Sequence[Shape], rows: Sequence[int] = ROWS, seconds: float = SECONDS) -> Found:
    """Run a kernel over shapes in a child; one that ends it is named with its shape and tried on no other."""
    asked = {"name": kernel.name, "shapes": list(shapes), "rows": list(rows), "seconds": seconds}
    asked["threads"] = threads_here()
    environment = {**os.environ, "QAK_NATIVE": os.environ.get("QAK_NATIVE", "1") if kernel.native else "0"}
    try:
        done = subprocess.run(  # noqa: S603  # ourselves
            [sys.executable, "-m", "qwen_agent_kit.bench.kernels", json.dumps(asked)],
            capture_output=True,
            text=True,
            env=environment,
            check=False,
            timeout=MOST_SECONDS * len(shapes),
        )
        written, code = done.stdout, done.returncode
    except subprocess.TimeoutExpired as late:
        written, code = (late.stdout or b"").decode() if isinstance(late.stdout, bytes) else "", None
    found = Found()
    lines = [json.loads(line) for line in written.splitlines() if line.startswith("{")]
    if lines and "absent" in lines[0]:
        return Found(problem=lines[0]["absent"])
    for line in lines:
        found.off = _worse(found.off, line["off"])
        found.us[line["shape"][0], line["shape"][1]] = {int(m): us for m, us in line["us"].items()}
    if code != 0:
        n, k = shapes[min(len(lines), len(shapes) - 1)]
        found.problem = f"hangs at {n}x{k}" if code is None else f"ended with {code} at {n}x{k}"
    elif not found.off <= MOST_OFF:
        found.problem = f"is off by {found.off:.3g} of the result's size"
    return found


def _worse(a: float, b: float) -> float:
    """The larger of two, NaN where one is."""
    return a if math.isnan(a) or b <= a else b


def chosen(found: Mapping[Kernel, Found], shapes: Sequence[Shape]) -> Any:
    """Per layout and shape the quickest kernel up to each number of rows, the earlier one where it is not clear."""
    from qwen_agent_kit.models.kernels import Choices

    refused = {k.name: a.problem for k, a in found.items() if a.problem and not a.problem.startswith("is not")}
    right = {k: a for k, a in found.items() if not a.problem}
    ranges: dict[str, tuple[tuple[int | None, str], ...]] = {}
    for layout in dict.fromkeys(k.layout for k in right if not k.native):
        for shape in shapes:
            times = {k.name: a.us[shape] for k, a in right.items() if k.layout == layout and a.us.get(shape)}
            if times:
                ranges[Choices.key(layout, *shape)] = _ranges(times)
    return Choices(ranges, refused)


def _ranges(times: Mapping[str, Mapping[int, float]]) -> tuple[tuple[int | None, str], ...]:
    best: list[tuple[int | None, str]] = []
    for m in sorted({m for of in times.values() for m in of}):
        here = {name: of[m] for name, of in times.items() if m in of}
        least = min(here.values())
        now = best[-1][1] if best else ""
        name = now if here.get(now, float("inf")) <= CLEAR * least else min(here, key=here.__getitem__)
        if name == now:
            best.pop()
        best.append((m, name))
    return (*best[:-1], (None, best[-1][1]))


def _rows(kernel: Kernel, answer: Found, layer: Sequence[Shape]) -> Iterator[Row]:
    if answer.problem:
        yield Row(f"{kernel.name} {answer.problem}", float("nan"), "", None)
        return
    yield Row(f"{kernel.name}: off from the exact product", answer.off, "of its size", MOST_OFF)
    taken = [answer.us[shape] for shape in layer if shape in answer.us]
    for m in ROWS:
        if len(taken) == len(layer) and all(m in of for of in taken):
            yield Row(f"{kernel.name}: a layer, {m} rows", sum(of[m] for of in taken), "us")


def _choice_rows(found: Mapping[Kernel, Found], choices: Any, shapes: Sequence[Shape]) -> Iterator[Row]:
    """What was kept, with the time of its last range at the most rows that were timed."""
    times = {kernel.name: answer.us for kernel, answer in found.items()}
    for layout in dict.fromkeys(kernel.layout for kernel in found):
        for shape in shapes:
            named = choices.ranges.get(choices.key(layout, *shape))
            if named is not None and len(named) > 1:
                ways = ", ".join(f"{'more' if most is None else f'up to {most}'}: {name}" for most, name in named)
                last = times[named[-1][1]][shape]
                yield Row(f"chosen for {layout} {shape[0]}x{shape[1]}: {ways}", last[max(last)], "us")


def exact_matrix(n: int, k: int, scheme: str, generator: torch.Generator) -> torch.Tensor:
    """Random float32 [n, k] that ``scheme`` holds exactly: whole numbers of its range, its ends in each group."""
    import torch

    low, high = (-8, 7) if scheme == "int4" else (-127, 127)
    values = torch.randint(low, high + 1, (n, k), generator=generator, dtype=torch.int8).float()
    values[:, ::16], values[:, 1::16] = low, high
    return values / 128


def _child(
    name: str, shapes: Sequence[Shape], rows: Sequence[int], seconds: float, threads: int
) -> Iterator[dict[str, Any]]:
    """A line per shape, in order, so that the parent sees at which one this process ended."""
    import torch

    from qwen_agent_kit.models.kernels import KERNELS

    torch.set_num_threads(threads)
    kernel = next(kernel for kernel in KERNELS if kernel.name == name)
    if not kernel.ready():
        yield {"absent": "is not installed"}
        return
    with torch.inference_mode():
        for n, k in shapes:
            line = _timed(kernel, n, k, rows, seconds)
            yield line
            if "absent" in line:
                return


def _timed(kernel: Kernel, n: int, k: int, rows: Sequence[int], seconds: float) -> dict[str, Any]:
    import torch

    from qwen_agent_kit.models.linear import make_linear, value_dtype
    from qwen_agent_kit.models.native.linear import NativeLinear

    generator = torch.Generator().manual_seed(n + k)
    weight = exact_matrix(n, k, kernel.scheme, generator)
    layer: Any = make_linear(weight, None, kernel.scheme)
    if isinstance(layer, NativeLinear) != kernel.native:
        return {"absent": "is not there: it needs a C compiler"}
    line: dict[str, Any] = {"shape": [n, k], "off": 0.0, "us": {}}
    if not kernel.takes(k) or (not kernel.native and layer.layout != kernel.layout):
        return line  # a shape that it is never asked for
    for m in rows:
        if m * n * k > MOST_WORK:
            break
        x = torch.randn(m, k, generator=generator)
        exact, given = x @ weight.T, x.to(value_dtype(kernel.scheme))
        line["off"] = _worse(line["off"], float((kernel.multiply(layer, given).float() - exact).norm() / exact.norm()))
        line["us"][str(m)] = _seconds(kernel, layer, given, seconds) * 1e6
    return line


def _seconds(kernel: Kernel, layer: Any, x: torch.Tensor, seconds: float) -> float:
    """The least that one product took."""
    least, until = float("inf"), time.perf_counter() + seconds
    while True:
        began = time.perf_counter()
        kernel.multiply(layer, x)
        now = time.perf_counter()
        least = min(least, now - began)
        if now >= until:
            return least


if __name__ == "__main__":
    os.environ.setdefault("GOMP_SPINCOUNT", "3000")
    for described in _child(**json.loads(sys.argv[1])):
        sys.stdout.write(json.dumps(described) + "\n")
        sys.stdout.flush()
