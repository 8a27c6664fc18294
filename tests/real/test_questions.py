"""The real weights as a caller of tools: the value that a tool drew at run time has to come back in the answer."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from qwen_agent_kit import Agent, Host, Tool

QUESTIONS = [
    json.loads(line) for line in Path(__file__).parents[1].joinpath("data", "questions.jsonl").read_text().splitlines()
]


@pytest.fixture
def host(real_home: Path) -> Iterator[Host]:
    """A host whose cache holds the real weights."""
    with Host() as opened:
        yield opened


def drawn_tool(question: dict[str, Any], values: dict[str, int], rng: random.Random) -> Tool:
    """The question's tool; each run of it draws a value and notes it."""

    def function(**arguments: str) -> str:
        values[question["tool"]] = rng.randint(*question["range"])
        return question["result"].format(value=values[question["tool"]], **arguments)

    properties = {name: {"type": "string", "description": text} for name, text in question["arguments"].items()}
    schema = {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}
    return Tool(question["tool"], question["description"], schema, function)


def ask(question: dict[str, Any], others: list[dict[str, Any]], host: Host, seed: int) -> tuple[bool, bool]:
    """Whether the value came back, and whether the right tool was called."""
    rng, values = random.Random(seed), {}
    tools = [drawn_tool(q, values, rng) for q in (question, *others)]
    rng.shuffle(tools)
    agent = Agent("smollm2", tools=tools, tool_choice="required", host=host)
    result = agent.run(question["question"])
    value = values.get(question["tool"])
    return value is not None and str(value) in result.output, value is not None


def count(host: Host, others: int, seed: int) -> tuple[int, int]:
    rng = random.Random(seed)
    rows = []
    for question in QUESTIONS:
        more = rng.sample([q for q in QUESTIONS if q is not question], others)
        rows.append(ask(question, more, host, seed + question["id"]))
    answered, called = sum(a for a, _ in rows), sum(c for _, c in rows)
    print(f"{others + 1} tool(s): the value came back in {answered} of {len(rows)}, the right tool ran in {called}")
    return answered, called


@pytest.mark.real
def test_the_drawn_value_comes_back(host: Host) -> None:
    """With one tool, at least 16 of the 20 answers hold the value that the tool drew while the run went on."""
    assert len(QUESTIONS) == 20
    answered, called = count(host, others=0, seed=1)
    assert 16 <= answered <= called


@pytest.mark.full
@pytest.mark.real
def test_three_tools_are_counted(host: Host) -> None:
    """With three tools the model has to choose; what it manages is printed."""
    answered, called = count(host, others=2, seed=2)
    assert 0 < answered <= called <= 20
