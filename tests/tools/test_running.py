"""Running calls: results of every kind, the bad tools of F45, time limits, cancellation, loops, context variables."""

from __future__ import annotations

import asyncio
import collections
import contextvars
import dataclasses
import datetime
import decimal
import enum
import gc
import itertools
import json
import logging
import pathlib
import resource
import sys
import threading
import time
import tracemalloc
import uuid
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from qwen_agent_kit.errors import SchemaError, UsageError
from qwen_agent_kit.messages import Audio, Image, Text, ToolCall, ToolResult
from qwen_agent_kit.tools import ToolContext, run_call, to_parts, tool
from qwen_agent_kit.tools.loop import private_loop


def _call(function: Any, context: ToolContext | None = None, **options: Any) -> ToolResult:
    made = function if hasattr(function, "definition") else tool(name="t")(function)
    arguments = options.pop("arguments", {})
    return run_call(made, ToolCall("c1", "t", arguments), context, **options)


def _returns(value: Any) -> ToolResult:
    return _call(lambda: value)


# --- results -------------------------------------------------------------------------------------------------------


@dataclasses.dataclass
class Point:
    x: int
    y: Any = None


class Model(BaseModel):
    name: str
    when: datetime.date


class Unit(enum.Enum):
    C = "celsius"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("plain", "plain"),
        ("", ""),
        (None, "null"),
        (True, "true"),
        (3, "3"),
        ({"a": [1, "ü"]}, '{"a": [1, "ü"]}'),
        ([1, 2], "[1, 2]"),
        ((1, Point(2)), '[1, {"x": 2, "y": null}]'),
        ({"b"}, '["b"]'),
        (Point(1, Point(2, {3})), '{"x": 1, "y": {"x": 2, "y": [3]}}'),
        (Model(name="n", when=datetime.date(2024, 1, 2)), '{"name": "n", "when": "2024-01-02"}'),
        ([Model(name="n", when=datetime.date(2024, 1, 2))], '[{"name": "n", "when": "2024-01-02"}]'),
        (Unit.C, '"celsius"'),
        ({Unit.C: Unit.C, 3: 4, None: 5}, '{"celsius": "celsius", "3": 4, "null": 5}'),
        (float("nan"), '"NaN"'),
        ([float("inf"), -float("inf"), 1e308], '["Infinity", "-Infinity", 1e+308]'),
        (datetime.datetime(2024, 1, 2, 3, 4), '"2024-01-02T03:04:00"'),
        (datetime.timedelta(hours=1), '"1:00:00"'),
        (decimal.Decimal("1.50"), '"1.50"'),
        (pathlib.Path("/a/b"), '"/a/b"'),
        (uuid.UUID(int=0), '"00000000-0000-0000-0000-000000000000"'),
        (b"bytes \xc3\xbc", "bytes ü"),
        (b"latin \xfc", "latin �"),
        (b"\x89PNG\0\0", "[6 bytes that are no text]"),
        ("half \ud800 pair", "half � pair"),
        (np.float32(1.5), "1.5"),
        (np.arange(3), "[0, 1, 2]"),
        ({"a": np.int64(3)}, '{"a": 3}'),
        (collections.deque([1]), "[1]"),
        (range(3), "[0, 1, 2]"),
    ],
)
def test_data_becomes_text(value: Any, text: str) -> None:
    """Text is text; everything else is JSON that a model can read, NaN and halves of characters included."""
    result = _returns(value)
    assert not result.is_error
    assert result.text == text
    result.text.encode()


def test_media_become_parts() -> None:
    """Images and sounds are parts of the result, alone or in lists; what names a path or address is not trusted."""
    parts = _returns(Image("/tmp/a.png")).parts
    assert parts == (Image("/tmp/a.png", "found"),)
    assert _returns(Image(b"x")).parts == (Image(b"x"),)
    parts = _returns(["before", Audio("http://h/a.wav"), {"n": 1}, "after", Text("more")]).parts
    assert parts == (Text("before"), Audio("http://h/a.wav", "found"), Text('{"n": 1}\nafter\nmore'))
    parts = _returns({"caption": "c", "image": Image(b"x"), "others": [Image(b"y")]}).parts
    assert parts == (
        Text('{"caption": "c", "image": "[image 1]", "others": ["[image 2]"]}'),
        Image(b"x"),
        Image(b"y"),
    )


