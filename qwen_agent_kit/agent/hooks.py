"""The four hooks of the loop, called with as little ceremony as possible."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from qwen_agent_kit.backends import Backend, ChatRequest, Choice
from qwen_agent_kit.events import Step
from qwen_agent_kit.hookspecs import hookimpl
from qwen_agent_kit.messages import Message, ToolCall, ToolResult

if TYPE_CHECKING:
    from pluggy import PluginManager

    from qwen_agent_kit.tools import Tool

__all__ = ["Hooks", "narrowest"]


class _Runner:
    """The last implementation of ``run_tool``: the run itself, so that wrappers wrap what truly runs."""

    def __init__(self) -> None:
        self.work: dict[int, Callable[[], ToolResult]] = {}

    @hookimpl(trylast=True)
    def run_tool(self, call: ToolCall, tool: Tool) -> ToolResult | None:
        del tool
        work = self.work.get(id(call))
        return None if work is None else work()


class Hooks:
    """Calls the hooks of an agent's plugins; a hook that nobody implements costs a look at a list.

    Args:
        base: The manager of the host, whose plugins take part.
        extra: Plugin objects of this agent.

    Raises:
        PluginError: Where one of ``extra`` does not fit the hooks.
    """

    def __init__(self, base: PluginManager | None, extra: Sequence[Any]) -> None:
        from qwen_agent_kit.plugins.loading import load_kinds

        loaded = load_kinds((), extra=extra)
        self.manager = loaded.manager
        for _, plugin in base.list_name_plugin() if base is not None else ():
            if plugin is not None:
                self.manager.register(plugin)
        hook = self.manager.hook
        self._before = bool(hook.before_step.get_hookimpls())
        self._after = bool(hook.on_step.get_hookimpls())
        self._choose = bool(hook.choose_backend.get_hookimpls())
        self._run = bool(hook.run_tool.get_hookimpls())
        self._runner = _Runner()
        self._lock = threading.Lock()
        self.manager.register(self._runner)

    def before_step(self, request: ChatRequest) -> None:
        """Show the request that is about to be sent."""
        if self._before:
            self.manager.hook.before_step(request=request)

    def on_step(self, step: Step) -> None:
        """Show a step that ended."""
        if self._after:
            self.manager.hook.on_step(step=step)

    def choose_backend(
        self,
        messages: Sequence[Message],
        backends: Sequence[Backend],
        current: str | None,
        kinds: frozenset[str],
        resident: frozenset[str] = frozenset(),
    ) -> Choice:
        """The backend for the next step: a plugin's choice, else the narrowest that covers ``kinds``.

        A plugin that chooses one that is not installed is passed over, and the reason says so.
        """
        choice = None
        if self._choose:
            choice = self.manager.hook.choose_backend(messages=messages, backends=backends, current=current)
        if choice is None:
            return narrowest(backends, current, kinds, resident)
        if choice.backend not in {backend.name for backend in backends}:
            own = narrowest(backends, current, kinds, resident)
            return Choice(own.backend, f"{own.reason} (a plugin chose {choice.backend!r}, which is not installed)")
        return Choice(choice.backend, choice.reason)

    def run_tool(self, call: ToolCall, tool: Tool, run: Callable[[], ToolResult]) -> ToolResult:
        """Run a call: a plugin in place of ``run``, or ``run`` inside the plugins' wrappers."""
        if not self._run:
            return run()
        with self._lock:
            self._runner.work[id(call)] = run
        try:
            result = self.manager.hook.run_tool(call=call, tool=tool)
        finally:
            with self._lock:
                self._runner.work.pop(id(call), None)
        assert isinstance(result, ToolResult), "the last implementation returns one"
        return result


def narrowest(
    backends: Sequence[Backend], current: str | None, kinds: frozenset[str], resident: frozenset[str] = frozenset()
) -> Choice:
    """The current backend where it covers ``kinds`` (its cache holds the conversation), else the narrowest one.

    Args:
        backends: Those that can drive an eligible model.
        current: Of the last step.
        kinds: What the conversation holds.
        resident: Names of those whose model is open; of two equally narrow ones such a one is taken.
    """
    covering = [backend for backend in backends if kinds <= backend.accepts]
    if not covering:
        return Choice("", f"no installed backend covers {', '.join(sorted(kinds))}")
    for backend in covering:
        if backend.name == current:
            return Choice(current, "covers the conversation and is in use")
    least = min(len(backend.accepts) for backend in covering)
    narrow = sorted((b.name not in resident, b.name) for b in covering if len(b.accepts) == least)
    why = f"the narrowest that covers {', '.join(sorted(kinds))}"
    return Choice(narrow[0][1], why if len(narrow) == 1 or narrow[0][0] else f"{why}, and its model is open")
