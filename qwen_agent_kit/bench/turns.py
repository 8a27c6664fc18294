"""The workload of ``qak bench agent``: a system prompt, 14 tools, and results of fixed length."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from typing import Any

from qwen_agent_kit import dialects
from qwen_agent_kit.catalog import dialect_of
from qwen_agent_kit.messages import Message, Text
from qwen_agent_kit.models import LoadedModel
from qwen_agent_kit.prompt import PromptRenderer

__all__ = ["Workload", "make_workload"]

BEGINNING = 1500
RESULT = 150

_NOUNS = ("invoice", "customer", "shipment", "meeting", "ticket", "report", "sensor")
_VERBS = ("find", "update")
_TEXT = (
    "the order was confirmed by the warehouse and leaves on Tuesday with two parcels of books and one lamp "
    "while the invoice for the second customer is still open because its address could not be verified so the "
    "team asked for a new one and moved the meeting to the afternoon before the report on energy use is due"
)
_WORDS = _TEXT.split()


@dataclass(frozen=True)
class Workload:
    """What every side is given.

    Args:
        beginning: Ids of system prompt and tools, and the question.
        results: Per step the ids of a tool's result and of what opens the next turn.
        grammar: The grammar of the 14 tools, a call required.
    """

    beginning: list[int]
    results: list[list[int]]
    grammar: str


def make_workload(loaded: LoadedModel, steps: int) -> Workload:
    """About ``BEGINNING`` tokens of system prompt, tools and question, then ``RESULT`` per tool result."""
    assert loaded.template is not None, "the models that are measured have a template"
    dialect = dialects.get(dialect_of(loaded.template))
    renderer = PromptRenderer(loaded.tokenizer_json, loaded.template, dialect=dialect, special=loaded.special)
    tools = [_tool(verb, noun) for noun in _NOUNS for verb in _VERBS]
    choice = random.Random(7)  # noqa: S311  # the same text every time
    words: list[str] = []

    def rendered(count: int) -> list[int]:
        while len(words) < count:
            words.append(choice.choice(_WORDS) if choice.random() < 0.9 else f"{choice.randrange(1000)}.")
        system = "You keep an office running. " + " ".join(words[:count])
        messages = (Message("system", (Text(system),)), Message("user", (Text("Look up what is open and settle it."),)))
        return list(renderer.render(messages, tools=tools).ids)

    count = 0
    while len(ids := rendered(count)) < BEGINNING:
        count += max(1, (BEGINNING - len(ids)) // 2)
    grammar = dialect.grammar(
        tools, tool_choice="required", output_schema=None, thinking="no", control=renderer.control
    )
    assert grammar is not None, "a required call has a grammar"
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_str(loaded.tokenizer_json)
    results = []
    for step in range(steps):
        text = json.dumps([_record(choice, step, row) for row in range(12)])
        results.append(tokenizer.encode(text, add_special_tokens=False).ids[:RESULT])
    return Workload(ids, results, grammar)


def _tool(verb: str, noun: str) -> dict[str, Any]:
    properties = {
        f"{noun}_id": {"type": "integer"},
        "status": {"type": "string", "enum": ["open", "closed", "waiting"]},
        "note": {"type": "string"},
    }
    parameters = {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }
    description = f"{verb.capitalize()} one {noun}."
    return {
        "type": "function",
        "function": {"name": f"{verb}_{noun}", "description": description, "parameters": parameters},
    }


def _record(choice: random.Random, step: int, row: int) -> dict[str, Any]:
    return {
        "id": step * 100 + row,
        "status": choice.choice(["open", "closed", "waiting"]),
        "note": " ".join(choice.choices(_WORDS, k=5)),
    }
