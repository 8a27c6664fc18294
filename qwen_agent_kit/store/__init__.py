"""Conversations on disk: one SQLite file, each finished step one transaction."""

from __future__ import annotations

from qwen_agent_kit.store.store import Pending, Position, SessionInfo, Store, Stored

__all__ = ["Pending", "Position", "SessionInfo", "Store", "Stored"]
