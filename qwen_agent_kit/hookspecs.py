"""Every hook of the kit, in one file.

A plugin implements the ones it needs with ``@hookimpl`` (from ``qwen_agent_kit.hookspecs`` or the top level). pluggy
calls implementations last-in-first-out; nothing here depends on that order.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pluggy

if TYPE_CHECKING:
    from collections.abc import Sequence

    import click

    from qwen_agent_kit.backends import Backend, ChatRequest, Choice, EngineSpec
    from qwen_agent_kit.catalog import ModelEntry
    from qwen_agent_kit.events import Step
    from qwen_agent_kit.messages import Message, ToolCall, ToolResult
    from qwen_agent_kit.tools import Tool

__all__ = ["PROJECT", "hookimpl", "hookspec"]

PROJECT = "qwen_agent_kit"
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@hookspec
def register_backends() -> list[Backend]:  # type: ignore[empty-body]  # a specification has no body
    """Offer backends: the modalities this plugin covers. Called once, when a host is made."""


@hookspec
def register_models() -> list[ModelEntry]:  # type: ignore[empty-body]  # a specification has no body
    """Offer models for the catalog. Called once, when a name has to be resolved or models are listed."""


@hookspec
def register_engines() -> list[EngineSpec]:  # type: ignore[empty-body]  # a specification has no body
    """Offer engines for ``prefix:spec`` model names. Called once, when such a name is opened."""


@hookspec
def register_tools() -> list[Tool]:  # type: ignore[empty-body]  # a specification has no body
    """Offer tools. They are available by name and armed only where a user names them."""


@hookspec
def register_commands(cli: click.Group) -> None:
    """Add commands to ``qak``. The entry point's name is the command's name, so that ``--help`` needs no import."""


@hookspec(firstresult=True)
def choose_backend(messages: Sequence[Message], backends: Sequence[Backend], current: str | None) -> Choice | None:
    """Choose the backend for the next step, or None to leave it to others.

    Args:
        messages: The whole history, as it will be rendered.
        backends: Those that are installed and eligible.
        current: The name of the backend of the last step.
    """


@hookspec(firstresult=True)
def run_tool(call: ToolCall, tool: Tool) -> ToolResult | None:
    """Run a validated call in place of the agent, or None to let it run. Wrappers (``wrapper=True``) may look on."""


@hookspec
def before_step(request: ChatRequest) -> None:
    """Look at what is about to be sent to the model. Called once a step, before the prompt is rendered."""


@hookspec
def on_step(step: Step) -> Any:
    """Look at a step that ended."""
