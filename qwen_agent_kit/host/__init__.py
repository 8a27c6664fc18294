"""Opens models and keeps them. The only package that knows placement, models and engine together."""

from __future__ import annotations

from qwen_agent_kit.host.host import Host, default_host, load_engine, plan

__all__ = ["Host", "default_host", "load_engine", "plan"]
