"""Hermes: a JSON object between control tags (Qwen2.5, Qwen3).

The text is what the official chat templates render::

    <tool_call>
    {"name": "f", "arguments": {...}}
    </tool_call>
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from qwen_agent_kit.dialects.base import Definition
from qwen_agent_kit.dialects.lark import Rules, parameters_of, quote
from qwen_agent_kit.dialects.tagged import Tagged

__all__ = ["Hermes", "json_call"]


@dataclass(frozen=True, slots=True)
class Hermes(Tagged):
    """JSON in ``<tool_call>``."""

    name: str = "hermes"
    call_body: Literal["json", "xml"] = "json"

    def tools_prompt(self, tools: Sequence[Definition]) -> str:
        """The section ``# Tools`` of the Qwen templates."""
        if not tools:
            return ""
        lines = "".join("\n" + json.dumps(tool, ensure_ascii=False) for tool in tools)
        return (
            "# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
            f"You are provided with function signatures within <tools></tools> XML tags:\n<tools>{lines}\n</tools>\n\n"
            "For each function call, return a json object with function name and arguments within "
            f"{self.call_open}{self.call_close} XML tags:\n{self.call_open}\n"
            f'{{"name": <function-name>, "arguments": <args-json-object>}}\n{self.call_close}'
        )

    def render_call(self, name: str, arguments: Mapping[str, Any]) -> str:
        body = json.dumps({"name": name, "arguments": dict(arguments)}, ensure_ascii=False)
        return f"{self.call_open}\n{body}\n{self.call_close}"

    def call_rule(self, rules: Rules, name: str, function: Mapping[str, Any]) -> str:
        return json_call(rules, name, function)


def json_call(rules: Rules, name: str, function: Mapping[str, Any]) -> str:
    """``{"name": "f", "arguments": {...}}`` as ``json.dumps`` writes it."""
    arguments = rules.add(f"{name}_arguments", rules.value(parameters_of(function), f"tool {function['name']!r}"))
    head = f'{{"name": {json.dumps(function["name"], ensure_ascii=False)}, "arguments": '
    return f"{quote(head)} {arguments} {quote('}')}"
