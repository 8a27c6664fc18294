"""``qak bench decode``, ``prefill`` and ``load``: one stream beside other engines."""

from __future__ import annotations

import json
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qwen_agent_kit.bench.compare import (
    checked,
    compared,
    model_path,
    opened,
    opened_side,
    summary,
    threads_here,
    turns,
)
from qwen_agent_kit.bench.rows import Row
from qwen_agent_kit.errors import UsageError

if TYPE_CHECKING:
    from qwen_agent_kit.models import LoadedModel

__all__ = ["decode", "load", "prefill"]

_CLOCKS = {"wall": "", "cpu": ", processor time"}

LENGTHS = (32, 256, 1024, 2048)
"""Of context, where a plot is asked for."""


def decode(
    model: str = "smollm2",
    quant: str = "int8",
    against: str = "",
    pairs: int = 7,
    tokens: int = 64,
    context: int = 32,
    plot: str | None = None,
    threads: int = 0,
    clock: str = "wall",
) -> list[Row]:
    """Tokens per second of one stream after its first token, drafts off, and the share of the memory's bandwidth.

    Args:
        model: A shape of ``SHAPES``, a GGUF file or a catalog name.
        quant: ``int8``, ``int4``, ``bf16`` or ``fp32``.
        against: ``transformers``, ``llama.cpp``, or both with a comma.
        pairs: How often each side runs.
        tokens: How many are generated each time.
        context: How many come before them.
        plot: A PNG file for tokens per second over the context.
        threads: For each side; one per core where 0.
        clock: ``wall``, or ``cpu`` for seconds of processor time, which a busy machine hardly changes.
    """

    def once(of: Any, n: int) -> float:
        ids = _ids(n)
        if clock == "cpu":
            first, whole = (_processor(of, ids, new) for new in (1, tokens + 1))
            return tokens / (whole - first)
        answer = of.run(ids, tokens + 1, fresh=True)
        return tokens / float(answer.total - answer.first)

    return _measured(f"decode{_CLOCKS[clock]}", model, quant, against, pairs, [context], tokens, once, plot, threads)


def prefill(
    model: str = "smollm2",
    quant: str = "int8",
    against: str = "",
    pairs: int = 7,
    tokens: str = "512,2048",
    plot: str | None = None,
    threads: int = 0,
    clock: str = "wall",
) -> list[Row]:
    """Prompt tokens per second, from submitting to the first token; ``tokens`` are lengths with commas between."""
    lengths = [_length(text) for text in tokens.split(",")]

    def once(of: Any, n: int) -> float:
        ids = _ids(n)
        return n / (_processor(of, ids, 1) if clock == "cpu" else float(of.run(ids, 1, fresh=True).first))

    return _measured(f"prefill{_CLOCKS[clock]}", model, quant, against, pairs, lengths, 1, once, plot, threads)


def _processor(of: Any, ids: list[int], new: int) -> float:
    """Seconds of processor time, of all threads together."""
    began = time.process_time()
    of.run(ids, new, fresh=True)
    return time.process_time() - began


def _measured(
    what: str,
    model: str,
    quant: str,
    against: str,
    pairs: int,
    lengths: list[int],
    new: int,
    once: Callable[[Any, int], float],
    plot: str | None,
    threads: int,
) -> list[Row]:
    names = [name for name in checked(against, quant, plot) if name != "transformers-carried"]
    loaded, threads, path = opened(model, quant, threads)
    from qwen_agent_kit.bench.ours import Ours

    rows: list[Row] = []
    longest = max((*lengths, *(LENGTHS if plot else ()))) + new + 64
    with ExitStack() as stack:
        sides: list[Any] = [stack.enter_context(closing(Ours(loaded, threads=threads, drafts=False)))]
        sides += [stack.enter_context(closing(opened_side(name, path, threads, longest))) for name in names]
        title = f"{what}, {Path(model).stem if Path(model).exists() else model}, {quant}"
        for n in lengths:
            found = turns(sides, pairs, lambda of, n=n: once(of, n))  # type: ignore[misc]  # bound at once
            rows += compared(f"{title}, {n}", "tok/s", found)
            if what == "decode":
                rows += _reached(f"{title}, {n}", loaded, threads, found[sides[0].name])
        if plot:
            from qwen_agent_kit.bench.plots import lines

            curves = {s.name: [statistics.median(once(s, n) for _ in range(3)) for n in LENGTHS] for s in sides}
            lines(Path(plot), title, "tokens of context", "tokens per second", LENGTHS, curves)
    return rows


def _reached(title: str, loaded: LoadedModel, threads: int, rates: list[float]) -> Iterator[Row]:
    """The bytes of a dense decoder's matrices, which each token reads once, over what the memory gives at most."""
    from qwen_agent_kit.models import Decoder
    from qwen_agent_kit.models.linear import Linear
    from qwen_agent_kit.models.native.linear import NativeLinear
    from qwen_agent_kit.placement.measured import measure_bandwidth

    if not isinstance(loaded.model, Decoder) or loaded.model.config.sparse:
        return
    matrices = [m for m in loaded.model.modules() if isinstance(m, (Linear, NativeLinear))]
    size, read = sum(t.nbytes for m in matrices for t in m.tensors()), measure_bandwidth(threads)
    what = f"{title}: {size / 1e6:.0f} MB a token, of {read / 1e9:.1f} GB/s"
    yield summary(what, "share", [rate * size / read for rate in rates])


def load(
    model: str = "smollm2", quant: str = "int8", against: str = "", pairs: int = 7, plot: str | None = None
) -> list[Row]:
    """Seconds from starting a process to its first token, weight cache warm, and the most memory it took.

    ``--against transformers`` reads the same GGUF file with ``from_pretrained``.
    """
    if plot:
        raise UsageError("`--plot` is for decode and prefill; loading has no curve")
    names = [name for name in checked(against, quant) if name != "transformers-carried"]
    path, children = model_path(model, quant), [_Child(name, quant) for name in ("ours", *names)]
    found = turns(children, pairs, lambda child: child.run(path))
    rows = list(
        compared("process to first token", "s", {n: [t for t, _ in v] for n, v in found.items()}, ours_over=False)
    )
    return rows + [summary(f"peak memory: {n}", "MiB", [m for _, m in v]) for n, v in found.items()]


class _Child:
    """One engine in a process that opens a model, says one token and ends."""

    def __init__(self, name: str, quant: str) -> None:
        self.name, self._quant = name, quant

    def run(self, path: Path) -> tuple[float, float]:
        """Seconds to the first token, and MiB at most."""
        command = [sys.executable, "-m", "qwen_agent_kit.bench.opening", self.name, str(path), self._quant]
        began = time.perf_counter()
        done = subprocess.run(  # noqa: S603  # ourselves
            [*command, str(threads_here())], capture_output=True, text=True, check=False
        )
        if done.returncode:
            said = done.stderr.strip().splitlines()[-1:] or [f"exit code {done.returncode}"]
            raise UsageError(f"`{self.name}` cannot be measured: {said[0][:200]}")
        answer = json.loads(done.stdout.splitlines()[-1])
        return answer["at"] - began, answer["peak"] / 2**20


def _ids(count: int) -> list[int]:
    """Ids that no run has seen, so that no prefix cache helps."""
    return [random.randrange(300, 40_000) for _ in range(count)]  # noqa: S311  # no secret


def _length(text: str) -> int:
    if not (text.strip().isascii() and text.strip().isdigit() and 0 < int(text) <= 8192):
        raise UsageError(f"`--tokens` holds {text[:20]!r}; allowed: whole numbers from 1 to 8192, with commas between")
    return int(text)
