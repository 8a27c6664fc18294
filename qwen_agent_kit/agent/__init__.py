"""The agent: a model, its tools and the loop between them."""

from __future__ import annotations

from qwen_agent_kit.agent.agent import Agent
from qwen_agent_kit.agent.chat import Chat
from qwen_agent_kit.agent.limits import Limits

__all__ = ["Agent", "Chat", "Limits"]
