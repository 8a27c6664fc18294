"""Pieces of generated text become text, reasoning and tool calls, as early as is safe."""

from __future__ import annotations

from qwen_agent_kit.parse.stream import StreamParser

__all__ = ["StreamParser"]