def test_a_tool_result_keeps_its_error_and_gets_the_calls_id() -> None:
    """A tool may return a ToolResult: its parts and its error count, its id is the call's."""
    result = _returns(ToolResult((Text("a"), Text("b"), Image("p")), "other", "other", is_error=True))
    assert result == ToolResult((Text("a"), Text("b"), Image("p", "found")), "c1", "t", is_error=True)


def test_too_many_media_are_cut_with_their_number() -> None:
    """At most 64 media fit; the text says how many are missing."""
    result = _returns([Image(b"x")] * 70)
    assert sum(isinstance(part, Image) for part in result.parts) == 64
    assert "[6 images, clips or documents are missing: at most 64 fit]" in result.text


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=300), st.integers(0, 200))
def test_cut_text_accounts_for_every_character(text: str, limit: int) -> None:
    """What is kept and what is said to be missing add up to the whole."""
    parts, _ = to_parts(text, limit)
    found = "".join(part.text for part in parts if isinstance(part, Text))
    if len(text) <= limit:
        assert found == text
    else:
        missing = len(text) - limit
        notice = f"[cut: {missing:,} more characters are missing]"
        assert found == (f"{text[:limit]}\n{notice}" if limit else notice)


_ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()) | st.binary(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.tuples(inner, inner)
        | st.dictionaries(st.text(st.characters(), max_size=3) | st.integers() | st.none(), inner, max_size=3)
        | st.builds(Point, st.integers(), inner)
    ),
    max_leaves=12,
)


@settings(max_examples=200, deadline=None)
@given(_ANY, st.integers(1, 60))
def test_every_value_gives_bounded_encodable_text(value: Any, limit: int) -> None:
    """Whatever a tool returns, the text can be encoded and is bounded; uncut data is JSON."""
    result = _call(lambda: value, max_chars=limit)
    assert not result.is_error
    result.text.encode()
    assert len(result.text) <= limit + 60
    if not isinstance(value, str | bytes) and "[cut:" not in result.text:
        json.loads(result.text)


# --- F45 -----------------------------------------------------------------------------------------------------------


