"""The command line on real weights and on a tiny model, through the engine."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from scripted_cli import TOOLS, environment_of, run_qak

from qwen_agent_kit.bench.prefix import system_prompt

pytestmark = pytest.mark.real


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, smollm2_gguf: Path) -> Path:
    """A root with the real weights, shared by this file's tests so that they are unpacked once."""
    root = tmp_path_factory.mktemp("real-home")
    folder = root / "cache" / "models" / "smollm2"
    folder.mkdir(parents=True)
    shutil.copy(smollm2_gguf, folder)
    return root


def test_it_answers(site: Path, home: Path) -> None:
    """`qak run "..."` answers from the weights, greedily the same twice, and counts what it did."""
    options = ("--max-tokens", "24", "--temperature", "0", "--json")
    answers = [
        json.loads(run_qak("run", "Say hello.", *options, site=site, QAK_HOME=str(home)).stdout) for _ in range(2)
    ]
    assert answers[0]["output"].strip()
    assert answers[0]["output"] == answers[1]["output"]
    assert answers[0]["usage"]["generated_tokens"] > 0
    assert answers[0]["usage"]["cached_tokens"] == 0
    assert answers[0]["usage"]["computed_tokens"] >= answers[0]["usage"]["prompt_tokens"] > 0


def test_the_same_system_prompt_is_not_computed_twice(site: Path, home: Path) -> None:
    """A second `qak run` with the same system prompt of 1,500 tokens, in a new process: what is computed is the new
    question, and the answer is the one that is computed without anything kept."""
    system = system_prompt(1500)

    def run(question: str, **environment: str) -> dict[str, Any]:
        options = ("--system", system, "--max-tokens", "4", "--temperature", "0", "--json")
        done = run_qak("run", question, *options, site=site, QAK_HOME=str(home), **environment)
        return json.loads(done.stdout)

    first = run("Which orders are open?")["usage"]
    assert first["prompt_tokens"] > 1200
    assert first["cached_tokens"] < 64
    again = run("How many are paid?")
    assert again["usage"]["prompt_tokens"] - again["usage"]["cached_tokens"] < 20
    assert again["usage"]["computed_tokens"] < 20 + 4
    assert run("How many are paid?", QAK_PREFIXES="off")["output"] == again["output"]


def test_a_required_tool_is_called(site: Path, home: Path) -> None:
    """With --tool-choice required the first step is a call of the tool, with valid arguments."""
    (site / "tools.py").write_text(TOOLS)
    options = ("--tool", "tools.py:add", "--tool-choice", "required", "--max-tokens", "60", "--json")
    done = run_qak("run", "What is 2 plus 3?", *options, site=site, QAK_HOME=str(home))
    assert done.returncode == 0, done.stderr
    first = json.loads(done.stdout)["steps"][0]
    assert [result["name"] for result in first["results"]] == ["add"]
    assert not first["results"][0]["is_error"]


def test_structured_output(site: Path, home: Path) -> None:
    """--output-schema holds for a model that would not keep to it by itself."""
    schema = '{"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}'
    done = run_qak("run", "Give n.", "--output-schema", schema, "--max-tokens", "60", site=site, QAK_HOME=str(home))
    assert done.returncode == 0, done.stderr
    assert set(json.loads(done.stdout)) == {"n"}


def test_ctrl_c_stops_the_engine(site: Path, home: Path) -> None:
    """SIGINT in the middle of an answer: `stopped`, exit code 1, and the process is gone at once."""
    command = [sys.executable, "-m", "qwen_agent_kit", "run", "Write a very long story.", "--max-tokens", "4000"]
    environment = environment_of(site, QAK_HOME=str(home))
    child = subprocess.Popen(
        command, cwd=site, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert child.stdout is not None
    assert child.stdout.read(10)
    began = time.monotonic()
    child.send_signal(signal.SIGINT)
    _, err = child.communicate(timeout=120)
    assert child.returncode == 1
    assert err.decode().splitlines()[-1] == "stopped"
    assert time.monotonic() - began < 60


def test_a_session_goes_on_in_another_process(site: Path, home: Path) -> None:
    """The second turn's prompt holds the first one, and every position of it is counted."""
    options = ("--session", "real", "--max-tokens", "12", "--temperature", "0", "--json")
    first = json.loads(run_qak("run", "My name is Ann.", *options, site=site, QAK_HOME=str(home)).stdout)
    second = json.loads(run_qak("run", "What is my name?", *options, site=site, QAK_HOME=str(home)).stdout)
    assert second["usage"]["prompt_tokens"] > first["usage"]["prompt_tokens"] + first["usage"]["generated_tokens"]
    assert [message["role"] for message in second["messages"]][-4:] == ["user", "assistant", "user", "assistant"]


def test_a_prompt_past_the_context_is_refused(site: Path, home: Path) -> None:
    """A prompt longer than the context is one line with exit code 2, and its text is not told."""
    done = run_qak("run", site=site, stdin=b"xylophone " * 20_000, QAK_HOME=str(home))
    assert done.returncode == 2, done.stderr
    assert "context" in done.stderr
    assert "Traceback" not in done.stderr
    assert "xylophone" not in done.stderr


def test_a_damaged_file_is_refused(site: Path, home: Path, smollm2_gguf: Path) -> None:
    """A GGUF file that ends too early is told by name, with exit code 1."""
    short = site / "short.gguf"
    short.write_bytes(smollm2_gguf.read_bytes()[:50_000_000])
    done = run_qak("run", "hi", "-m", str(short), site=site, QAK_HOME=str(home))
    assert done.returncode == 1
    assert "short.gguf" in done.stderr
    assert "Traceback" not in done.stderr
