"""F53 on the command line: what a conversation holds is not in logs nor in the texts of errors."""

from __future__ import annotations

import os
from pathlib import Path

from distributions import HEAD, install
from scripted_cli import run_qak, scripted

PROMPT, ARGUMENT, RESULT, KEY = "prompt-canary-11", "argument-canary-22", "result-canary-33", "hf_key-canary-44"
CANARIES = (PROMPT, ARGUMENT, RESULT, KEY)

# A plugin that writes every log record from INFO up to stderr, as a service would.
LOGS = (
    HEAD
    + """
import logging, sys
logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="LOG %(name)s %(message)s")
logging.captureWarnings(True)

@hookimpl
def on_step(step):
    logging.getLogger("qwen_agent_kit").info("a step ended")
"""
)

TOOLS = f"""
def look(word: str) -> str:
    '''Look a word up.'''
    return "{RESULT}"

def broken(word: str) -> str:
    '''Break.'''
    raise ValueError(word)
"""


def _options(site: Path, turns: str) -> list[str]:
    install(site, "logs", {"hooks": "logs"}, LOGS)
    spec = scripted(site, turns, tools=TOOLS)
    return ["-m", spec, "-t", "tools.py:look", "-t", "tools.py:broken", "--system", PROMPT, "--session", "s"]


def test_f53_nothing_is_logged(site: Path, private_home: Path) -> None:
    """At INFO, a run with calls, failing tools, malformed arguments and a stored session logs no canary."""
    turns = f"""
turns = [[ToolCall("", "look", {{"word": "{ARGUMENT}"}})], [ToolCall("", "broken", {{"word": "{ARGUMENT}"}})],
         [ToolCall("", "look", {{"words": "{ARGUMENT}"}}), ToolCall("", "{ARGUMENT}", {{}})], "done"]
"""
    done = run_qak("run", PROMPT, "-q", *_options(site, turns), site=site, HF_TOKEN=KEY)
    assert done.returncode == 0, done.stderr
    logged = [line for line in done.stderr.splitlines() if line.startswith("LOG ")]
    assert any("a step ended" in line for line in logged)
    for canary in CANARIES:
        assert canary not in "\n".join(logged)
        assert canary not in done.stderr  # --quiet shows no calls
    kept = [path for path in private_home.rglob("*") if path.is_file()]
    assert all(path.stat().st_mode & 0o077 == 0 for path in kept), kept


def test_f53_nothing_is_in_errors(site: Path) -> None:
    """What ends a run says nothing of its content: a model that breaks, output that never fits, a wrong answer type."""
    for turns, options in (
        (f"def turns(request):\n    raise RuntimeError({PROMPT + ARGUMENT!r})\n", []),
        (f"def turns(request):\n    return {RESULT!r}\n", ["--output-schema", '{"type": "integer"}']),
        (f"def turns(request):\n    return {{ {ARGUMENT!r}: 1 }}\n", []),
    ):
        folder = site / f"case-{len(os.listdir(site))}"
        folder.mkdir()
        done = run_qak("run", PROMPT, "-q", *_options(folder, turns), *options, site=folder, HF_TOKEN=KEY)
        assert done.returncode == 1
        assert done.stdout == ""
        assert "error: " in done.stderr
        for canary in CANARIES:
            assert canary not in done.stderr


def test_f53_doctor_and_plan_show_no_key(site: Path) -> None:
    """The hub's key is masked wherever settings are shown."""
    for command in (("doctor",), ("doctor", "--json"), ("models",), ("plan", "smollm2"), ("run", "hi")):
        done = run_qak(*command, site=site, HF_TOKEN=KEY)
        assert KEY not in done.stdout + done.stderr