class _BadText(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


class _BadRepr:
    def __repr__(self) -> str:
        raise RuntimeError("no repr")


class _Base(BaseException):
    pass


class _BadItems(dict[str, Any]):
    def items(self) -> Any:
        raise KeyError("items")

    __iter__ = items
    keys = items


def _raise(error: BaseException) -> Any:
    raise error


def _recurse() -> Any:
    return _recurse()


def _nested(depth: int) -> Any:
    value: Any = 0
    for index in range(depth):
        value = [value] if index % 2 else {"a": value}
    return value


def _selfish() -> Any:
    value: list[Any] = []
    value.append(value)
    return value


def _slow_iterator() -> Any:
    for number in itertools.count():
        time.sleep(1)
        yield number


async def _coroutine_raises() -> Any:
    raise SystemExit(3)


async def _cancels_itself() -> Any:
    raise asyncio.CancelledError


BAD: dict[str, tuple[Any, bool, str]] = {
    "raises": (lambda: _raise(ValueError("what happened")), True, "ValueError: what happened"),
    "raises-base": (lambda: _raise(_Base("b")), True, "_Base: b"),
    "raises-exit": (lambda: _raise(SystemExit(3)), True, "SystemExit: 3"),
    "raises-stop": (lambda: _raise(StopIteration()), True, "StopIteration"),
    "raises-generator-exit": (lambda: _raise(GeneratorExit()), True, "GeneratorExit"),
    "raises-memory": (lambda: _raise(MemoryError()), True, "MemoryError"),
    "raises-cancelled": (lambda: _raise(asyncio.CancelledError()), True, "CancelledError"),
    "raises-without-text": (lambda: _raise(_BadText()), True, "_BadText"),
    "raises-long": (lambda: _raise(ValueError("x" * 10_000_000)), True, "ValueError: xxx"),
    "raises-surrogate": (lambda: _raise(ValueError("\ud800")), True, "ValueError: �"),
    "recursion": (_recurse, True, "RecursionError"),
    "async-exit": (_coroutine_raises, True, "SystemExit: 3"),
    "async-cancels-itself": (_cancels_itself, True, "was cancelled"),
    "not-utf8": (lambda: b"\xff\xfe caf\xe9", False, "caf�"),
    "surrogates": (lambda: ["\ud800", {"\udfff": 1}], False, "�"),
    "nan": (lambda: {"a": float("nan")}, False, '"NaN"'),
    "nested": (lambda: _nested(100_000), False, "[nested too deep]"),
    "holds-itself": (_selfish, False, "[nested too deep]"),
    "repr-raises": (lambda: {"a": _BadRepr()}, False, "<_BadRepr whose text raised RuntimeError>"),
    "items-raise": (lambda: _BadItems(a=1), True, "KeyError"),
    "generator": (lambda: (n for n in range(3)), True, "it returned a generator"),
    "endless-iterator": (lambda: itertools.count(), True, "it returned a count"),
    "slow-iterator": (lambda: _slow_iterator(), True, "it returned a generator"),
    "long-text": (lambda: "x" * 200_000_000, False, "[cut: 199,980,000 more characters are missing]"),
    "long-bytes": (lambda: b"x" * 20_000_000, False, "[cut: 19,980,000 more characters are missing]"),
    "long-list": (lambda: [float("nan")] * 3_000_000, False, "more characters are missing]"),
    "long-dict": (lambda: {n: {n} for n in range(500_000)}, False, "more characters are missing]"),
    "huge-integer": (lambda: 1 << 10_000_000, False, "an integer of 10,000,001 bits"),
    "writes-arguments": (lambda: sys.exit(), True, "SystemExit"),
}


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("timeout", [None, 30.0], ids=["here", "thread"])
def test_f45_bad_tool(name: str, timeout: float | None) -> None:
    """Whatever a tool does, a bounded result comes back within seconds; the next call works."""
    function, is_error, text = BAD[name]
    made = tool(name="t", timeout=timeout)(function)
    began = time.monotonic()
    result = run_call(made, ToolCall("c1", "t"))
    assert time.monotonic() - began < 120
    assert result.is_error == is_error
    assert text in result.text
    assert len(result.text) < 20_200
    assert "Traceback" not in result.text
    result.text.encode()
    json.dumps(result.to_dict())
    assert _returns("next").text == "next"


def test_f45_a_hanging_tool_is_abandoned_in_time() -> None:
    """A tool that never returns is left behind at its limit, is told so through its context, and may end late."""
    seen, ended = threading.Event(), threading.Event()

    @tool(timeout=0.2)
    def hang(ctx: ToolContext) -> str:
        assert ctx.remaining is not None
        assert ctx.remaining <= 0.2
        while not ctx.cancelled:
            time.sleep(0.01)
        seen.set()
        ended.wait(60)
        return "too late"

    began = time.monotonic()
    result = _call(hang)
    assert 0.15 < time.monotonic() - began < 30
    assert result.is_error
    assert result.text == "`hang` did not return in time and was abandoned"
    assert seen.wait(5)
    ended.set()


def test_a_tool_left_behind_does_not_cancel_the_run() -> None:
    """The context is the run's: a tool that was abandoned leaves it as it was for the next one."""
    context = ToolContext()
    assert _call(tool(name="t", timeout=0.05)(lambda: time.sleep(0.5)), context).is_error
    assert not context.cancelled
    assert _call(lambda: "next", context).text == "next"


def test_f45_memory_stays_bounded() -> None:
    """A result of 200 MB leaves no more than its cut text behind."""
    gc.collect()
    tracemalloc.start()
    result = _call(lambda: "x" * 200_000_000)
    gc.collect()
    held, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held < 1_000_000
    assert peak < 210_000_000
    assert len(result.text) < 20_100
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss > 0


def test_keyboard_interrupt_is_the_users_in_the_main_thread_only() -> None:
    """Ctrl-C reaches the caller; the same exception in another thread is the tool's own failure."""

    def interrupt() -> str:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _call(interrupt)
    for made in (tool(name="t", timeout=5)(interrupt), tool(name="t")(interrupt)):
        found: list[ToolResult] = []
        thread = threading.Thread(target=lambda made=made, found=found: found.append(_call(made)))  # type: ignore[misc]  # mypy infers no type for the defaults
        thread.start()
        thread.join()
        assert "KeyboardInterrupt" in found[0].text
    assert "KeyboardInterrupt" in _call(tool(name="t", timeout=5)(interrupt)).text


def test_f53_nothing_of_a_call_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    """Arguments, results and failures do not reach the log at INFO or above."""

    def fail(secret: str) -> str:
        raise ValueError(f"bad {secret}")

    with caplog.at_level(logging.INFO):
        assert "canary-1" in _call(fail, arguments={"secret": "canary-1"}).text
        _call(fail, arguments={"secret": ["canary-1"]})
    assert "canary" not in caplog.text


# --- time and cancellation -----------------------------------------------------------------------------------------


def test_f58_deadlines_do_not_follow_the_wall_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that jumps ends no call and starts none."""
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + 10 * 365 * 86400)
    assert _call(tool(name="t", timeout=5)(lambda: "in time")).text == "in time"


def test_nothing_starts_past_the_deadline_or_after_a_cancel() -> None:
    """A tool with side effects is not begun where nobody can wait for it."""
    ran: list[int] = []
    late = ToolContext(deadline=time.monotonic() - 1)
    assert "was not started: no time is left" in _call(lambda: ran.append(1), late).text
    cancel = threading.Event()
    cancel.set()
    assert "was not started: the run was cancelled" in _call(lambda: ran.append(1), ToolContext(cancel=cancel)).text
    assert _call(lambda: ran.append(1), arguments={"x": 1}).is_error
    broken = run_call(tool(name="t")(lambda: ran.append(1)), ToolCall("c", "t", {}, "the call is cut off"))
    assert (broken.text, broken.is_error) == ("the call is cut off", True)
    assert ran == []


@pytest.mark.parametrize("own", [None, 60.0])
def test_the_runs_deadline_bounds_every_tool(own: float | None) -> None:
    """A tool without a limit of its own, or with a later one, is abandoned at the run's deadline."""
    began, over = time.monotonic(), threading.Event()
    sleeper = tool(name="t", timeout=own)(lambda: over.wait(60))
    result = _call(sleeper, ToolContext(deadline=time.monotonic() + 0.1))
    over.set()
    assert time.monotonic() - began < 30
    assert "did not return in time" in result.text


@pytest.mark.parametrize("kind", ["thread", "coroutine"])
def test_f46_cancel_leaves_a_hanging_tool_behind(kind: str) -> None:
    """Without any time limit, a cancel returns at once: a detached function is abandoned, a coroutine cancelled."""
    cancel, left, stopped = threading.Event(), threading.Event(), threading.Event()

    def hang(ctx: ToolContext) -> None:
        while not ctx.cancelled:
            time.sleep(0.01)
        left.wait(60)
        stopped.set()

    async def ahang() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            stopped.set()

    threading.Timer(0.1, cancel.set).start()
    began = time.monotonic()
    result = _call(hang if kind == "thread" else ahang, ToolContext(cancel=cancel), detach=True)
    assert time.monotonic() - began < 30
    left.set()
    assert result.is_error
    assert "the run was cancelled" in result.text
    assert stopped.wait(5)


# --- coroutines ----------------------------------------------------------------------------------------------------


async def _where(note: str = "") -> str:
    await asyncio.sleep(0)
    return f"{threading.current_thread().name} {id(asyncio.get_running_loop())} {note}"


def test_coroutines_run_on_one_private_loop() -> None:
    """Without a loop of the caller's, every coroutine runs on the same private thread."""
    found: list[str] = []
    threads = [threading.Thread(target=lambda: found.append(_call(_where).text)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(found)) == 1
    assert found[0].startswith("qak-tools-loop")


def test_coroutines_run_beside_a_running_loop() -> None:
    """Called inside a running loop, as in a notebook, a coroutine runs on the private one, and nothing blocks."""

    async def cell() -> str:
        return _call(_where).text

    assert asyncio.run(cell()).startswith("qak-tools-loop")


def test_coroutines_run_on_the_callers_loop() -> None:
    """Given the caller's loop, coroutine tools run there, and the loop turns meanwhile."""

    async def main() -> tuple[str, int]:
        loop = asyncio.get_running_loop()
        result = await asyncio.to_thread(_call, _where, loop=loop)
        return result.text, id(loop)

    text, identity = asyncio.run(main())
    assert text.startswith(f"MainThread {identity}")


def test_a_plain_function_may_return_an_awaitable() -> None:
    """A function that is not marked async and returns a coroutine is awaited as well, with and without a limit."""
    for timeout in (None, 5.0):
        assert _call(tool(name="t", timeout=timeout)(lambda: _where())).text.startswith("qak-tools-loop")


def test_a_coroutine_past_its_time_is_cancelled() -> None:
    """At the limit a coroutine is cancelled; one that fights it is left behind."""
    cancelled = threading.Event()

    @tool(timeout=0.1)
    async def slow() -> str:
        try:
            await asyncio.sleep(30)
        except asyncio.CancelledError:
            cancelled.set()
        return "late"

    began = time.monotonic()
    result = _call(slow)
    assert time.monotonic() - began < 20
    assert result.text == "`slow` did not return in time and was cancelled"
    assert cancelled.wait(5)


def test_a_closed_loop_is_told_and_does_not_hang() -> None:
    """A loop that ended before the call is the caller's mistake; the call returns."""
    loop = asyncio.new_event_loop()
    loop.close()
    result = _call(_where, loop=loop)
    assert result.is_error
    assert "closed" in result.text


def test_a_loop_that_stops_meanwhile_is_told_and_does_not_hang() -> None:
    """Where the caller's loop ends while its coroutine is awaited elsewhere, the call returns without a time limit."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    threading.Timer(0.2, lambda: loop.call_soon_threadsafe(loop.stop)).start()

    async def wait() -> None:
        await asyncio.sleep(60)

    result = _call(wait, loop=loop)
    thread.join()
    for task in asyncio.all_tasks(loop):
        task.cancel()
    loop.run_until_complete(asyncio.sleep(0.01))
    loop.close()
    assert "the event loop ended before the tool returned" in result.text


VARIABLE: contextvars.ContextVar[str] = contextvars.ContextVar("VARIABLE", default="unset")


@pytest.mark.parametrize("kind", ["here", "thread", "private-loop"])
def test_context_variables_are_the_callers(kind: str) -> None:
    """A tool sees the caller's context variables wherever it runs, and in another thread changes only its copy."""

    def read() -> str:
        value = VARIABLE.get()
        if kind != "here":
            VARIABLE.set("changed")
        return value

    async def aread() -> str:
        return read()

    token = VARIABLE.set("caller")
    try:
        made = tool(name="t", timeout=5 if kind == "thread" else None)(aread if kind == "private-loop" else read)
        assert _call(made).text == "caller"
        assert VARIABLE.get() == "caller"
    finally:
        VARIABLE.reset(token)


# --- the rest ------------------------------------------------------------------------------------------------------


def test_contexts_give_media_and_answers_or_say_why_not() -> None:
    """`media` and `ask` go to the run; without one they say so."""

    def look(ref: str, ctx: ToolContext) -> list[Any]:
        return [ctx.media(ref), ctx.ask(["What is it?", ctx.media(ref)], kinds=["image"]), ctx.ask("And?")]

    asked: list[Any] = []

    def answer(parts: Any, kinds: Any) -> str:
        asked.append((len(parts), kinds))
        return "a dog"

    context = ToolContext(find_media=lambda ref: Image(ref.encode()), answer=answer)
    assert _call(look, context, arguments={"ref": "x"}).parts == (Image(b"x"), Text("a dog\na dog"))
    assert asked == [(2, frozenset({"image"})), (1, None)]
    assert "this run has no media" in _call(look, arguments={"ref": "x"}).text
    with pytest.raises(UsageError, match="no model to its tools"):
        ToolContext().ask("?")


def test_a_signature_without_a_schema_is_raised() -> None:
    """A tool that can never be called is its author's mistake, and is not told to the model."""

    def f(a: threading.Thread) -> str:
        return "x"

    with pytest.raises(SchemaError, match="`a`"):
        _call(f)


def test_a_validator_that_breaks_is_a_failure_of_the_tool() -> None:
    """An exception in a user's own validation is a result like one in the tool."""
    from typing import Annotated

    from pydantic import AfterValidator

    def f(a: Annotated[int, AfterValidator(lambda value: 1 // value)]) -> int:
        return a

    assert "ZeroDivisionError" in _call(f, arguments={"a": 0}).text


def test_a_call_costs_little() -> None:
    """Validation, running and reading the result of a trivial tool stay far below a step of the loop."""

    def f(city: str, days: int = 3) -> str:
        return city

    made, call = tool(f), ToolCall("c", "f", {"city": "Bern", "days": "2"})
    run_call(made, call)
    best = min(_timed(lambda: run_call(made, call), 300) for _ in range(10))
    assert best < 60e-6, f"{best * 1e6:.1f} µs a call"


def _timed(work: Any, count: int) -> float:
    began = time.perf_counter()
    for _ in range(count):
        work()
    return (time.perf_counter() - began) / count


def test_the_private_loop_is_one() -> None:
    """The private loop is the same each time and running."""
    assert private_loop() is private_loop()
    assert private_loop().is_running()
