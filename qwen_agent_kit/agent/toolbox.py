"""Runs the calls of a run's steps, side by side."""

from __future__ import annotations

import contextvars
import queue
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from qwen_agent_kit.agent.calls import Planned, errand
from qwen_agent_kit.agent.cancel import Cancel
from qwen_agent_kit.agent.crew import Crew
from qwen_agent_kit.agent.inputs import parts_of
from qwen_agent_kit.agent.limits import Meter
from qwen_agent_kit.agent.setup import Setup
from qwen_agent_kit.errors import UsageError
from qwen_agent_kit.events import ToolCalled, ToolReturned
from qwen_agent_kit.messages import Media, Message, ToolCall, ToolResult

if TYPE_CHECKING:
    import asyncio

    from qwen_agent_kit.tools import Tool

__all__ = ["Toolbox", "find_media"]


class Toolbox:
    """Runs calls, side by side in threads that are kept from step to step; one alone where it was asked for.

    Args:
        setup: The agent, resolved.
        messages: The conversation, where tools look for media.
        meter: How long there is still time; what tools ask of models is counted there.
        cancel: Ends every wait.
        loop: The caller's event loop, for coroutine tools.
    """

    def __init__(
        self,
        setup: Setup,
        messages: Sequence[Message],
        meter: Meter,
        cancel: Cancel,
        loop: asyncio.AbstractEventLoop | None,
    ) -> None:
        self._setup = setup
        self._messages = messages
        self._meter = meter
        self._cancel = cancel
        self._loop = loop
        self._crew = Crew()

    @property
    def _alone(self) -> bool:
        """Whether the run is driven by this thread alone, without a deadline."""
        return self._loop is None and self._meter.deadline is None

    def close(self) -> None:
        """Let the threads go."""
        self._crew.close()

    def run(self, planned: Sequence[Planned]) -> Iterator[ToolCalled | ToolReturned]:
        """Run the calls that may run and tell of each as it ends; results land in ``planned``.

        A call that has not ended when the time is up is given up. On cancel the iterator ends at once.
        """
        todo = [item for item in planned if not item.waits and not item.returned]
        for item in todo:
            yield ToolCalled(item.call)
        ended: queue.SimpleQueue[tuple[Planned, ToolResult, float] | None] = queue.SimpleQueue()
        running = {id(item): item for item in todo if item.result is None}
        if len(running) == 1 and self._alone:
            # Nobody could stop or overtake it: handing it to a thread would cost more than the rest of the step.
            ended.put(contextvars.copy_context().run(self._job(*running.values())))
        else:
            for item in running.values():
                self._crew.submit(self._job(item), ended.put)
        for item in todo:
            if item.result is not None:
                yield _returned(item, item.result, 0.0)
        if running:
            yield from self._collect(running, ended)
        for item in running.values():
            if not self._cancel.is_set:
                yield _returned(item, errand(item.call, "given up: the time of the run is over"), 0.0)

    def _collect(
        self, running: dict[int, Planned], ended: queue.SimpleQueue[tuple[Planned, ToolResult, float] | None]
    ) -> Iterator[ToolReturned]:
        """Wait for the running calls; those that are left in ``running`` did not end."""

        def wake() -> None:
            ended.put(None)

        self._cancel.add(wake)
        try:
            while running:
                try:
                    news = ended.get(timeout=self._meter.seconds_left)
                except queue.Empty:
                    return
                if news is None:
                    return
                del running[id(news[0])]
                yield _returned(*news)
        finally:
            self._cancel.remove(wake)

    def _job(self, item: Planned) -> Callable[[], tuple[Planned, ToolResult, float]]:
        call, tool = item.call, item.tool
        assert tool is not None, "a call without a tool is settled"

        def job() -> tuple[Planned, ToolResult, float]:
            start = time.perf_counter()
            try:
                result = self._setup.hooks.run_tool(call, tool, lambda: self._call(call, tool))
            except BaseException as error:  # whatever a plugin raises must not lose the call
                if isinstance(error, KeyboardInterrupt) and threading.current_thread() is threading.main_thread():
                    raise  # the user's Ctrl-C, not the tool's
                result = errand(call, f"`{tool.name}` failed: {type(error).__name__}")
            return item, result, (time.perf_counter() - start) * 1000

        return job

    def _call(self, call: ToolCall, tool: Tool) -> ToolResult:
        from qwen_agent_kit.tools import ToolContext, run_call

        context = ToolContext(
            call, self._meter.deadline, self._cancel.event, lambda ref: find_media(self._messages, ref), self._ask
        )
        return run_call(tool, call, context, loop=self._loop)

    def _ask(self, parts: Sequence[Any], kinds: frozenset[str] | None) -> str:
        said, usage = self._setup.ask(parts_of(list(parts)), kinds, self._meter.deadline, self._cancel.event)
        self._meter.add_tokens(usage)
        return said


def _returned(item: Planned, result: ToolResult, ms: float) -> ToolReturned:
    item.result = result
    item.returned = True
    return ToolReturned(item.call, result, ms)


_REFERENCE = re.compile(r"\s*([a-z]*)[\s_-]*(\d{1,6})\s*", re.IGNORECASE)


def find_media(messages: Sequence[Message], ref: str) -> Media:
    """The medium that ``ref`` names.

    Args:
        messages: Where to look, in order.
        ref: ``image 1`` or ``audio_2`` (of that kind, from 1), ``3`` (of all), or the beginning of its sha256.

    Raises:
        UsageError: Where there is none; it names those that there are.
    """
    found = [part for message in messages for part in message.media]
    if match := _REFERENCE.fullmatch(ref):
        kind, number = match[1].lower(), int(match[2])
        some = [part for part in found if not kind or part.kind == kind]
        if 0 < number <= len(some):
            return some[number - 1]
    if len(ref) >= 6:
        for part in found:
            if part.digest is not None and part.digest.startswith(ref.lower()):
                return part
    counts: dict[str, int] = {}
    names = []
    for part in found:
        counts[part.kind] = counts.get(part.kind, 0) + 1
        names.append(f"{part.kind} {counts[part.kind]}")
    raise UsageError(f"there is no medium {ref[:80]!r}; there are: {', '.join(names[:20]) or 'none'}")
