"""Reasoning in text, as vLLM, sglang, ollama and llama.cpp split it off (01b_reasoning_parsing.jsonl)."""

from __future__ import annotations

from typing import Any

import pytest
from cases import load
from parsing import as_control, parse

CASES = load("01b_reasoning_parsing.jsonl")
CALL = "<tool_call>"


def before(case: dict[str, Any]) -> str:
    """What the assistant had said before, where the case continues a message."""
    if "continue_final_message" not in case:
        return ""
    last = case["messages"][-1]
    closed = f"</think>{last['content']}" if case["continue_final_message"].endswith("CONTENT") else ""
    return str(last["reasoning_content"]) + closed


@pytest.mark.parametrize("control", [False, True], ids=["text", "control"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case["id"])
def test_case(case: dict[str, Any], control: bool) -> None:
    """Reasoning and content are what the case says, the space around them aside."""
    chunks = [before(case), *(case.get("chunks") or [case["input"]])]
    options: dict[str, Any] = {"dialect": "xml", "control": control}
    finish = "stop" if case["mode"] == "full" or case.get("finished") else None
    reasoning = bool(case["starts_in_reasoning"])
    for way in (chunks, list("".join(chunks))):
        pieces = as_control(way) if control else way
        outcome = parse(pieces, reasoning=reasoning, finish=finish, tools=case["tools"], **options)
        assert outcome.reasoning.strip() == (case["expect"]["reasoning"] or "").strip()
        content = case["expect"]["content"] or ""
        if CALL in content:  # upstream gives calls on to a second parser as content; ours reads both at once
            rest = parse(as_control([content]) if control else [content], **options)
            assert (outcome.content, outcome.good) == (rest.content, rest.good)
            assert outcome.good
        else:
            assert outcome.content.strip() == content.strip()
            assert outcome.good == []
