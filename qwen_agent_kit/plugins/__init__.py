"""Plugins: found by metadata, imported when their kind is needed, registered with a fresh manager each time.

A distribution lists a module in an entry-point group per kind (``qwen_agent_kit.backends``, ``.models``, ``.engines``,
``.tools``, ``.commands``, ``.hooks``). Whatever is wrong with it becomes a row with its name and the cure; nothing that
a plugin does at import, registration or in a hook stops the rest. What no process can contain in itself (a crash of the
interpreter) stays uncontained: switch such a plugin off with ``QAK_PLUGINS_OFF``.
"""

from __future__ import annotations

from qwen_agent_kit.plugins.discovery import KINDS, PluginRow
from qwen_agent_kit.plugins.loading import API, HOOKS, Loaded, load
from qwen_agent_kit.plugins.offers import call_list, command, command_names, inventory

__all__ = [
    "API",
    "HOOKS",
    "KINDS",
    "Loaded",
    "PluginRow",
    "call_list",
    "command",
    "command_names",
    "inventory",
    "load",
]
