"""What the measurements beside other engines share: who takes part, whose turn it is, and what is said of the times.

All sides take turns in one run, so that a busy machine hits them alike; the first turn warms up and does not count.
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qwen_agent_kit.bench.plots import check_plot
from qwen_agent_kit.bench.rows import Row
from qwen_agent_kit.errors import UsageError

if TYPE_CHECKING:
    from qwen_agent_kit.models import LoadedModel

__all__ = [
    "SIDES",
    "checked",
    "compared",
    "model_path",
    "named",
    "opened",
    "opened_side",
    "ratios",
    "summary",
    "threads_here",
    "turns",
]

SIDES = ("transformers", "transformers-carried", "llama.cpp-q8_0", "llama.cpp-q4_0")
"""The names that ``open_side`` takes; here, as its module needs torch."""

_CLASS = {"int4": "llama.cpp-q4_0"}


def threads_here() -> int:
    """One per core that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def model_path(model: str, quant: str) -> Path:
    """The file or directory that ``model`` means: a shape of ``SHAPES``, a path, or a name of the catalog's.

    Args:
        model: A shape has random weights, made once in ``quant``'s class.
        quant: ``int8``, ``int4``, ``bf16`` or ``fp32``.
    """
    from qwen_agent_kit.bench.shapes import SHAPES, random_gguf

    if model in SHAPES:
        return random_gguf(model, "Q4_0" if quant == "int4" else "Q8_0")
    if Path(model).exists():
        return Path(model)
    from qwen_agent_kit.host import Host

    return Host().target(model).path()


def opened(model: str, quant: str, threads: int = 0) -> tuple[LoadedModel, int, Path]:
    """The model, the threads that everyone gets (one per core where 0), and where the model lies."""
    os.environ.setdefault("GOMP_SPINCOUNT", "3000")  # before torch is loaded, as the host does
    from qwen_agent_kit.bench import ours

    path, threads = model_path(model, quant), threads or threads_here()
    return ours.opened(path, quant, threads), threads, path


def named(against: str, quant: str) -> list[str]:
    """The sides of ``open_side`` that ``--against`` means, each once.

    Raises:
        UsageError: For a name that is not known.
    """
    known = {name: (name,) for name in SIDES} | {
        "transformers": ("transformers", "transformers-carried"),
        "llama.cpp": (_CLASS.get(quant, "llama.cpp-q8_0"),),
    }
    asked = [part.strip() for part in against.split(",") if part.strip()]
    for name in asked:
        if name not in known:
            raise UsageError(f"`--against` names {name[:40]!r}; allowed: {', '.join(known)}")
    return list(dict.fromkeys(side for name in asked for side in known[name]))


def checked(against: str, quant: str, plot: str | None = None) -> list[str]:
    """The sides that ``--against`` means; what cannot be is refused before anything is opened.

    Raises:
        UsageError: For a name that is not known, and for a plot that could not be drawn.
    """
    if plot is not None:
        check_plot(plot)
    return named(against, quant)


def opened_side(name: str, path: Path, threads: int, context: int, slots: int = 1) -> Any:
    """``open_side``, whose module needs torch."""
    from qwen_agent_kit.bench.sides import open_side

    return open_side(name, path, threads=threads, context=context, slots=slots)


def turns(
    sides: Sequence[Any], pairs: int, once: Callable[[Any], Any], warm: Callable[[Any], Any] | None = None
) -> dict[str, list[Any]]:
    """What ``once`` gives for each side, ``pairs`` times, in alternating order, after a first that warms up."""
    found: dict[str, list[Any]] = {each.name: [] for each in sides}
    for each in sides:
        (warm or once)(each)
    for turn in range(pairs):
        for each in sides if turn % 2 else list(reversed(sides)):
            found[each.name].append(once(each))
    return found


def ratios(over: Sequence[float], under: Sequence[float]) -> list[float]:
    """Pair by pair."""
    return [a / b for a, b in zip(over, under, strict=True)]


def summary(name: str, unit: str, values: Sequence[float]) -> Row:
    """The median with its least and most."""
    return Row(name, statistics.median(values), unit, least=min(values), most=max(values))


def compared(title: str, unit: str, found: Mapping[str, Sequence[float]], *, ours_over: bool = True) -> Iterator[Row]:
    """Each side's summary, then the ratios of the first to each other one, or of each other one to the first.

    Args:
        title: Of what was measured.
        unit: Of the values.
        found: By side, ours first.
        ours_over: Whether more is better.
    """
    names = list(found)
    for name in names:
        yield summary(f"{title}: {name}", unit, found[name])
    for name in names[1:]:
        if ours_over:
            yield summary(f"{title}: ours over {name}", "ratio", ratios(found[names[0]], found[name]))
        else:
            yield summary(f"{title}: {name} over ours", "ratio", ratios(found[name], found[names[0]]))
