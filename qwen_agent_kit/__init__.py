"""qwen_agent_kit: a multimodal agent framework for Qwen models that owns its engine.

The public names are imported on first use, so that ``from qwen_agent_kit import Agent`` loads no more than it needs.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qwen_agent_kit.agent import Agent as Agent
    from qwen_agent_kit.agent import Limits as Limits
    from qwen_agent_kit.backends import Backend as Backend
    from qwen_agent_kit.backends import Sampling as Sampling
    from qwen_agent_kit.backends import Usage as Usage
    from qwen_agent_kit.events import ReasoningDelta as ReasoningDelta
    from qwen_agent_kit.events import RunDone as RunDone
    from qwen_agent_kit.events import StepDone as StepDone
    from qwen_agent_kit.events import TextDelta as TextDelta
    from qwen_agent_kit.events import ToolCalled as ToolCalled
    from qwen_agent_kit.events import ToolReturned as ToolReturned
    from qwen_agent_kit.hookspecs import hookimpl as hookimpl
    from qwen_agent_kit.host import Host as Host
    from qwen_agent_kit.host import load_engine as load_engine
    from qwen_agent_kit.host import plan as plan
    from qwen_agent_kit.messages import Audio as Audio
    from qwen_agent_kit.messages import Image as Image
    from qwen_agent_kit.messages import Media as Media
    from qwen_agent_kit.messages import Message as Message
    from qwen_agent_kit.messages import Reasoning as Reasoning
    from qwen_agent_kit.messages import Text as Text
    from qwen_agent_kit.messages import ToolCall as ToolCall
    from qwen_agent_kit.messages import ToolResult as ToolResult
    from qwen_agent_kit.messages import Video as Video
    from qwen_agent_kit.pipeline import run_pipeline as run_pipeline
    from qwen_agent_kit.tools import Tool as Tool
    from qwen_agent_kit.tools import ToolContext as ToolContext
    from qwen_agent_kit.tools import tool as tool

_HOMES = {
    "Agent": "agent",
    "Audio": "messages",
    "Backend": "backends",
    "Host": "host",
    "Image": "messages",
    "Limits": "agent",
    "Media": "messages",
    "Message": "messages",
    "Reasoning": "messages",
    "ReasoningDelta": "events",
    "RunDone": "events",
    "Sampling": "backends",
    "StepDone": "events",
    "Text": "messages",
    "TextDelta": "events",
    "Tool": "tools",
    "ToolCall": "messages",
    "ToolCalled": "events",
    "ToolContext": "tools",
    "ToolResult": "messages",
    "ToolReturned": "events",
    "Usage": "backends",
    "Video": "messages",
    "hookimpl": "hookspecs",
    "load_engine": "host",
    "plan": "host",
    "run_pipeline": "pipeline",
    "tool": "tools",
}

__all__ = sorted(_HOMES)  # derived, so that the list and the homes cannot part
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
