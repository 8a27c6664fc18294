"""Runs the programs of ``examples``."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
# One process for several, so that torch and transformers are imported once.
RUN = "import runpy, sys\nfor sys.argv in [[n] for n in sys.argv[1:]]: runpy.run_path(sys.argv[0], None, '__main__')"


def said_by(names: list[str], folder: Path) -> str:
    """What these examples, of at most 60 lines each, print when they run in ``folder``."""
    examples = [EXAMPLES / name for name in names]
    assert all(example.read_text(encoding="utf-8").count("\n") <= 60 for example in examples)
    command = [sys.executable, "-c", RUN, *map(str, examples)]
    done = subprocess.run(
        command, cwd=folder, env=dict(os.environ), capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout
