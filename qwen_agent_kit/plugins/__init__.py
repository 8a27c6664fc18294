"""Plugins: found by metadata, imported when their kind is needed, registered with a fresh manager each time.

A distribution lists a module in an entry-point group per kind (``qwen_agent_kit.backends``, ``.models``, ``.engines``,
``.tools``, ``.commands``, ``.hooks``). Whatever is wrong with it becomes a row with its name and the cure; nothing that
a plugin does at import, registration or in a hook stops the rest. What no process can contain in itself (a crash of the
interpreter) stays uncontained: switch such a plugin off with ``QAK_PLUGINS_OFF``.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qwen_agent_kit.plugins.discovery import KINDS as KINDS
    from qwen_agent_kit.plugins.discovery import PluginRow as PluginRow
    from qwen_agent_kit.plugins.discovery import command_names as command_names
    from qwen_agent_kit.plugins.loading import API as API
    from qwen_agent_kit.plugins.loading import HOOKS as HOOKS
    from qwen_agent_kit.plugins.loading import Loaded as Loaded
    from qwen_agent_kit.plugins.loading import load as load
    from qwen_agent_kit.plugins.offers import call_list as call_list
    from qwen_agent_kit.plugins.offers import command as command
    from qwen_agent_kit.plugins.offers import inventory as inventory

# Imported on first use: `qak --help` needs the names of commands, and none of what loads them.
_HOMES = {
    "API": "loading",
    "HOOKS": "loading",
    "KINDS": "discovery",
    "Loaded": "loading",
    "PluginRow": "discovery",
    "call_list": "offers",
    "command": "offers",
    "command_names": "discovery",
    "inventory": "offers",
    "load": "loading",
}

__all__ = sorted(_HOMES)  # derived, so that the list and the homes cannot part


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
