"""The loop on a true engine with random weights."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from qwen_agent_kit import Agent, Host, Limits, Sampling
from qwen_agent_kit.events import StepDone, TextDelta
from qwen_agent_kit.testing import check_engine, tiny_model_dir


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model_dir(tmp_path_factory.mktemp("tiny"), layers=1, hidden=16, heads=2, kv_heads=1, context=8192)


@pytest.fixture
def host() -> Iterator[Host]:
    with Host(quant="fp32", cache=False) as made:
        yield made


def tick() -> str:
    """Tick."""
    return "ok"


def test_the_local_model_keeps_the_contract(tiny: Path, host: Host) -> None:
    """Our own check for engines passes on our own engine."""
    check_engine(host.open(str(tiny)))


def test_what_was_sampled_is_kept_and_spliced(tiny: Path, host: Host) -> None:
    """Each message has its ids; the next step finds all positions before its new ones computed already."""
    agent = Agent(str(tiny), tools=[tick], tool_choice="required", host=host, limits=Limits(steps=2),
                  sampling=Sampling(max_tokens=40, temperature=0.0))  # fmt: skip
    result = agent.run("go")
    first, second = result.steps
    assert first.message.tool_calls
    assert len(first.message.log.ids) == first.usage.generated_tokens
    assert second.usage.cached_tokens >= first.usage.prompt_tokens + first.usage.generated_tokens - 1
    assert second.usage.prefix_break is None


@pytest.mark.parametrize("how", ["close", "aclose", "cancel"])
def test_cancelling_stops_the_engine_within_one_token(tiny: Path, host: Host, how: str) -> None:
    """However the caller goes away, at most one more forward is computed after it is gone."""
    agent = Agent(str(tiny), host=host, sampling=Sampling(max_tokens=4000, temperature=1.0, seed=1))
    engine = host.open(str(tiny)).engine

    def settled() -> int:
        time.sleep(0.2)
        before = engine.counters.forwards
        time.sleep(0.2)
        assert engine.counters.forwards == before, "the engine went on"
        return before

    def sync() -> int:
        stream = agent.stream("go")
        assert any(isinstance(event, TextDelta) for event in stream)
        stream.close()
        return engine.counters.forwards

    async def asynchronous() -> int:
        if how == "cancel":
            task = asyncio.create_task(agent.arun("go"))
            while engine.counters.forwards < 5:
                await asyncio.sleep(0.001)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            return engine.counters.forwards
        stream = agent.astream("go")
        async for event in stream:
            if isinstance(event, TextDelta):
                break
        await stream.aclose()
        return engine.counters.forwards

    gone = sync() if how == "close" else asyncio.run(asynchronous())
    assert settled() <= gone + 1


def test_a_stored_conversation_goes_on_from_the_cache(tiny: Path, host: Host) -> None:
    """Loaded from disk with its ids, the second turn computes only what is new."""
    agent = Agent(str(tiny), host=host, sampling=Sampling(max_tokens=16, temperature=0.0), system="be brief")
    first = agent.chat("talk").run("one").steps[-1].usage
    events = list(agent.chat("talk").stream("two"))
    second = next(event.step.usage for event in events if isinstance(event, StepDone))
    assert second.cached_tokens >= first.prompt_tokens + first.generated_tokens - 1
