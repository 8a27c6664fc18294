"""Formats of tool calls: each alone knows its delimiters, prompt text and grammar. ``get`` finds one by name."""

from __future__ import annotations

from qwen_agent_kit.dialects.base import Definition, Dialect
from qwen_agent_kit.dialects.check import check
from qwen_agent_kit.dialects.generic import Generic
from qwen_agent_kit.dialects.hermes import Hermes
from qwen_agent_kit.dialects.xml import Xml
from qwen_agent_kit.errors import UsageError

__all__ = ["Definition", "Dialect", "Generic", "Hermes", "NAMES", "Xml", "check", "get"]

NAMES: tuple[str, ...] = ("generic", "hermes", "xml")


def get(name: str) -> Dialect:
    """The dialect of that name.

    Raises:
        UsageError: For an unknown name.
    """
    found: dict[str, type[Dialect]] = {"generic": Generic, "hermes": Hermes, "xml": Xml}
    if name not in found:
        raise UsageError(f"no dialect is named {name!r}; allowed: {', '.join(NAMES)}")
    return found[name]()
