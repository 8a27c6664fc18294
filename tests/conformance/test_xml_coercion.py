"""The values of XML parameters, as ollama, vLLM and sglang type them (01c_xml_value_coercion.jsonl)."""

from __future__ import annotations

from typing import Any

import pytest
from cases import load
from parsing import parse

CASES = load("01c_xml_value_coercion.jsonl")


@pytest.mark.parametrize("union", ["list", "anyOf"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case["id"])
def test_case(case: dict[str, Any], union: str) -> None:
    """The raw text between the tags becomes the value, whichever way the schema writes its types."""
    types = case["param_type"]
    schema = {"type": types} if union == "list" else {"anyOf": [{"type": name} for name in types]}
    parameters = {"type": "object", "properties": {"value": schema if types else {}}}
    tools = [{"type": "function", "function": {"name": "f", "parameters": parameters}}]
    turn = f"<tool_call><function=f><parameter=value>{case['raw']}</parameter></function></tool_call>"
    for pieces in ([turn], list(turn)):
        ((_, arguments),) = parse(pieces, dialect="xml", tools=tools).good
        assert arguments == {"value": case["expect"]}
        assert isinstance(arguments["value"], bool) == isinstance(case["expect"], bool)
