"""For tests of tools: ``check_tools`` finds what would trouble a model, or a run, before either meets it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from qwen_agent_kit.errors import QakError
from qwen_agent_kit.messages import ToolCall
from qwen_agent_kit.tools import ArgumentsError, Tool, ToolSet, as_tool, check_schema, run_call

__all__ = ["ToolsReport", "check_tools"]

_STRANGER = "no_such_argument"
_WRONG: tuple[tuple[str, Any], ...] = (
    ("null", None),
    ("boolean", True),
    ("integer", 7),
    ("number", 0.5),
    ("string", "\ud800\0"),
    ("array", [[]]),
    ("object", {_STRANGER: [None]}),
)


@dataclass(frozen=True, slots=True)
class ToolsReport:
    """What ``check_tools`` looked at, and what it found: one line for each problem, beginning with the tool's name."""

    checked: tuple[str, ...]
    problems: tuple[str, ...] = ()


def check_tools(*tools: Any) -> ToolsReport:
    """Check tools, and plain functions that are to be tools, without running any of them.

    Each must have a description, a description of every parameter and none of a parameter that does not exist, a schema
    that is served everywhere and travels through JSON unchanged; wrong arguments must come back as a result for the
    model, never as an exception.

    Returns:
        The report, without problems.

    Raises:
        AssertionError: Names every problem.
        UsageError: For what is no tool.
    """
    made = [as_tool(value) for value in tools]
    problems = list(dict.fromkeys(f"{tool.name}: {problem}" for tool in made for problem in _problems(tool)))
    try:
        ToolSet(made)
    except QakError as error:
        problems.append(error.message)
    if problems:
        raise AssertionError("\n".join([f"{len(problems)} problems:", *problems]))
    return ToolsReport(tuple(tool.name for tool in made))


def _problems(tool: Tool) -> Iterator[str]:
    try:
        definition = tool.definition()
        check_schema(tool.parameters, what="its parameters")
    except QakError as error:
        yield error.message
        return
    if not tool.description.strip():
        yield "has no description; write a docstring"
    properties: Mapping[str, Any] = tool.parameters.get("properties", {})
    for name, schema in properties.items():
        if not (isinstance(schema, Mapping) and schema.get("description")):
            yield f"parameter `{name}` has no description; add it to the docstring"
    for name in tool.documented:
        if name not in properties and name != tool.context_parameter:
            yield f"the docstring describes `{name}`, which is no parameter"
    if json.loads(json.dumps(definition)) != definition:
        yield "its definition changes on the way through JSON"
    yield from _trials(tool, properties)


def _trials(tool: Tool, properties: Mapping[str, Any]) -> Iterator[str]:
    """Wrong arguments. Only what the tool refuses is sent through ``run_call``, so that nothing runs."""
    trials: list[Any] = [{}, {_STRANGER: 1}, *({name: value} for name in properties for _, value in _WRONG)]
    for arguments in trials:
        try:
            tool.validate(arguments)
        except ArgumentsError as error:
            if error.__cause__ is not None:
                yield f"its validation of {sorted(arguments)} raises {type(error.__cause__).__name__}"
            result = run_call(tool, ToolCall("check", tool.name, arguments))
            if not result.is_error or not result.text:
                yield f"wrong arguments for {sorted(arguments)} give no error for the model"
