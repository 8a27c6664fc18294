"""From messages and tools to token ids, with control tokens only where the model's template put them."""

from __future__ import annotations

from qwen_agent_kit.prompt.render import PromptRenderer, Rendered

__all__ = ["PromptRenderer", "Rendered"]
