"""Runs a call of a tool. Whatever the tool does, a ``ToolResult`` comes back.

Where a call runs: a plain function in the caller's thread, or, where a time limit or a cancel could come between, in a
thread of its own that is abandoned then; a coroutine on the caller's event loop or on the kit's private one; an
isolated tool in a child process, which is killed. Context variables are the caller's everywhere but in the child.
"""

from __future__ import annotations

import contextvars
import inspect
import logging
import threading
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from qwen_agent_kit.messages import Part, Text, ToolCall, ToolResult
from qwen_agent_kit.tools.context import ToolContext
from qwen_agent_kit.tools.definition import Tool
from qwen_agent_kit.tools.results import MAX_CHARS, UnusableResultError, clean, safe_text, to_parts
from qwen_agent_kit.tools.validation import ArgumentsError

if TYPE_CHECKING:
    import asyncio

__all__ = ["run_call"]

_LOG = logging.getLogger("qwen_agent_kit")
_TICK = 0.05
"""Seconds between two looks at whether the run was cancelled."""
MAX_ERROR = 1000


class _Stopped(Exception):  # noqa: N818  # a way out, no error
    """The call was given up; the text says why."""


@dataclass(slots=True)
class _Job:
    """One call on its way."""

    tool: Tool
    values: dict[str, Any]
    context: ToolContext
    limit: float | None
    max_chars: int
    loop: asyncio.AbstractEventLoop | None

    def abandon(self) -> None:
        """Tell the tool, where it can hear it, that nobody waits any more."""
        if self.tool.context_parameter is not None:  # else the context is the run's, which goes on
            self.context.abandoned.set()

    def watch(self, wait: Callable[[float], bool], end: str) -> None:
        """Wait in ticks until ``wait`` is true.

        Raises:
            _Stopped: On cancel, or at the limit.
        """
        while True:
            left = None if self.limit is None else self.limit - time.monotonic()
            if left is not None and left <= 0:
                raise _Stopped(f"`{self.tool.name}` did not return in time and was {end}")
            if wait(_TICK if left is None else min(_TICK, left)):
                return
            if self.context.cancelled:
                raise _Stopped(f"`{self.tool.name}` was {end}: the run was cancelled")


def run_call(
    tool: Tool,
    call: ToolCall,
    context: ToolContext | None = None,
    *,
    loop: asyncio.AbstractEventLoop | None = None,
    max_chars: int = MAX_CHARS,
    detach: bool = False,
) -> ToolResult:
    """Validate a call's arguments, run the tool, and return what it gave, or the mistake, as a result.

    Blocks; may be called from many threads. It raises nothing for what the tool does, save one: a ``KeyboardInterrupt``
    in the main thread is the user's.

    Args:
        tool: The tool.
        call: The call; where it has an ``error``, that is the result.
        context: What the tool may ask of the run. Its ``deadline`` and ``cancel`` hold for the call as well.
        loop: The caller's running event loop, for coroutine tools; this thread must not be the one it runs in. None
            takes the kit's private loop.
        max_chars: Characters of text in the result; what is past that is cut, and the result says how much.
        detach: Run a plain function in a thread of its own even without a time limit, so that a cancel can leave it.

    Raises:
        SchemaError: Where the tool's signature has no schema.
    """
    if call.error is not None:
        return _mistake(call, call.error)
    context = context or ToolContext(call)
    if context.cancelled:
        return _mistake(call, f"`{tool.name}` was not started: the run was cancelled")
    limit = _limit(tool, context)
    if limit is not None and limit <= time.monotonic():
        return _mistake(call, f"`{tool.name}` was not started: no time is left")
    tool.parameters  # noqa: B018  # a signature without a schema is its author's mistake: raised, and not told the model
    try:
        job = _Job(tool, tool.validate(call.arguments), context, limit, max_chars, loop)
        if tool.context_parameter is not None:
            job.context = replace(context, call=call, deadline=limit, abandoned=threading.Event())
        parts, failed = _run(job, call, detach)
    except ArgumentsError as error:
        return _mistake(call, error.feedback)
    except _Stopped as reason:
        return _mistake(call, str(reason))
    except UnusableResultError as error:
        return _mistake(call, f"`{tool.name}` failed: {error}")
    except KeyboardInterrupt as error:
        if threading.current_thread() is threading.main_thread():
            raise
        return _failure(tool, call, error)
    except BaseException as error:  # noqa: BLE001  # tools raise SystemExit and worse, and the run goes on
        return _failure(tool, call, error)
    return ToolResult(parts, call.id, call.name, failed)


