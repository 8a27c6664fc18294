"""Installed distributions, built by hand: a dist-info folder and a module, as pip would leave them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

HEAD = """\
from qwen_agent_kit import hookimpl
QAK_API = 1
"""


def install(
    site: Path,
    name: str,
    groups: Mapping[str, Mapping[str, str] | str],
    source: str | None = None,
    *,
    version: str = "1.0",
    metadata: str | None = None,
    entry_points: str | None = None,
) -> None:
    """Put a distribution into ``site``.

    Args:
        site: A folder on ``sys.path``.
        name: Of the distribution; its module is the same with ``_``.
        groups: Kind to {entry point: value}, or to the name of an entry point for the module.
        source: The module's text; None for no module.
        metadata: METADATA in place of a good one.
        entry_points: entry_points.txt in place of one made from ``groups``.
    """
    module = name.replace("-", "_")
    folder = site / f"{module}-{version}.dist-info"
    folder.mkdir(parents=True)
    if metadata is None:
        metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    (folder / "METADATA").write_text(metadata)
    if entry_points is None:
        lines = []
        for kind, points in groups.items():
            lines.append(f"[qwen_agent_kit.{kind}]")
            entries = {points: module} if isinstance(points, str) else points
            lines += [f"{point} = {value}" for point, value in entries.items()]
        entry_points = "\n".join(lines) + "\n"
    (folder / "entry_points.txt").write_text(entry_points)
    if source is not None:
        (site / f"{module}.py").write_text(source)


def python(code: str, site: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run ``code`` in a fresh interpreter that sees ``site``."""
    return _run([sys.executable, "-c", code], site, environment)


def qak(*arguments: str, site: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command line in a fresh interpreter that sees ``site``."""
    return _run([sys.executable, "-m", "qwen_agent_kit", *arguments], site, environment)


def _run(command: list[str], site: Path, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    import os

    path = os.pathsep.join(part for part in (str(site), os.environ.get("PYTHONPATH", "")) if part)
    env = {**os.environ, "PYTHONPATH": path, "NO_COLOR": "1", **environment}
    return subprocess.run(command, capture_output=True, text=True, env=env, timeout=300, check=False, cwd=site)
