"""An engine for the command line's tests, ``scripted:FILE``: the answers are the ``turns`` of a Python file."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from distributions import HEAD, install

ENGINE = (
    HEAD
    + """
import runpy

from qwen_agent_kit.backends import EngineSpec
from qwen_agent_kit.testing import ScriptedModel


def open_script(rest):
    return ScriptedModel(runpy.run_path(rest)["turns"], name="scripted")


@hookimpl
def register_engines():
    return [EngineSpec("scripted", open_script)]
"""
)

TOOLS = '''
from qwen_agent_kit import tool


def add(a: int, b: int) -> int:
    """Add two numbers."""
    print("a tool may print")
    return a + b


@tool(side_effects=True)
def delete(path: str) -> str:
    """Delete a file."""
    return f"deleted {path}"


def colour() -> str:
    """Give text that would drive a terminal."""
    return "\\x1b[31mred\\x1b]0;title\\x07 \\u202eback"


def fail() -> str:
    """Break."""
    raise ValueError("the tool broke")


number = 3
'''


def scripted(site: Path, turns: str, *, tools: str = TOOLS) -> str:
    """Install the engine into ``site`` beside ``tools.py``; returns the model spec whose answers are ``turns``."""
    if not (site / "scripted_engine.py").exists():
        install(site, "scripted-engine", {"engines": "scripted"}, ENGINE)
    (site / "tools.py").write_text(tools)
    script = site / f"script_{len(list(site.glob('script_*.py')))}.py"
    script.write_text("from qwen_agent_kit import Reasoning, Text, ToolCall\n" + turns)
    return f"scripted:{script}"


def run_qak(
    *arguments: str,
    site: Path,
    stdin: bytes = b"",
    cwd: Path | None = None,
    before: Callable[[], None] | None = None,
    **environment: str,
) -> subprocess.CompletedProcess[str]:
    """Run the command line in a fresh interpreter that sees ``site``.

    Args:
        stdin: What is piped in.
        before: Called in the child before it begins.
        environment: On top of the test's own.
    """
    done = subprocess.run(
        [sys.executable, "-m", "qwen_agent_kit", *arguments],
        input=stdin,
        capture_output=True,
        env=environment_of(site, **environment),
        timeout=300,
        check=False,
        cwd=cwd or site,
        preexec_fn=before,
    )
    out, err = (stream.decode("utf-8", errors="surrogateescape") for stream in (done.stdout, done.stderr))
    return subprocess.CompletedProcess(done.args, done.returncode, out, err)


def environment_of(site: Path, **more: str) -> dict[str, str]:
    """The environment of a child that sees ``site``."""
    path = os.pathsep.join(part for part in (str(site), os.environ.get("PYTHONPATH", "")) if part)
    return {**os.environ, "PYTHONPATH": path, "NO_COLOR": "1", "OMP_NUM_THREADS": "1", **more}
