"""Generic: for models whose template has no tools and whose vocabulary has no tags (SmolLM2).

Calls are recognised by text that the grammar wrote, so prose that quotes ``<tool_call>`` reads as a call. The prompt is
short: a small model follows one example better than a specification, and each of its tokens is computed on every run.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from qwen_agent_kit.dialects.base import Definition, Thinking, ToolChoice
from qwen_agent_kit.dialects.hermes import json_call
from qwen_agent_kit.dialects.lark import step

__all__ = ["Generic"]


@dataclass(frozen=True, slots=True)
class Generic:
    """JSON between text delimiters."""

    name: str = "generic"
    call_open: str = "<tool_call>"
    call_close: str = "</tool_call>"
    think_open: str = "<think>"
    think_close: str = "</think>"
    call_body: Literal["json", "xml"] = "json"

    def tools_prompt(self, tools: Sequence[Definition]) -> str:
        """One line per tool, then the form of a call, shown with the first tool."""
        if not tools:
            return ""
        lines = [f"- {_signature(tool['function'])}" for tool in tools]
        form = self.render_call("NAME", {"ARGUMENT": "VALUE"})
        return (
            "You can call these tools:\n"
            + "\n".join(lines)
            + f"\nTo call a tool, write {form}. Then you are given its result. Repeat the result in your answer."
        )

    def render_call(self, name: str, arguments: Mapping[str, Any]) -> str:
        body = json.dumps({"name": name, "arguments": dict(arguments)}, ensure_ascii=False)
        return f"{self.call_open}{body}{self.call_close}"

    def render_result(self, text: str) -> str:
        return f"The tool's result is: {text}\nTell me this result in one sentence."

    def grammar(
        self,
        tools: Sequence[Definition],
        *,
        tool_choice: ToolChoice = "auto",
        output_schema: Mapping[str, Any] | None = None,
        thinking: Thinking = "no",
        parallel: bool = True,
        control: Mapping[str, int],
    ) -> str | None:
        """One step with one call at most: models of this kind repeat a call rather than making two."""
        del parallel
        return step(
            self,
            tools,
            tool_choice=tool_choice,
            output_schema=output_schema,
            thinking=thinking,
            parallel=False,
            control=control,
            call=json_call,
            gap="",
        )


def _signature(function: Mapping[str, Any]) -> str:
    """``name(city: string, days?: integer): the description``."""
    parameters = function.get("parameters") or {}
    required = set(parameters.get("required", ()))
    arguments = ", ".join(
        f"{name}{'' if name in required else '?'}: {_kind(schema)}"
        for name, schema in (parameters.get("properties") or {}).items()
    )
    description = " ".join(str(function.get("description", "")).split())
    return f"{function['name']}({arguments})" + (f": {description}" if description else "")


def _kind(schema: Any) -> str:
    if not isinstance(schema, Mapping):
        return "any"
    if isinstance(schema.get("enum"), Sequence):
        return "|".join(json.dumps(value, ensure_ascii=False) for value in schema["enum"])
    kind = schema.get("type", "any")
    return kind if isinstance(kind, str) else "|".join(map(str, kind)) if isinstance(kind, Sequence) else "any"
