"""Kernels checked and timed in processes of their own, and the choice between them when a model is opened.

A kernel that does not take a shape or an instruction may end its process, so none runs here before it ran in a child.
Its matrix holds numbers that the scheme holds exactly, so that what is off is the kernel, not the scheme.
``qak bench kernels`` measures all of them; opening a model measures those that its matrices could take, once for each
shape, and keeps what it finds for this CPU and version of torch.
"""

from __future__ import annotations

import json
import logging
import math
import os
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from qwen_agent_kit.errors import QakError
from qwen_agent_kit.models.kernels import KERNELS, Choices, Kernel, read_choices, write_choices

if TYPE_CHECKING:
    import torch

__all__ = ["CLEAR", "Found", "MOST_OFF", "ROWS", "Shape", "choices_for", "chosen", "exact_matrix", "measured"]

_LOG = logging.getLogger("qwen_agent_kit")

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

OPENING_ROWS = (1, 4, 8, 16, 64)
"""What is timed at an opening, where somebody waits."""

OPENING_SECONDS = 0.02
"""How long each is timed then."""

OPENING_MOST_SECONDS = 20
"""A kernel that takes longer for a shape then hangs."""

WORTH = 2**23
"""Weights of a model below which nothing is timed at its opening: a child takes longer to start than it could save."""

STEADY = 1.5
"""Where half of the time gives a least this many times the other half's, the machine is busy with something else."""

Shape = tuple[int, int]
"""N and K of a matrix."""


@dataclass(slots=True)
class Found:
    """What a kernel showed.

    Args:
        off: The worst error, of the result's size.
        us: Microseconds by shape and number of rows.
        problem: Why it is not used; empty where it is.
        unsteady: How many times one half of its time gave what the other did, at most.
    """

    off: float = 0.0
    us: dict[Shape, dict[int, float]] = field(default_factory=dict)
    problem: str = ""
    unsteady: float = 0.0


def choices_for(wanted: Iterable[tuple[str, Shape]]) -> Choices:
    """What is known of matrices that a model is about to hold; what is not is measured first, where that is worth it.

    Args:
        wanted: Layout and shape of every matrix, as often as there are such.
    """
    known, asked = read_choices(), list(wanted)
    missing: dict[str, dict[Shape, None]] = {}
    for layout, shape in asked:
        if Choices.key(layout, *shape) not in known.ranges and len(_candidates(layout, known)) > 1:
            missing.setdefault(layout, {})[Choices.tall(*shape)] = None
    if not missing or not _worth(n * k for _, (n, k) in asked):
        return known
    _LOG.info("timing kernels for shapes that are new on this machine; `QAK_PROBE=0` leaves that out")
    found = {
        kernel: measured(kernel, list(shapes), OPENING_ROWS, OPENING_SECONDS, OPENING_MOST_SECONDS)
        for layout, shapes in missing.items()
        for kernel in _candidates(layout, known)
    }
    if any(answer.unsteady > STEADY for answer in found.values()):
        _LOG.info("the machine is busy: kernels are chosen at another opening")
        return known
    choices = chosen(found, [shape for shapes in missing.values() for shape in shapes])
    try:
        write_choices(Choices(choices.ranges, {**known.refused, **choices.refused}))
    except (OSError, QakError) as error:
        _LOG.info("the choice of kernels is not kept: %s", error)
    return Choices({**known.ranges, **choices.ranges}, {**known.refused, **choices.refused})


def _candidates(layout: str, known: Choices) -> list[Kernel]:
    """Of those that may be chosen unasked."""
    return [k for k in KERNELS if k.layout == layout and not k.native and not k.needs and k.name not in known.refused]


def _worth(sizes: Iterable[int]) -> bool:
    """Whether kernels are timed at this opening: not for small models, and not beside other work."""
    if os.environ.get("QAK_PROBE", "1").lower() in ("0", "off", "false", "no") or sum(sizes) < WORTH:
        return False
    import torch

    try:
        return os.getloadavg()[0] <= 1.5 * torch.get_num_threads()
    except (AttributeError, OSError):  # not every system tells
        return True


def measured(
    kernel: Kernel,
    shapes: Sequence[Shape],
    rows: Sequence[int] = ROWS,
    seconds: float = SECONDS,
    most_seconds: float = MOST_SECONDS,
    threads: int | None = None,
) -> Found:
    """Run a kernel over shapes in a child; one that ends it is named with its shape and tried on no other.

    Args:
        kernel: Of the registry.
        shapes: N and K of the matrices.
        rows: How many rows are multiplied at once.
        seconds: How long each is timed.
        most_seconds: After how long for a shape it hangs.
        threads: As many as torch uses here where None.
    """
    import torch

    asked = {"name": kernel.name, "shapes": list(shapes), "rows": list(rows), "seconds": seconds}
    asked["threads"] = threads or torch.get_num_threads()
    environment = {**os.environ, "QAK_NATIVE": os.environ.get("QAK_NATIVE", "1") if kernel.native else "0"}
    try:
        done = subprocess.run(  # noqa: S603  # ourselves
            [sys.executable, "-m", "qwen_agent_kit.models.probing", json.dumps(asked)],
            capture_output=True,
            text=True,
            env=environment,
            check=False,
            timeout=most_seconds * len(shapes),
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
        found.unsteady = max(found.unsteady, line["unsteady"])
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


def chosen(found: Mapping[Kernel, Found], shapes: Sequence[Shape]) -> Choices:
    """Per layout and shape the quickest kernel up to each number of rows, the earlier one where it is not clear."""
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
    line: dict[str, Any] = {"shape": [n, k], "off": 0.0, "unsteady": 0.0, "us": {}}
    if not kernel.takes(k) or (not kernel.native and layer.layout != kernel.layout):
        return line  # a shape that it is never asked for
    for m in rows:
        if m * n * k > MOST_WORK:
            break
        x = torch.randn(m, k, generator=generator)
        exact, given = x @ weight.T, x.to(value_dtype(kernel.scheme))
        line["off"] = _worse(line["off"], float((kernel.multiply(layer, given).float() - exact).norm() / exact.norm()))
        first, second = (_seconds(kernel, layer, given, seconds / 2) for _ in range(2))
        line["us"][str(m)] = min(first, second) * 1e6
        line["unsteady"] = max(line["unsteady"], first / second, second / first)
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
