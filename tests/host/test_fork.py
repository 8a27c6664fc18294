"""Forked children: what was opened before the fork is refused there, nothing waits for a thread that stayed behind."""

from __future__ import annotations

import subprocess
import sys

import pytest

FORK = """
import asyncio, os, signal, sys
from pathlib import Path
from qwen_agent_kit import Agent, Sampling, ToolCall
from qwen_agent_kit.errors import EngineError
from qwen_agent_kit.host import Host
from qwen_agent_kit.store import Store
from qwen_agent_kit.testing import ScriptedModel
{before}
sys.stdout.flush()
child = os.fork()
if child == 0:
    signal.alarm(60)  # a hang ends the child, and the exit code tells
    try:
{inside}
    except EngineError as error:
        print("EngineError", error.code, "spawn" in error.hint, flush=True)
    sys.stdout.flush()
    os._exit(0)
print(os.waitpid(child, 0)[1])
{after}
"""


def forked(before: str, inside: str, after: str = "") -> list[str]:
    """What parent and child print; the child's exit status is a line."""
    code = FORK.format(before=before, inside="\n".join(f"        {line}" for line in inside.splitlines()), after=after)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.parametrize("host", ["first", "Host(quant='fp32', cache=False)"], ids=["the same host", "a new host"])
def test_a_forked_child_is_told_that_the_models_threads_stayed_behind(host: str) -> None:
    """Neither the host that opened a model nor a new one hangs: both say what to do instead."""
    before = (
        "from qwen_agent_kit.testing import tiny_model_dir\n"
        "import tempfile\n"
        "path = tiny_model_dir(tempfile.mkdtemp())\n"
        "first = Host(quant='fp32', cache=False)\n"
        "agent = Agent(path, host=first, sampling=Sampling(max_tokens=2))\n"
        "agent.run('hi')"
    )
    inside = f"Agent(path, host={host}, sampling=Sampling(max_tokens=2)).run('hi')"
    assert forked(before, inside, "print(agent.run('again').stop_reason)") == ["EngineError forked True", "0", "length"]


def test_a_host_that_opened_nothing_works_in_the_child() -> None:
    """Nothing of it stayed behind."""
    assert forked("host = Host()", "print(Agent(ScriptedModel(['yes']), host=host).run('q').output)") == ["yes", "0"]


def test_coroutine_tools_get_a_fresh_loop_in_the_child() -> None:
    """The thread of the private loop is in the parent; the child starts its own."""
    before = (
        "async def add(a: int, b: int) -> int:\n"
        "    'Add.'\n"
        "    await asyncio.sleep(0)\n"
        "    return a + b\n"
        "def ask():\n"
        "    model = ScriptedModel([[ToolCall('', 'add', {'a': 1, 'b': 2})], 'done'])\n"
        "    return Agent(model, tools=[add]).run('q').steps[0].results[0].text\n"
        "print(ask())"
    )
    assert forked(before, "print(ask())", "print(ask())") == ["3", "3", "0", "3"]


def test_a_child_that_ends_leaves_the_parents_store_alone() -> None:
    """It opens a connection of its own, and its exit closes none of the parent's."""
    before = "chat = Agent(ScriptedModel(['one', 'two'])).chat('talk')\nchat.run('q')\nstore = Store()\nstore.list()"
    inside = "print(store.list()[0].messages, flush=True)\nimport atexit\natexit._run_exitfuncs()"
    assert forked(before, inside, "chat.run('r')\nprint(store.list()[0].messages)") == ["2", "0", "4"]
