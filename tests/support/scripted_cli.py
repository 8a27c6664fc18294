"""An engine for the command line's tests, ``scripted:FILE``: the answers are the ``turns`` of a Python file."""

from __future__ import annotations

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
