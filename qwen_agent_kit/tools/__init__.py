"""Tools: functions that a model may call."""

from qwen_agent_kit.tools.context import ToolContext
from qwen_agent_kit.tools.definition import Tool, ToolSet, as_tool, tool
from qwen_agent_kit.tools.results import to_parts
from qwen_agent_kit.tools.running import run_call
from qwen_agent_kit.tools.schema import OutputType, check_schema, output_type
from qwen_agent_kit.tools.validation import ArgumentsError

__all__ = [
    "ArgumentsError",
    "OutputType",
    "Tool",
    "ToolContext",
    "ToolSet",
    "as_tool",
    "check_schema",
    "output_type",
    "run_call",
    "to_parts",
    "tool",
]
