"""Building native.c in a test's own way, and running code in a child that sees the tests' support modules."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

from qwen_agent_kit.models.native.build import built_library
from qwen_agent_kit.placement.kernels import compiler

SUPPORT = Path(__file__).parent
SOURCE = Path(built_library.__code__.co_filename).parent


def python(code: str, *args: str, threads: int = 2, **environment: str) -> subprocess.CompletedProcess[str]:
    """A child that sees the tests' support modules."""
    path = os.pathsep.join((str(SUPPORT), *filter(None, [os.environ.get("PYTHONPATH")])))
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(code), *args],
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": str(threads), **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )


def compiled(place: Path, flags: tuple[str, ...], source: Path | None = None) -> Path:
    """native.c, or a program around it, built as ``flags`` say."""
    command = [str(compiler()), "-O2", "-std=gnu11", "-fPIC", "-pthread", "-fno-math-errno", "-Wno-psabi", *flags]
    target = source or SOURCE / "native.c"
    subprocess.run([*command, f"-I{SOURCE}", str(target), "-o", str(place), "-lm"], check=True)
    return place
