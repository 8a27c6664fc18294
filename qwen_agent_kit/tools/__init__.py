"""Tools: functions that a model may call.

The names are imported on first use: a program that decorates functions and runs none loads only what that takes.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qwen_agent_kit.tools.context import ToolContext as ToolContext
    from qwen_agent_kit.tools.definition import Tool as Tool
    from qwen_agent_kit.tools.definition import ToolSet as ToolSet
    from qwen_agent_kit.tools.definition import as_tool as as_tool
    from qwen_agent_kit.tools.definition import tool as tool
    from qwen_agent_kit.tools.results import to_parts as to_parts
    from qwen_agent_kit.tools.running import run_call as run_call
    from qwen_agent_kit.tools.schema import OutputType as OutputType
    from qwen_agent_kit.tools.schema import output_type as output_type
    from qwen_agent_kit.tools.schema_check import check_schema as check_schema
    from qwen_agent_kit.tools.validation import ArgumentsError as ArgumentsError

_HOMES = {
    "ArgumentsError": "validation",
    "OutputType": "schema",
    "Tool": "definition",
    "ToolContext": "context",
    "ToolSet": "definition",
    "as_tool": "definition",
    "check_schema": "schema_check",
    "output_type": "schema",
    "run_call": "running",
    "to_parts": "results",
    "tool": "definition",
}

__all__ = sorted(_HOMES)  # derived, so that the list and the homes cannot part


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value
