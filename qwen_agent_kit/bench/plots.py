"""Lines in a PNG file."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from qwen_agent_kit.errors import UsageError

__all__ = ["check_plot", "lines"]


def check_plot(place: str) -> None:
    """Refuse, before minutes go into measuring, what could not be drawn.

    Raises:
        UsageError: For a name that is no PNG file's, a directory that is not there or cannot be written, or where
            matplotlib is not installed.
    """
    path = Path(place)
    if path.suffix.lower() != ".png" or path.is_dir():
        raise UsageError(f"`--plot` is {place[:80]!r}; allowed: the name of a .png file")
    if not path.parent.is_dir() or not os.access(path if path.exists() else path.parent, os.W_OK):
        raise UsageError(f"`--plot` is {place[:80]!r}; allowed: a file in a directory that can be written")
    if importlib.util.find_spec("matplotlib") is None:
        raise UsageError("`--plot` needs matplotlib", hint='pip install "qwen-agent-kit[bench]"')


def lines(place: Path, title: str, x: str, y: str, at: Sequence[float], curves: Mapping[str, Sequence[float]]) -> None:
    """Draw one line per curve over ``at``."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for name, values in curves.items():
        axes.plot(at, values, marker="o", label=name)
    axes.set(title=title, xlabel=x, ylabel=y, ylim=(0, None))
    axes.grid(visible=True, alpha=0.3)
    axes.legend()
    figure.savefig(place, dpi=120)
