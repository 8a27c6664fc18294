"""The async twin."""

from __future__ import annotations

import asyncio
import contextvars
import threading
import time

import pytest

from qwen_agent_kit import Agent, ToolCall, ToolContext
from qwen_agent_kit.errors import EngineError
from qwen_agent_kit.events import RunDone, TextDelta, ToolReturned
from qwen_agent_kit.testing import ScriptedModel


def add(a: int, b: int) -> int:
    """Add."""
    return a + b


CALL = ToolCall("", "add", {"a": 1, "b": 2})


def names() -> set[str]:
    return {thread.name for thread in threading.enumerate() if thread.name.startswith("qak-agent")}


def no_threads(seconds: float = 5.0) -> bool:
    end = time.monotonic() + seconds
    while names() and time.monotonic() < end:
        time.sleep(0.01)
    return not names()


def test_arun_and_astream_give_what_run_and_stream_give() -> None:
    """The same events, the same result."""

    def make() -> Agent:
        return Agent(ScriptedModel([["thinking", CALL], "three"]), tools=[add])

    async def main() -> tuple[list[str], str]:
        events = [event async for event in make().astream("q")]
        return [type(event).__name__ for event in events], (await make().arun("q")).output

    kinds, output = asyncio.run(main())
    assert kinds == [type(event).__name__ for event in make().stream("q")]
    assert output == "three"
    assert no_threads()


def test_coroutine_tools_run_on_the_callers_loop() -> None:
    """They see the caller's loop, its task-local state and its context variables."""
    seen: list[object] = []
    who = contextvars.ContextVar("who", default="nobody")

    async def where() -> str:
        """Say where."""
        seen.append(asyncio.get_running_loop())
        await asyncio.sleep(0)
        return who.get()

    async def main() -> bool:
        who.set("ada")
        result = await Agent(ScriptedModel([ToolCall("", "where"), "ok"]), tools=[where]).arun("q")
        assert result.steps[0].results[0].text == "ada"
        return seen == [asyncio.get_running_loop()]

    assert asyncio.run(main())


def test_the_loop_stays_free_while_a_sync_tool_works() -> None:
    """Another task goes on while a tool blocks its thread."""

    def block() -> str:
        """Block."""
        time.sleep(0.3)
        return "x"

    async def main() -> int:
        ticks = 0
        run = asyncio.create_task(Agent(ScriptedModel([ToolCall("", "block"), "ok"]), tools=[block]).arun("q"))
        while not run.done():
            await asyncio.sleep(0.01)
            ticks += 1
        return ticks

    assert asyncio.run(main()) > 5


def forever(delay: float = 0.01):
    produced = [0]

    def turn(_request):
        while True:
            time.sleep(delay)
            produced[0] += 1
            yield "x"

    return turn, produced


def test_closing_the_async_stream_stops_the_engine_within_one_token() -> None:
    """No more than one further piece is made, the engine's stream is closed, and no thread stays."""
    turn, produced = forever()
    model = ScriptedModel([turn])

    async def main() -> None:
        stream = Agent(model).astream("q")
        async for event in stream:
            if isinstance(event, TextDelta):
                break
        before = produced[0]
        await stream.aclose()
        assert produced[0] <= before + 2  # one may have been on its way
        assert model.cancelled == 1

    asyncio.run(main())
    assert no_threads(1)


def test_cancelling_the_task_stops_the_engine() -> None:
    """asyncio's own cancel does the same; CancelledError comes out."""
    turn, produced = forever()
    model = ScriptedModel([turn])

    async def main() -> None:
        task = asyncio.create_task(Agent(model).arun("q"))
        while not produced[0]:
            await asyncio.sleep(0.005)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        count = produced[0]
        assert model.cancelled == 1
        await asyncio.sleep(0.1)
        assert produced[0] == count

    asyncio.run(main())
    assert no_threads(1)


