"""``qak bench kernels``: every way to multiply by a matrix that is here, checked and timed on a model's shapes.

Each runs in a process of its own, because a kernel that does not take a shape or an instruction may end its process.
Its matrix holds numbers that the scheme holds exactly, so that what is off is the kernel, not the scheme.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from qwen_agent_kit.bench.compare import model_path, threads_here
from qwen_agent_kit.bench.rows import Row

if TYPE_CHECKING:
    import torch

    from qwen_agent_kit.models.config import DecoderConfig

__all__ = ["KERNELS", "Kernel", "ROWS", "exact_matrix", "kernels", "shapes_of"]

ROWS = (1, 4, 8, 64, 256)
"""How many rows are multiplied at once: one stream, several, and chunks of prompts."""

SECONDS = 0.15
"""How long each is timed."""

MOST_OFF = 0.02
"""Of the result's size: int8 activations are off by less, a wrong kernel by more."""


@dataclass(frozen=True, slots=True)
class Kernel:
    """A way to multiply.

    Args:
        name: As it is printed.
        scheme: How the matrix is held.
        native: Whether it is our own, which needs a C compiler, or torch's.
    """

    name: str
    scheme: str
    native: bool = False


KERNELS = (
    Kernel("native int8", "int8", native=True),
    Kernel("native int4", "int4", native=True),
    Kernel("torch int8", "int8"),
    Kernel("torch int4", "int4"),
    Kernel("torch bf16", "bf16"),
    Kernel("torch fp32", "fp32"),
)


def kernels(model: str = "smollm2") -> list[Row]:
    """Microseconds that the matrices of one layer take together, per kernel and number of rows; the best of each last.

    Args:
        model: Whose shapes: a shape of ``SHAPES``, a GGUF file, a directory or a catalog name.
    """
    from qwen_agent_kit.models import DecoderConfig, load_model

    config = load_model(model_path(model, "int8"), quant="int8").config
    assert isinstance(config, DecoderConfig), "the others are refused in int8"
    found = {kernel: _measured(kernel, shapes_of(config)) for kernel in KERNELS}
    rows = [row for kernel, answer in found.items() for row in _rows(kernel, answer)]
    return rows + list(_best(found))


def shapes_of(config: DecoderConfig) -> list[tuple[int, int]]:
    """N and K of one dense layer's matrices: qkv, out, gate and up, down."""
    hidden, dim, wide = config.hidden, config.head_dim, config.intermediate or config.expert_intermediate
    heads = config.heads * dim
    return [(heads + 2 * config.kv_heads * dim, hidden), (hidden, heads), (2 * wide, hidden), (hidden, wide)]


def _measured(kernel: Kernel, shapes: list[tuple[int, int]]) -> dict[str, Any] | str:
    """What the child says, or how it ended."""
    asked = json.dumps({"scheme": kernel.scheme, "shapes": shapes, "threads": threads_here()})
    environment = {**os.environ, "QAK_NATIVE": os.environ.get("QAK_NATIVE", "1") if kernel.native else "0"}
    done = subprocess.run(  # noqa: S603  # ourselves
        [sys.executable, "-m", "qwen_agent_kit.bench.kernels", asked],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    if done.returncode:
        return f"ended with {done.returncode}"
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer if answer["native"] == kernel.native else "is not there"


def _rows(kernel: Kernel, answer: dict[str, Any] | str) -> Iterator[Row]:
    if isinstance(answer, str):
        yield Row(f"{kernel.name} {answer}", float("nan"), "", None)
        return
    yield Row(f"{kernel.name}: off from the exact product", answer["off"], "of its size", MOST_OFF)
    for m, microseconds in answer["us"].items():
        yield Row(f"{kernel.name}: a layer, {m} rows", microseconds, "us")


def _best(found: dict[Kernel, dict[str, Any] | str]) -> Iterator[Row]:
    """Per scheme and number of rows the quickest of those whose products are right."""
    right = {k: a for k, a in found.items() if not isinstance(a, str) and a["off"] <= MOST_OFF}
    for scheme in dict.fromkeys(kernel.scheme for kernel in right):
        for m in map(str, ROWS):
            name, us = min(((k.name, a["us"][m]) for k, a in right.items() if k.scheme == scheme), key=lambda p: p[1])
            yield Row(f"best for {scheme}, {m} rows: {name}", us, "us")


def exact_matrix(n: int, k: int, scheme: str, generator: torch.Generator) -> torch.Tensor:
    """Random float32 [n, k] that ``scheme`` holds exactly: whole numbers of its range, its ends in each group."""
    import torch

    low, high = (-8, 7) if scheme == "int4" else (-127, 127)
    values = torch.randint(low, high + 1, (n, k), generator=generator).float()
    values[:, ::16], values[:, 1::16] = low, high
    return values / 128


def _child(scheme: str, shapes: list[tuple[int, int]], threads: int) -> dict[str, Any]:
    import torch

    from qwen_agent_kit.models.linear import make_linear, value_dtype
    from qwen_agent_kit.models.native.linear import NativeLinear

    torch.set_num_threads(threads)
    generator = torch.Generator().manual_seed(0)
    off, spent, native = 0.0, dict.fromkeys(ROWS, 0.0), False
    with torch.inference_mode():
        for n, k in shapes:
            weight = exact_matrix(n, k, scheme, generator)
            layer = make_linear(weight, None, scheme)
            native = isinstance(layer, NativeLinear)
            for m in ROWS:
                x = torch.randn(m, k, generator=generator)
                exact = x @ weight.T
                given = x.to(value_dtype(scheme))
                off = max(off, float((layer(given).float() - exact).norm() / exact.norm()))
                spent[m] += _seconds(layer, given)
    return {"off": off, "native": native, "us": {str(m): s * 1e6 for m, s in spent.items()}}


def _seconds(layer: Any, x: torch.Tensor) -> float:
    """The least that one product took."""
    least, until = float("inf"), time.perf_counter() + SECONDS
    while time.perf_counter() < until:
        began = time.perf_counter()
        layer(x)
        least = min(least, time.perf_counter() - began)
    return least


if __name__ == "__main__":
    os.environ.setdefault("GOMP_SPINCOUNT", "3000")
    sys.stdout.write(json.dumps(_child(**json.loads(sys.argv[1]))) + "\n")
