"""Grammar text that all dialects share: llguidance's Lark (docs/syntax.md of https://github.com/guidance-ai/llguidance).

The first line of a text is a comment with JSON, a note to the engine: ``reserve``, about how many tokens one choice can
still demand, ``closers``, texts that end free text, and ``samples``, texts of which some end completes a string
that has a pattern. The engine uses them near the token limit.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from qwen_agent_kit.dialects.base import Definition, Dialect, Thinking
from qwen_agent_kit.dialects.prepare import prepared
from qwen_agent_kit.dialects.samples import samples
from qwen_agent_kit.dialects.schema import checked, longest_close
from qwen_agent_kit.errors import SchemaError, UsageError

__all__ = ["Rules", "chosen", "quote", "step", "without"]

MOST_RESERVED = 256
"""Tokens; what needs more is caught by looking ahead all the same, only with fewer tokens to choose from."""

NOTHING: Mapping[str, Any] = {"type": "object", "properties": {}, "additionalProperties": False}


def quote(text: str) -> str:
    """A Lark string that matches exactly this text."""
    return json.dumps(text)


def without(pattern: str) -> str:
    """A Lark terminal for bytes of any length in which the pattern occurs nowhere.

    To keep to whole characters, join it to a regex with ``&``; each term costs the lexer states, so not without need.
    """
    return f"~/(?s:.*){pattern}(?s:.*)/"


@dataclass
class Rules:
    """The rules of one grammar as they are written.

    Args:
        control: Tags that are single tokens, and their ids.
    """

    control: Mapping[str, int]
    lines: list[str] = field(default_factory=list)
    closers: list[str] = field(default_factory=list)
    samples: list[str] = field(default_factory=list)
    reserve: int = 24

    def add(self, name: str, body: str) -> str:
        """Write a rule and return its name."""
        self.lines.append(f"{name}: {body}")
        return name

    def tag(self, text: str) -> str:
        """A delimiter: one token where the vocabulary has it, else its text."""
        return f"<[{self.control[text]}]>" if text in self.control else quote(text)

    def value(self, schema: Any, where: str) -> str:
        """A JSON value of that schema.

        Raises:
            SchemaError: For a schema that is refused without a compiler.
        """
        nodes = checked(schema, where=where)
        self.reserve = max(self.reserve, min(MOST_RESERVED, longest_close(schema, nodes) + 24))
        self.samples += [json.dumps(text)[1:] for text in samples(nodes)]
        return f"%json {json.dumps(prepared(schema))}"

    def free(self, name: str, *until: str) -> str:
        """Text up to a tag, the tag included; None of the other tags occurs in it."""
        if until[0] in self.control:
            self.add(name.upper(), "/(?s:.*)/")
            return f"{name.upper()} {self.tag(until[0])}"
        self.closers.append(until[0])
        self.add(f"{name}[lazy]", f"/(?s:.*)/ {quote(until[0])}")
        return name

    def text(self) -> str:
        """The grammar."""
        closers, found = list(dict.fromkeys(self.closers)), list(dict.fromkeys(self.samples))
        note = json.dumps({"reserve": self.reserve, "closers": closers, "samples": found})
        return "\n".join([f"// {note}", *self.lines, ""])


def chosen(tools: Sequence[Definition], tool_choice: str) -> list[Mapping[str, Any]]:
    """The functions that may be called under this choice, each ``{name, description, parameters}``.

    Raises:
        UsageError: For a choice that names no armed tool, two tools of one name, or ``required`` without tools.
    """
    functions = [tool["function"] for tool in tools]
    names = [function["name"] for function in functions]
    for name in names:
        if names.count(name) > 1:
            raise UsageError(f"two tools are named {name!r}")
    if tool_choice == "none":
        return []
    if tool_choice in ("auto", "required"):
        if tool_choice == "required" and not functions:
            raise UsageError("tool_choice is 'required', and no tool is armed")
        return functions
    if tool_choice not in names:
        raise UsageError(f"tool_choice is {tool_choice!r}; allowed: auto, required, none, {', '.join(names) or '-'}")
    return [functions[names.index(tool_choice)]]


def parameters_of(function: Mapping[str, Any]) -> Mapping[str, Any]:
    """The schema of a tool's arguments, always of an object.

    Raises:
        SchemaError: Where it is anything else.
    """
    schema = function.get("parameters") or NOTHING
    if not isinstance(schema, Mapping) or schema.get("type", "object") != "object":
        raise SchemaError(f"tool {function['name']!r}: the arguments are not an object", pointer="/type")
    return schema if "type" in schema else {"type": "object", **schema}


def step(
    dialect: Dialect,
    tools: Sequence[Definition],
    *,
    tool_choice: str,
    output_schema: Mapping[str, Any] | None,
    thinking: Thinking,
    parallel: bool,
    control: Mapping[str, int],
    call: Callable[[Rules, str, Mapping[str, Any]], str],
    gap: str = "\n",
) -> str | None:
    """The grammar of one step; ``call`` writes the text between a call's tags, ``gap`` stands at its ends."""
    functions = chosen(tools, tool_choice)
    if not functions and output_schema is None:
        return None
    rules = Rules(control)
    branches: list[str] = []
    calls = ""
    if functions:
        bodies = [rules.add(f"call_{i}", call(rules, f"call_{i}", function)) for i, function in enumerate(functions)]
        inner = rules.add("inner", " | ".join(bodies))
        between = f"{quote(gap)} " if gap else ""
        rules.add("rest", f"{between}{inner} {between}{rules.tag(dialect.call_close)}")
        more = f" ({quote(chr(10))} {rules.tag(dialect.call_open)} rest)*" if parallel else ""
        rules.add("calls", f"rest{more}")
        calls = f"{rules.tag(dialect.call_open)} calls"
    if output_schema is not None and (tool_choice in ("auto", "none") or not functions):
        rules.add("final", rules.value(output_schema, "the output schema"))
        branches.append("final")
    if calls and (output_schema is not None or tool_choice != "auto"):
        branches.append(calls)
    elif calls:
        branches += _auto(rules, dialect)
    _start(rules, dialect, thinking, branches, loose=output_schema is None and tool_choice == "auto")
    return rules.text()


def _auto(rules: Rules, dialect: Dialect) -> list[str]:
    """Text, or calls with or without text before them; text cannot hold the opening tag."""
    if dialect.call_open in rules.control:
        rules.add("TEXT", "/(?s:.*)/")
        return ["TEXT", f"TEXT {rules.tag(dialect.call_open)} calls"]
    rules.add("TEXT", f"/(?s:.*)/ & {without(re.escape(dialect.call_open).replace('/', chr(92) + '/'))}")
    rules.add("lead[lazy]", f"/(?s:.*)/ {quote(dialect.call_open)}")
    return ["TEXT", "lead calls"]


def _start(rules: Rules, dialect: Dialect, thinking: Thinking, branches: list[str], *, loose: bool) -> None:
    """``think?`` before the branches; newlines may stand between where the branches do not take them."""
    body = " | ".join(branches)
    if thinking == "no":
        rules.add("start", body)
        return
    thought = rules.free("thought", dialect.think_close)
    rules.add("GAP", r"/\n{1,2}/")
    rules.add("body", body)
    after = "body" if loose else "GAP? body"
    if thinking == "open":
        rules.add("start", f"{thought} {after}")
    else:
        rules.add("start", f"body | {rules.tag(dialect.think_open)} {thought} {after}")