def _limit(tool: Tool, context: ToolContext) -> float | None:
    if tool.timeout is None:
        return context.deadline
    own = time.monotonic() + tool.timeout
    return own if context.deadline is None else min(own, context.deadline)


def _mistake(call: ToolCall, text: str) -> ToolResult:
    return ToolResult((Text(clean(text)),), call.id, call.name, is_error=True)


def _failure(tool: Tool, call: ToolCall, error: BaseException) -> ToolResult:
    _LOG.debug("tool %s failed", tool.name, exc_info=error)
    said = safe_text(error)[:MAX_ERROR]
    return _mistake(call, f"`{tool.name}` failed: {type(error).__name__}" + (f": {said}" if said else ""))


def _run(job: _Job, call: ToolCall, detach: bool) -> tuple[tuple[Part, ...], bool]:
    if job.tool.isolate:
        from qwen_agent_kit.tools.isolation import run_isolated

        return run_isolated(job.tool, call.arguments, job.watch, job.max_chars)
    if job.tool.is_async:
        return to_parts(_on_loop(job, job.tool.invoke(job.values, job.context)), job.max_chars)
    if job.limit is None and not detach:
        value = job.tool.invoke(job.values, job.context)
        if inspect.isawaitable(value):
            value = _on_loop(job, value)
        return to_parts(value, job.max_chars)
    return _on_thread(job)


def _on_thread(job: _Job) -> tuple[tuple[Part, ...], bool]:
    """Run a plain function, and read what it returns, in a thread that can be left behind."""
    done = threading.Event()
    outcome: list[Any] = []

    def work() -> None:
        try:
            value = job.tool.invoke(job.values, job.context)
            if inspect.isawaitable(value):
                value = _on_loop(job, value)
            outcome.append(to_parts(value, job.max_chars))
        except BaseException as error:  # noqa: BLE001  # carried over to the caller's thread
            outcome.append(error)
        finally:
            done.set()

    run = contextvars.copy_context().run
    threading.Thread(target=run, args=(work,), name=f"qak-tool-{job.tool.name}", daemon=True).start()
    try:
        job.watch(done.wait, "abandoned")
    except BaseException:
        job.abandon()
        raise
    if isinstance(outcome[0], KeyboardInterrupt):
        raise RuntimeError("KeyboardInterrupt") from outcome[0]  # the tool's own: it was not raised in this thread
    if isinstance(outcome[0], BaseException):
        raise outcome[0]
    parts: tuple[tuple[Part, ...], bool] = outcome[0]
    return parts


@dataclass(slots=True)
class _Raised:
    """What a coroutine raised: carried as a value, because SystemExit raised in a task stops the loop around it."""

    error: BaseException


async def _guarded(awaitable: Awaitable[Any]) -> Any:
    import asyncio

    try:
        return await awaitable
    except asyncio.CancelledError:
        raise
    except BaseException as error:  # noqa: BLE001  # see _Raised
        return _Raised(error)


def _on_loop(job: _Job, awaitable: Awaitable[Any]) -> Any:
    """Run a coroutine on the caller's loop, or on the private one."""
    import asyncio
    from concurrent.futures import CancelledError
    from concurrent.futures import wait as wait_for

    from qwen_agent_kit.tools.loop import private_loop

    target = job.loop or private_loop()
    assert asyncio._get_running_loop() is not target, "run_call blocks; call it from another thread than the loop's"
    work = _guarded(awaitable)
    try:
        future = asyncio.run_coroutine_threadsafe(work, target)
    except RuntimeError:  # the loop is closed
        work.close()
        if inspect.iscoroutine(awaitable):
            awaitable.close()
        raise
    try:
        job.watch(lambda seconds: _ended(future, target, wait_for, seconds), "cancelled")
        value = future.result(timeout=0)
    except CancelledError:
        raise _Stopped(f"`{job.tool.name}` was cancelled") from None
    except BaseException:
        job.abandon()
        future.cancel()
        raise
    if isinstance(value, _Raised):
        if isinstance(value.error, KeyboardInterrupt):
            raise RuntimeError("KeyboardInterrupt") from value.error
        raise value.error
    return value


def _ended(future: Any, loop: asyncio.AbstractEventLoop, wait_for: Any, seconds: float) -> bool:
    if wait_for((future,), timeout=seconds).done:
        return True
    if not loop.is_running():
        raise _Stopped("the event loop ended before the tool returned")
    return False
