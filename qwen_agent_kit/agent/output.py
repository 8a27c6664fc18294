"""Structured output: what is asked of the model, and how its answer is read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from qwen_agent_kit.backends import Capabilities
from qwen_agent_kit.errors import OutputError, UsageError
from qwen_agent_kit.messages import ToolCall
from qwen_agent_kit.tools import OutputType, Tool

__all__ = ["FINAL_ANSWER", "Wanted"]

FINAL_ANSWER = "final_answer"
_DEFINITIONS: tuple[str, ...] = ("$defs", "definitions")  # a reference points at them from the root


class Wanted:
    """The output that a run was asked for.

    Args:
        type: What the answer must be.
        caps: Of the model. Where it cannot take tools and a schema at once, the schema becomes the parameters of a tool
            ``final_answer``.
        tools: The names of the armed tools.

    Raises:
        UsageError: Where that tool is needed and a user's tool has its name.
    """

    def __init__(self, type: OutputType, caps: Capabilities, tools: Mapping[str, Tool]) -> None:  # noqa: A002  # the word
        self.type = type
        self.tool: Tool | None = None
        self._wrapped = type.schema.get("type") != "object"
        if tools and not caps.tools_with_schema:
            if FINAL_ANSWER in tools:
                raise UsageError(f"a tool is named {FINAL_ANSWER!r}, which this model needs for `output`")
            parameters = dict(type.schema)
            if self._wrapped:
                definitions: dict[str, Any] = {key: parameters.pop(key) for key in _DEFINITIONS if key in parameters}
                inner = {"answer": parameters}
                parameters = {"type": "object", "properties": inner, "required": ["answer"], **definitions}
            self.tool = Tool(FINAL_ANSWER, "Give the final answer.", parameters, dict)

    def request_schema(self) -> Mapping[str, Any] | None:
        """The schema to send with the request; None where it travels as a tool."""
        return None if self.tool is not None else self.type.schema

    def from_text(self, text: str) -> Any:
        """The validated answer in the final text.

        Raises:
            OutputError: A few lines for the model; they hold nothing of the answer.
        """
        return self.type.parse(text)

    def from_call(self, call: ToolCall) -> Any:
        """The validated answer in a call of ``final_answer``.

        Raises:
            OutputError: As ``from_text``.
        """
        if call.error is not None:
            raise OutputError(call.error)
        arguments: Any = dict(call.arguments)
        if self._wrapped:
            if set(arguments) != {"answer"}:
                raise OutputError("the answer does not fit its schema: `answer` is missing or is not alone")
            arguments = arguments["answer"]
        return self.type.parse(json.dumps(arguments))

    def correction(self, problem: str) -> str:
        """What the model is told after an answer that does not fit."""
        how = f"Call `{FINAL_ANSWER}` again" if self.tool is not None else "Answer again with the JSON alone"
        return f"{problem}\n{how}."
