"""Keeps a plugin's failures to itself: time limits around what it does, and guards around each of its hooks."""

from __future__ import annotations

import contextvars
import functools
import inspect
import os
import threading
import traceback
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from qwen_agent_kit.backends import Choice
from qwen_agent_kit.errors import UsageError
from qwen_agent_kit.messages import Text, ToolResult
from qwen_agent_kit.plugins.discovery import one_line

if TYPE_CHECKING:
    from pluggy import PluginManager

__all__ = ["Guards", "NotFinishedError", "Outcome", "bounded", "describe", "guarded", "time_limit"]

SECONDS = "QAK_PLUGIN_SECONDS"
_RESULTS: dict[str, type[Any]] = {"choose_backend": Choice, "run_tool": ToolResult}

Report = Callable[[str, str], None]  # (hook, what went wrong)


class NotFinishedError(Exception):
    """A plugin took longer than its time limit."""


def time_limit() -> float:
    """Seconds that the import of a plugin, and each of its ``register_`` hooks, may take.

    Raises:
        UsageError: Where ``QAK_PLUGIN_SECONDS`` is no number above 0.
    """
    text = os.environ.get(SECONDS, "10")
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= 3600:
        raise UsageError(f"{SECONDS} is {text!r}; allowed: a number above 0 to 3600", hint=f"unset {SECONDS}")
    return seconds


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a bounded call came to."""

    value: Any = None
    error: BaseException | None = None


def bounded(function: Callable[[], Any], seconds: float) -> Outcome:
    """What ``function()`` returned or raised, run in a thread of its own so that a hang can be left behind.

    Whatever it raises is an outcome, ``SystemExit`` included, and ``NotFinishedError`` after ``seconds``; the thread is
    a daemon and goes on. Ctrl-C reaches the caller, who waits here.
    """
    outcomes: list[Outcome] = []

    def work() -> None:
        try:
            outcomes.append(Outcome(value=function()))
        except BaseException as raised:  # noqa: BLE001  # handed to the waiting thread, whatever it is
            outcomes.append(Outcome(error=raised))

    thread = threading.Thread(target=contextvars.copy_context().run, args=(work,), name="qak-plugin", daemon=True)
    thread.start()
    thread.join(seconds)
    return outcomes[0] if outcomes else Outcome(error=NotFinishedError(f"did not finish in {seconds:g} s"))


def describe(error: BaseException, *, content: bool = True) -> str:
    """One line: type, message, and where it was raised.

    Args:
        error: What a plugin raised.
        content: Whether the message may be shown; a hook that sees prompts or arguments may have put them into it.
    """
    try:
        message = str(error) if content else ""
    except Exception:  # noqa: BLE001  # a stranger's __str__ may raise anything
        message = "(its message cannot be shown)"
    frames = traceback.extract_tb(error.__traceback__)
    ours = os.path.dirname(__file__)
    theirs = [frame for frame in frames if not frame.filename.startswith(("<frozen", ours))]
    where = [frame for frame in theirs if f"{os.sep}importlib{os.sep}" not in frame.filename]
    text = type(error).__name__ + (f": {message}" if message else "")
    if where:
        text = f"{one_line(text)} ({os.path.basename(where[-1].filename)}:{where[-1].lineno})"
    return one_line(text, 400)


class Guards:
    """Holds the guarded hooks of one plugin as attributes, where pluggy finds them."""


def guarded(plugin: Any, manager: PluginManager, name: str, report: Report) -> Guards:
    """The hooks of ``plugin``, each behind a guard that reports a failure instead of raising it.

    Raises:
        ValueError: Where a hook has a form that is not supported.
    """
    guards = Guards()
    for attribute in dir(plugin):
        options = manager.parse_hookimpl_opts(plugin, attribute)
        if options is None:
            continue
        hook = options.get("specname") or attribute
        function = getattr(plugin, attribute)
        if options["hookwrapper"]:
            raise ValueError(f"`{attribute}` is an old-style wrapper; allowed: `@hookimpl(wrapper=True)`")
        if options["wrapper"] and hook.startswith("register_"):
            raise ValueError(f"`{attribute}` is a wrapper; `register_` hooks take none")
        if options["wrapper"] and not inspect.isgeneratorfunction(function):
            raise ValueError(f"`{attribute}` is a wrapper that does not yield")
        make = _wrapper if options["wrapper"] else _tool_runner if hook == "run_tool" else _plain
        setattr(guards, attribute, make(function, hook, name, report))
    return guards


def _plain(function: Callable[..., Any], hook: str, name: str, report: Report) -> Callable[..., Any]:
    """A hook that fails is as if it were not there."""
    del name

    @functools.wraps(function)
    def guard(*args: Any, **kwargs: Any) -> Any:
        if hook.startswith("register_"):
            return function(*args, **kwargs)  # whoever calls these bounds and reports them
        try:
            return _checked(hook, function(*args, **kwargs))
        except (Exception, SystemExit) as error:  # noqa: BLE001  # a plugin's fault must not end the run
            report(hook, describe(error, content=isinstance(error, _WrongResultError)))
            return None

    return guard


def _tool_runner(function: Callable[..., Any], hook: str, name: str, report: Report) -> Callable[..., Any]:
    """A plugin that fails while it runs a tool has failed that call: it may have run it by half already."""
    wanted = set(inspect.signature(function).parameters)

    @functools.wraps(function)
    def guard(call: Any, tool: Any) -> Any:
        offered = {"call": call, "tool": tool}
        try:
            return _checked(hook, function(**{key: value for key, value in offered.items() if key in wanted}))
        except (Exception, SystemExit) as error:  # noqa: BLE001  # a plugin's fault must not end the run
            report(hook, describe(error, content=isinstance(error, _WrongResultError)))
            text = f"the plugin {name!r} failed while it ran this tool"
            return ToolResult((Text(text),), call.id, call.name, is_error=True)

    del guard.__wrapped__  # pluggy reads the argument names of the guard itself
    return guard


def _wrapper(function: Callable[..., Any], hook: str, name: str, report: Report) -> Callable[..., Any]:
    """A wrapper looks on: what it wraps is run, and its outcome kept, whatever the wrapper does."""
    del name

    @functools.wraps(function)
    def guard(*args: Any, **kwargs: Any) -> Generator[None, Any, Any]:
        generator = None
        try:
            generator = function(*args, **kwargs)
            next(generator)
        except (Exception, SystemExit) as error:  # noqa: BLE001  # a plugin's fault must not end the run
            report(hook, "it did not yield" if isinstance(error, StopIteration) else describe(error, content=False))
            return (yield)
        try:
            result = yield
        except BaseException as raised:
            _leave(generator, raised, hook, report)
            raise
        try:
            generator.send(result)
            report(hook, "it yielded twice")
        except StopIteration as stop:
            return _kept(hook, stop.value, result, report)
        except (Exception, SystemExit) as error:  # noqa: BLE001  # a plugin's fault must not end the run
            report(hook, describe(error, content=False))
        return result

    return guard


def _leave(generator: Generator[None, Any, Any], raised: BaseException, hook: str, report: Report) -> None:
    """Let a wrapper see the exception of what it wraps; it can neither swallow nor replace it."""
    try:
        generator.throw(raised)
        report(hook, "it yielded twice")
    except StopIteration:
        return
    except BaseException as error:  # noqa: BLE001  # the caller raises the original one
        if error is not raised:
            report(hook, describe(error, content=False))


def _kept(hook: str, value: Any, result: Any, report: Report) -> Any:
    if value is None and result is not None:
        report(hook, "it returned None in place of the result; a wrapper ends with `return result`")
        return result
    try:
        return _checked(hook, value)
    except _WrongResultError as error:
        report(hook, str(error))
        return result


class _WrongResultError(Exception):
    """A hook returned something that it may not; the message holds no content."""


def _checked(hook: str, value: Any) -> Any:
    expected = _RESULTS.get(hook)
    if inspect.iscoroutine(value):
        value.close()
        raise _WrongResultError(f"`{hook}` is async; hooks are plain functions")
    if expected is None:
        return value
    if value is not None and not isinstance(value, expected):
        raise _WrongResultError(f"`{hook}` returned a {type(value).__name__}; allowed: {expected.__name__} or None")
    return value
