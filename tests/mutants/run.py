"""Applies each mutant to a copy of the package and sees whether the tests named in it fail.

A mutant is a patch that changes one line; its first line names the tests that should notice:
``tests: PATH[::NAME] [PATH[::NAME] ...]``.

    python tests/mutants/run.py [NAME ...]

First all these tests must pass without any mutant. Then it prints a line per mutant and ``killed/total``; the exit code
is 0 where all were killed. A mutant whose tests do not end in time is killed too.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
CHECKOUT = HERE.parents[1]
PACKAGE = "qwen_agent_kit"
SECONDS = 120
"""For the tests of one mutant."""

FAILED = (1, 2)
"""pytest's exit codes for a failed test, and for a test file that cannot be imported."""
ELSEWHERE = 70


def pytest_sessionfinish(session: Any) -> None:
    """The hook of pytest, where this module is its plugin: a run that tested another copy of the package is void."""
    import pytest

    del session
    loaded = [module for name, module in sys.modules.items() if name.split(".")[0] == PACKAGE]
    strange = [str(m.__file__) for m in loaded if m.__file__ and not Path(m.__file__).is_relative_to(Path.cwd())]
    if strange or not loaded:
        pytest.exit(f"{PACKAGE} came from {strange[:1] or 'nowhere'}, not from {Path.cwd()}", returncode=ELSEWHERE)


def tests_of(patch: Path) -> list[str]:
    """The tests that should notice the mutant."""
    first, *rest = patch.read_text(encoding="utf-8").splitlines()
    taken = [line for line in rest if line.startswith("-") and not line.startswith("--- ")]
    added = [line for line in rest if line.startswith("+") and not line.startswith("+++ ")]
    if not first.startswith("tests: ") or (len(taken), len(added)) != (1, 1):
        raise SystemExit(f"{patch.name}: allowed is a first line `tests: ...` and one changed line")
    return first.removeprefix("tests: ").split()


def mutated(patch: Path, folder: Path) -> tuple[Path, str]:
    """The file below ``folder`` that the mutant changes, and its text with the mutant."""
    _, _, target, _, *hunk = patch.read_text(encoding="utf-8").splitlines()
    path = folder / target.removeprefix("+++ b/")
    before, after = ("".join(line[1:] + "\n" for line in hunk if line[:1] != other) for other in "+-")
    text = path.read_text(encoding="utf-8")
    if text.count(before) != 1:
        raise SystemExit(f"{patch.name} fits {text.count(before)} places of {path.name}; allowed: 1")
    return path, text.replace(before, after)


def passes(tests: list[str], seconds: float, patch: Path | None = None) -> tuple[bool, str]:
    """Whether the tests pass on a copy of the package, with the mutant where one is given, and what pytest wrote."""
    with tempfile.TemporaryDirectory(prefix="qak-mutant-") as name:
        folder = Path(name).resolve()
        shutil.copytree(CHECKOUT / PACKAGE, folder / PACKAGE, ignore=shutil.ignore_patterns("__pycache__"))
        if patch is not None:
            path, text = mutated(patch, folder)
            path.write_text(text, encoding="utf-8")
        code, wrote = run_pytest(folder, tests, seconds)
    if code not in (0, None, *FAILED):
        raise SystemExit(f"pytest ended with {code}:\n{wrote[-3000:]}")
    return code == 0, wrote


def run_pytest(folder: Path, tests: list[str], seconds: float) -> tuple[int | None, str]:
    """The exit code of pytest, None where it did not end in time, and what it wrote."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-p", Path(__file__).stem]
    command += ["--hypothesis-seed=0", "-c", str(CHECKOUT / "pyproject.toml"), "--rootdir", str(CHECKOUT)]
    command += ["-m", "not full", *(str(CHECKOUT / test) for test in tests)]
    first = os.pathsep.join([str(folder), str(HERE)])
    environment = {**os.environ, "PYTHONPATH": first, "PYTHONDONTWRITEBYTECODE": "1"}
    with tempfile.TemporaryFile() as output:
        # A session of its own, so that whatever a test started ends with it.
        run = subprocess.Popen(
            command, cwd=folder, env=environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
        code: int | None = None
        try:
            code = run.wait(seconds)
        except subprocess.TimeoutExpired:
            pass  # None says so
        finally:
            if run.poll() is None:
                os.killpg(run.pid, signal.SIGKILL)
                run.wait()
        output.seek(0)
        return code, output.read().decode(errors="replace")


def main(names: list[str]) -> int:
    """Run the mutants named, all where none is."""
    known = {patch.stem: patch for patch in sorted(HERE.glob("*.patch"))}
    strange = sorted(set(names) - set(known))
    if strange or not known:
        raise SystemExit(f"no mutants {strange}; there are: {', '.join(known) or 'none'}")
    chosen = {patch: tests_of(patch) for stem, patch in known.items() if not names or stem in names}
    every = list(dict.fromkeys(test for tests in chosen.values() for test in tests))
    good, wrote = passes(every, SECONDS * len(chosen))
    if not good:
        raise SystemExit(f"the tests fail without any mutant:\n{wrote[-3000:]}")
    dead = 0
    for patch, tests in chosen.items():
        start = time.monotonic()
        survived, _ = passes(tests, SECONDS, patch)
        dead += not survived
        print(f"{'SURVIVED' if survived else 'killed  '} {patch.stem} ({time.monotonic() - start:.0f} s)", flush=True)
    print(f"{dead}/{len(chosen)} killed")
    return 0 if dead == len(chosen) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
