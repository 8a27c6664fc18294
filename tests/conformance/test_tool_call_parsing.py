"""Tool calls in text, as vLLM, sglang, ollama and llama.cpp read them (01_tool_call_parsing.jsonl)."""

from __future__ import annotations

from typing import Any

import pytest
from cases import load
from parsing import Outcome, as_control, parse

CASES = load("01_tool_call_parsing.jsonl")
GATED = [case for case in CASES if case["tier"] in ("consensus", "single_engine")]
OPEN = [case for case in CASES if case["tier"] == "engine_specific"]

OTHERWISE = {
    # The recorder noted that the block is open, while the upstream test's prompt had closed it.
    "TestDelegatingPromptDetection::test_think_end_in_generation_prompt_still_seeds_reasoning_ended": "prompt",
    "TestDelegatingPromptDetection::test_think_end_in_current_turn_parses_output_as_content": "prompt",
    # A bare JSON array of calls is written under a grammar of sglang's; no dialect of ours writes one.
    "TestJsonArrayParser::": "array",
    # ollama's parser for models that never think shows a block; ours is the parser of models that may.
    "ollama/qwen3vl_nonthinking_test.go:70": "no thinking",
    # `<think>` once more after the prompt's own: vLLM and Qwen's templates drop it, ollama shows it.
    "ollama/qwen3vl_thinking_test.go:85": "second tag",
}
PARTIAL = ("<to", "</think")
"""Ends of inputs that are half a tag; as control tokens there are no halves."""


def known(case: dict[str, Any]) -> bool:
    return any(part in case["id"] for part in OTHERWISE) and bool(case["input"])


def prefix(case: dict[str, Any]) -> str:
    """What the assistant had said before, where the case continues a message."""
    if "continue_final_message" not in case:
        return ""
    last = case["messages"][-1]
    closed = f"</think>{last['content']}" if case["continue_final_message"].endswith("CONTENT") else ""
    return str(last["reasoning_content"]) + closed


def outcomes(case: dict[str, Any]) -> list[Outcome]:
    """The case in text mode and in control mode, as it is cut, and for full texts also one character at a time."""
    json_body = "hermes" in case["family"] or "qwen3vl" in case["id"]
    chunks = [prefix(case), *(case.get("chunks") or [case["input"]])]
    options: dict[str, Any] = {
        "dialect": "hermes" if json_body else "xml",
        "tools": case["tools"],
        "reasoning": bool(case["starts_in_reasoning"]),
        "calls": case.get("tool_choice") != "none",
        "finish": "stop" if case["mode"] == "full" or case.get("finished") else None,
    }
    ways: list[Any] = [chunks]
    if case["mode"] == "full":
        ways.append(list("".join(chunks)))
    if case["mode"] == "stream_every_split":
        text = "".join(chunks)
        ways = [[text[:at], text[at:]] for at in range(len(text) + 1)] + [list(text)]
    found = [parse(way, **options) for way in ways]
    if not case["input"].endswith(PARTIAL):
        found += [parse(as_control(way), control=True, **options) for way in ways]
    return found


def differences(case: dict[str, Any], outcome: Outcome) -> list[str]:
    """What differs from the expected values; texts are compared stripped, arguments as JSON."""
    expect, fields, found = case["expect"], case["fields"], []
    for name in ("content", "reasoning"):
        if name in fields and (expect[name] or "").strip() != getattr(outcome, name).strip():
            found.append(f"{name}: {expect[name]!r} != {getattr(outcome, name)!r}")
    if "tool_calls" in fields:
        calls = [(call["name"], call["arguments"]) for call in expect["tool_calls"]]
        if calls != outcome.good:
            found.append(f"calls: {calls!r} != {outcome.calls!r}")
    if "raw_tool_calls" in fields:
        # These cases only say where calls begin and end; their insides are no calls, so each is an error quoting it.
        raw = [f"found {text.strip()!r};" for text in expect["raw_tool_calls"]]
        if len(raw) != len(outcome.calls) or not all(a in b for a, b in zip(raw, outcome.errors, strict=False)):
            found.append(f"raw calls: {raw!r} != {outcome.errors!r}")
    return found


@pytest.mark.parametrize("case", [case for case in GATED if not known(case)], ids=lambda case: case["id"])
def test_case(case: dict[str, Any]) -> None:
    """The case's text, reasoning and calls are found, in every mode."""
    for outcome in outcomes(case):
        assert not differences(case, outcome)


def test_every_consensus_case_is_a_gate() -> None:
    """No case on which the engines agree is left out, and each one left out is of one engine only."""
    assert not [case["id"] for case in CASES if case["tier"] == "consensus" and known(case)]
    assert len([case for case in GATED if known(case)]) <= 12


def test_engine_specific_cases_are_counted(capsys: pytest.CaptureFixture[str]) -> None:
    """Where the engines disagree no answer is right; how many go our way is printed."""
    ours = [case for case in OPEN if not any(differences(case, outcome) for outcome in outcomes(case))]
    with capsys.disabled():
        print(f"\nengine-specific tool-call cases as recorded: {len(ours)} of {len(OPEN)}")
    for case in OPEN:
        for outcome in outcomes(case):
            assert len(outcome.calls) >= len(outcome.good)
