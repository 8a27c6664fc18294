"""What the tests of seeing and of hearing ask the trained miniatures, through the kit itself and nothing mocked."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qwen_agent_kit import Agent, Host, Limits, Media, Sampling, tool
from qwen_agent_kit.events import RunResult

DATA = Path(__file__).resolve().parents[2] / "plugins" / "miniatures" / "tests" / "data"
SCENE, CLIP = DATA / "scenes" / "scene-001.png", DATA / "clips" / "clip-000.wav"
Change = Callable[[np.ndarray], np.ndarray]


def rows_of(folder: str, step: int = 1) -> list[dict[str, str]]:
    """Every ``step``-th committed question about held-out ``scenes`` or ``clips``."""
    lines = (DATA / folder / "questions.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines[::step]]


def share_right(host: Host, rows: list[dict[str, str]], part: Callable[[dict[str, str]], Media]) -> float:
    """Of the questions that are answered word for word; all are asked through one agent, as a pipeline does."""
    results = Agent(host=host).batch([[part(row), row["question"]] for row in rows], concurrency=4)
    answers = [one.output if isinstance(one, RunResult) else repr(one) for one in results]
    return float(np.mean([answer == row["answer"] for answer, row in zip(answers, rows, strict=True)]))


def command_answers(option: str, file: Path, question: str) -> str:
    """What `qak run` prints about a file where no model is named."""
    command = [sys.executable, "-m", "qwen_agent_kit", "run", option, str(file), question]
    given = {"stdin": subprocess.DEVNULL, "capture_output": True, "text": True, "env": dict(os.environ)}
    done = subprocess.run(command, timeout=120, check=False, **given)
    assert done.returncode == 0, done.stderr[-2000:]
    return str(done.stdout)


def takes_what_was_planned(name: str, quant: str) -> None:
    """Loaded, decoder and encoder take what the plan says within a hundredth, and the plan says so itself."""
    with Host(quant=quant, cache=False, prefixes=False) as host:
        model = host.open(name)
        plan = host.plan(name)
        assert model.caps.kinds > {"text"}
    assert plan.measured["weight_bytes"] == pytest.approx(plan.weight_bytes, rel=0.01)
    assert any(reason.startswith("measured: weight bytes") for reason in plan.reasons)


def reads_what_a_tool_returns(host: Host, part: Any, backend: str) -> None:
    """The text model calls the tool; the next step goes to the model that takes what came, and it encodes it once."""

    @tool
    def fetch() -> Any:
        """Fetch the thing in question."""
        return part

    limits, sampling = Limits(steps=2), Sampling(max_tokens=48, temperature=0)
    result = Agent(host=host, tools=[fetch], tool_choice="required", limits=limits, sampling=sampling).run("Fetch it.")
    assert [step.backend for step in result.steps] == ["text", backend]
    assert result.steps[1].reason == f"the narrowest that covers {', '.join(sorted({'text', part.kind}))}"
    assert [one.kind for one in result.messages[2].media] == [part.kind]
    model: Any = host.open(None, kinds=frozenset({"text", part.kind}))
    assert model.engine.media_counters.encoded == 1
