"""XML: a function with parameters between control tags (Qwen3-Coder, Qwen3.5).

Strings stand as raw text, everything else as JSON::

    <tool_call>
    <function=name>
    <parameter=city>
    Oslo
    </parameter>
    </function>
    </tool_call>
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from qwen_agent_kit.dialects.base import Definition
from qwen_agent_kit.dialects.lark import Rules
from qwen_agent_kit.dialects.tagged import Tagged
from qwen_agent_kit.dialects.xml_values import xml_call

__all__ = ["Xml"]


@dataclass(frozen=True, slots=True)
class Xml(Tagged):
    """``<function=...>`` and ``<parameter=...>`` in ``<tool_call>``."""

    name: str = "xml"
    call_body: Literal["json", "xml"] = "xml"

    def tools_prompt(self, tools: Sequence[Definition]) -> str:
        """The definitions and the form of a call."""
        if not tools:
            return ""
        lines = "".join("\n" + json.dumps(tool, ensure_ascii=False) for tool in tools)
        form = self.render_call("NAME", {"PARAMETER": "value"})
        return (
            f"# Tools\n\nYou have access to the following functions:\n\n<tools>{lines}\n</tools>\n\n"
            f"If you choose to call a function, reply in this format:\n\n{form}"
        )

    def render_call(self, name: str, arguments: Mapping[str, Any]) -> str:
        lines = [self.call_open, f"<function={name}>"]
        for key, value in arguments.items():
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            lines += [f"<parameter={key}>", text, "</parameter>"]
        return "\n".join([*lines, "</function>", self.call_close])

    def call_rule(self, rules: Rules, name: str, function: Mapping[str, Any]) -> str:
        return xml_call(rules, name, function)
