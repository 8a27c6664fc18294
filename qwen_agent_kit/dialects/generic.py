"""Generic: for models whose template has no tools and whose vocabulary has no tags (SmolLM2).

Calls are recognised by text that the grammar wrote, so prose that quotes ``<tool_call>`` reads as a call. The prompt is
short: a small model follows one example better than a specification, and each of its tokens is computed on every run.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from qwen_agent_kit.dialects.base import Definition
from qwen_agent_kit.dialects.hermes import json_call
from qwen_agent_kit.dialects.lark import Rules
from qwen_agent_kit.dialects.tagged import Tagged

__all__ = ["Generic"]


@dataclass(frozen=True, slots=True)
class Generic(Tagged):
    """JSON between text delimiters."""

    name: str = "generic"
    call_body: Literal["json", "xml"] = "json"

    several: ClassVar[bool] = False
    """Models of this kind repeat a call rather than making two."""

    gap: ClassVar[str] = ""

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

    def call_rule(self, rules: Rules, name: str, function: Mapping[str, Any]) -> str:
        return json_call(rules, name, function)


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
