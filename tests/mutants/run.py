"""Applies each mutant to a copy of the installed package and sees whether the tests named in it fail.

A mutant is a patch with one changed line; its first line names the tests that should notice:
``tests: PATH [PATH ...]``.

    python tests/mutants/run.py [NAME ...]

prints a line per mutant and ``killed/total``; the exit code is 0 where all were killed.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
CHECKOUT = HERE.parents[1]


def tests_of(patch: Path) -> list[str]:
    """The tests that should notice the mutant."""
    first = patch.read_text(encoding="utf-8").splitlines()[0]
    assert first.startswith("tests: "), f"{patch.name} does not begin with `tests: `"
    return first.removeprefix("tests: ").split()


def killed(patch: Path) -> bool:
    """Whether the tests fail with the mutant, and only then."""
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(CHECKOUT / "qwen_agent_kit", Path(folder, "qwen_agent_kit"))
        if not passes(folder, tests_of(patch)):
            raise SystemExit(f"{patch.name}: its tests fail without it")
        subprocess.run(["patch", "-p1", "--quiet", "-i", str(patch)], cwd=folder, check=True)
        return not passes(folder, tests_of(patch))


def passes(folder: str, tests: list[str]) -> bool:
    """Whether the tests pass on the package in ``folder``."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-x",
        "-p",
        "no:cacheprovider",
        "-c",
        str(CHECKOUT / "pyproject.toml"),
    ]
    command += ["--rootdir", str(CHECKOUT), "-m", "not full", *(str(CHECKOUT / test) for test in tests)]
    environment = {**os.environ, "PYTHONPATH": folder, "PYTHONDONTWRITEBYTECODE": "1"}
    run = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=600, check=False)
    if run.returncode not in (0, 1, 2):
        raise SystemExit(f"pytest ended with {run.returncode}:\n{run.stdout[-2000:]}{run.stderr[-2000:]}")
    return run.returncode == 0


def main(names: list[str]) -> int:
    """Run the mutants named, all where none is."""
    patches = [patch for patch in sorted(HERE.glob("*.patch")) if not names or patch.stem in names]
    dead = 0
    for patch in patches:
        gone = killed(patch)
        dead += gone
        print(f"{'killed  ' if gone else 'SURVIVED'} {patch.stem}", flush=True)
    print(f"{dead}/{len(patches)} killed")
    return 0 if patches and dead == len(patches) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