def test_cancelling_again_and_again_still_waits_for_the_end() -> None:
    """Three cancels in a row do not leave the worker behind."""
    turn, produced = forever(0.05)
    model = ScriptedModel([turn])

    async def main() -> None:
        task = asyncio.create_task(Agent(model).arun("q"))
        while not produced[0]:
            await asyncio.sleep(0.005)
        for _ in range(3):
            task.cancel()
            await asyncio.sleep(0)
        with pytest.raises(asyncio.CancelledError):
            await task
        assert model.cancelled == 1
        assert not names()

    asyncio.run(main())


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_f46_cancelling_the_turn_cancels_all_tools(kind: str) -> None:
    """Three hang: the task ends at once, coroutine tools see CancelledError, sync ones see ctx.cancelled."""
    ended = threading.Semaphore(0)
    started = threading.Semaphore(0)

    async def hang_async(n: int) -> str:
        """Hang."""
        started.release()
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            ended.release()
            raise
        return "never"

    def hang_sync(n: int, ctx: ToolContext) -> str:
        """Hang."""
        started.release()
        while not ctx.cancelled:
            time.sleep(0.005)
        ended.release()
        return "late"

    turn = [ToolCall("", f"hang_{kind}", {"n": n}) for n in range(3)]

    async def main() -> float:
        task = asyncio.create_task(Agent(ScriptedModel([turn]), tools=[hang_async, hang_sync]).arun("q"))
        for _ in range(3):
            while not started.acquire(blocking=False):
                await asyncio.sleep(0.005)
        start = time.monotonic()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        took = time.monotonic() - start
        for _ in range(3):
            while not ended.acquire(blocking=False):
                await asyncio.sleep(0.005)
        return took

    assert asyncio.run(asyncio.wait_for(main(), 20)) < 5
    assert no_threads()


def test_a_hanging_sync_tool_does_not_hold_the_cancelled_task() -> None:
    """A tool that never looks at its context is left behind; the task ends."""
    release = threading.Event()
    started = threading.Event()

    def deaf() -> str:
        """Hear nothing."""
        started.set()
        release.wait(30)
        return "x"

    async def main() -> float:
        task = asyncio.create_task(Agent(ScriptedModel([ToolCall("", "deaf")]), tools=[deaf]).arun("q"))
        while not started.is_set():
            await asyncio.sleep(0.005)
        start = time.monotonic()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return time.monotonic() - start

    try:
        assert asyncio.run(main()) < 5
    finally:
        release.set()
    assert no_threads()


def test_errors_cross_over() -> None:
    """What the engine raises comes out of arun and astream as itself."""

    async def main() -> None:
        with pytest.raises(EngineError, match="broke"):
            await Agent(ScriptedModel([EngineError("broke")])).arun("q")
        with pytest.raises(EngineError, match="later"):
            async for _ in Agent(ScriptedModel([["some text", EngineError("later")]])).astream("q"):
                pass

    asyncio.run(main())
    assert no_threads()


def test_a_slow_reader_holds_the_engine_back() -> None:
    """The worker waits once the buffer is full, so that memory stays bounded."""
    made = [0]

    def turn(_request):
        for _ in range(5000):
            made[0] += 1
            yield "x"

    async def main() -> int:
        stream = Agent(ScriptedModel([turn])).astream("q")
        await anext(stream)
        await asyncio.sleep(0.3)
        ahead = made[0]
        count = 1
        async for _ in stream:
            count += 1
        assert count == 5000 + 2
        return ahead

    assert asyncio.run(main()) < 300


def test_many_tasks_at_once() -> None:
    """One agent, fifty tasks; each gets its own answer."""
    agent = Agent(ScriptedModel(lambda request: request.messages[-1].text + "!"))

    async def main() -> list[str]:
        return [result.output for result in await asyncio.gather(*(agent.arun(f"p{n}") for n in range(50)))]

    assert asyncio.run(main()) == [f"p{n}!" for n in range(50)]
    assert no_threads()


def test_a_chat_in_async_code() -> None:
    """arun, astream and aresume of a conversation."""

    async def main() -> None:
        chat = Agent(ScriptedModel(["one", [CALL], "three"]), tools=[add], approve=lambda call: None).chat()
        assert (await chat.arun("a")).output == "one"
        events = [event async for event in chat.astream("b")]
        assert isinstance(events[-1], RunDone)
        assert events[-1].result.stop_reason == "approval"
        result = await chat.aresume({chat.pending[0].id: True})
        assert result.output == "three"
        assert not any(isinstance(event, ToolReturned) for event in events)

    asyncio.run(main())
    assert no_threads()


def test_run_works_inside_a_running_loop() -> None:
    """As in a notebook: the sync call blocks the loop, and coroutine tools run beside it."""

    async def later() -> str:
        """Later."""
        await asyncio.sleep(0)
        return "later"

    async def main() -> str:
        return Agent(ScriptedModel([ToolCall("", "later"), "ok"]), tools=[later]).run("q").steps[0].results[0].text

    assert asyncio.run(main()) == "later"
