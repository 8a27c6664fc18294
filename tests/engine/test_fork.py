"""An engine stays in the process that made it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

_FORK = """
import os, sys
from small_decoder import plain_greedy, small_loaded
from qwen_agent_kit.backends import Sampling
from qwen_agent_kit.engine import Engine
from qwen_agent_kit.errors import EngineError

def code(action):
    try:
        action()
    except EngineError as error:
        return error.code
    return "no error"

greedy = Sampling(temperature=0, max_tokens=150)
engine = Engine(small_loaded(), stop_repetition=False)
if sys.argv[1] == "used":
    assert len(list(engine.submit([1, 2, 3], Sampling(temperature=0, max_tokens=5)))) == 5
running = engine.submit([1, 2], greedy) if sys.argv[1] == "running" else None
child = os.fork()
if not child:
    codes = [code(lambda: engine.submit([1], greedy)), code(lambda: engine.compile("start: /a/"))]
    if running is not None:
        codes.append(code(lambda: list(running)))
    engine.close()
    with Engine(small_loaded()) as own:
        codes.append(len(list(own.submit([1, 2, 3], Sampling(temperature=0, max_tokens=5)))))
    print(codes, flush=True)
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
generation = running or engine.submit([1, 2], greedy)
assert list(generation) == plain_greedy(small_loaded().model, [1, 2], 150)
engine.close()
print("parent goes on")
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
@pytest.mark.parametrize("when", ["used", "running"])
def test_a_forked_child_is_told(when: str) -> None:
    """In a child every use of the parent's engine is an ``EngineError`` that says so, at once and without a hang, also
    of an answer that was on its way; an engine of the child's own works, and the parent goes on."""
    support = str(Path(__file__).resolve().parents[1] / "support")
    found = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", _FORK, when],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([support, os.environ.get("PYTHONPATH", "")])},
        capture_output=True,
        text=True,
        timeout=60,
    )
    codes = ["forked"] * (3 if when == "running" else 2)
    assert (found.stdout, found.stderr) == (f"{[*codes, 5]}\nparent goes on\n", "")
