"""A run's result out of its events."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, Iterable

from qwen_agent_kit.events import Event, RunDone, RunResult

__all__ = ["alast", "last"]


def last(events: Iterable[Event]) -> RunResult:
    """Let a run go to its end."""
    result = None
    for event in events:
        if isinstance(event, RunDone):
            result = event.result
    assert result is not None, "a run ends with RunDone or raises"
    return result


async def alast(events: AsyncGenerator[Event, None]) -> RunResult:
    """Let a run go to its end, and end with the task that waits for it."""
    result = None
    async with contextlib.aclosing(events) as run:
        async for event in run:
            if isinstance(event, RunDone):
                result = event.result
    assert result is not None, "a run ends with RunDone or raises"
    return result
