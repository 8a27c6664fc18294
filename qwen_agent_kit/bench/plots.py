"""Lines in a PNG file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from qwen_agent_kit.errors import UsageError

__all__ = ["lines"]


def lines(place: Path, title: str, x: str, y: str, at: Sequence[float], curves: Mapping[str, Sequence[float]]) -> None:
    """Draw one line per curve over ``at``.

    Raises:
        UsageError: Where matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UsageError("`--plot` needs matplotlib", hint='pip install "qwen-agent-kit[bench]"') from error
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for name, values in curves.items():
        axes.plot(at, values, marker="o", label=name)
    axes.set(title=title, xlabel=x, ylabel=y, ylim=(0, None))
    axes.grid(visible=True, alpha=0.3)
    axes.legend()
    figure.savefig(place, dpi=120)
