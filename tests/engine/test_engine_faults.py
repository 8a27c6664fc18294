"""Nothing hangs, and what goes wrong for one request stays with it."""

from __future__ import annotations

import asyncio
import gc
import math
import os
import random
import threading
import time
from typing import Any

import pytest
import torch
from small_decoder import OPEN, plain_greedy, small_loaded

from qwen_agent_kit.backends import Sampling
from qwen_agent_kit.engine import Engine
from qwen_agent_kit.engine import engine as engine_module
from qwen_agent_kit.errors import EngineError

MARK = OPEN
"""An id that no prompt but a poisoned one holds, and that the model never says."""


@pytest.fixture
def loaded() -> Any:
    return small_loaded()


def greedy(n: int) -> Sampling:
    return Sampling(temperature=0, max_tokens=n)


def wait_for(condition: Any, seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.001)


class Gate:
    """Lets the model go on one forward at a time."""

    def __init__(self, loaded: Any) -> None:
        self.permits = threading.Semaphore(0)
        self.entered = 0
        loaded.model.before = self.before

    def before(self, *_: Any) -> None:
        self.entered += 1
        assert self.permits.acquire(timeout=20), "nobody opened the gate"

    def let(self, n: int) -> None:
        self.permits.release(n)


# --- cancelling ----------------------------------------------------------------------------------------------------


def test_cancelling_stops_within_one_token(loaded: Any) -> None:
    """After ``cancel`` the forward that runs is the last: at most one more id, none of it for the next request."""
    gate = Gate(loaded)
    with Engine(loaded) as engine:
        generation = engine.submit([1, 2, 3], greedy(500))
        gate.let(5)
        wait_for(lambda: gate.entered == 6)
        generation.cancel()
        gate.let(100)
        wait_for(lambda: generation.finish_reason is not None)
        assert generation.finish_reason == "cancelled"
        assert gate.entered == 6
        assert 5 <= len(list(generation)) <= 6
        assert list(engine.submit([1, 2, 3], greedy(4))) == generation.ids[:4]


def test_cancelling_twice_or_after_the_end_does_nothing(loaded: Any) -> None:
    """The reason of a request that ended stays what it was."""
    with Engine(loaded) as engine:
        generation = engine.submit([1, 2], greedy(3))
        list(generation)
        generation.cancel()
        generation.cancel()
        list(engine.submit([3], greedy(3)))
        assert generation.finish_reason == "length"


@pytest.mark.parametrize("reader", ["ids", "pieces"])
@pytest.mark.parametrize("way", ["close", "drop the iterator", "drop the generation", "break"])
def test_f31_leaving_an_iterator_cancels(loaded: Any, way: str, reader: str) -> None:
    """A reader that closes, drops or leaves what it iterates stops the request; the next one runs on."""
    with Engine(loaded) as engine:
        generation = engine.submit([1, 2, 3], greedy(3000))
        request = generation._request
        pieces = generation.pieces() if reader == "pieces" else iter(generation)
        next(pieces)
        if way == "close":
            pieces.close()
        elif way == "drop the iterator":
            del pieces
        elif way == "drop the generation":
            del pieces, generation
        else:
            for _ in pieces:
                break
            del pieces
        gc.collect()
        wait_for(lambda: request.finish_reason is not None)
        assert request.finish_reason == "cancelled"
        assert list(engine.submit([9, 9], greedy(5))) == plain_greedy(loaded.model, [9, 9], 5)


def test_f31_a_cancelled_coroutine_cancels(loaded: Any) -> None:
    """A task that is cancelled while it reads stops the request; so does a loop that was closed."""
    with Engine(loaded) as engine:
        generation = engine.submit([1, 2, 3], greedy(3000))

        async def read() -> None:
            async for _ in generation.apieces():
                pass

        async def start_and_cancel() -> None:
            task = asyncio.create_task(read())
            await asyncio.sleep(0.05)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

        asyncio.run(start_and_cancel())
        wait_for(lambda: generation.finish_reason is not None)
        assert generation.finish_reason == "cancelled"


def test_a_cancelled_prompt_is_not_computed_to_its_end(loaded: Any) -> None:
    """Cancelling during prefill stops at the chunk; what was computed serves the next request."""
    gate = Gate(loaded)
    prompt = [i % 250 for i in range(200)]
    with Engine(loaded, chunk=20) as engine:
        generation = engine.submit(prompt, greedy(5))
        gate.let(3)
        wait_for(lambda: gate.entered == 4)
        generation.cancel()
        gate.let(1000)
        wait_for(lambda: generation.finish_reason is not None)
        assert engine.counters.positions == 80
        assert list(generation) == []
        again = engine.submit(prompt, greedy(5))
        assert list(again) == plain_greedy(small_loaded().model, prompt, 5)
        assert again.usage.cached_tokens == 80


# --- queueing ------------------------------------------------------------------------------------------------------


def test_f34_a_deadline_passed_in_the_queue(loaded: Any) -> None:
    """A request whose deadline passes while it waits fails with ``queue_timeout`` and never starts."""
    gate = Gate(loaded)
    with Engine(loaded, kv_bytes=2 * 2 * 2 * 8 * 4 * 128, context=128) as engine:
        first = engine.submit([1] * 70, greedy(20))
        late = engine.submit([2] * 70, greedy(20), deadline=time.monotonic() + 0.05)
        wait_for(lambda: gate.entered == 1)
        time.sleep(0.06)
        gate.let(1000)
        with pytest.raises(EngineError, match="deadline") as caught:
            list(late)
        assert caught.value.code == "queue_timeout"
        assert late.ids == []
        assert len(list(first)) == 20
        assert first.usage.computed_tokens == 70 + 19
        assert late.usage.computed_tokens == 0


def test_a_deadline_passed_while_running_cancels(loaded: Any) -> None:
    """A request that runs at its deadline ends there, with what it has."""
    loaded.model.before = lambda *_: time.sleep(0.05)
    with Engine(loaded) as engine:
        generation = engine.submit([1], greedy(3000), deadline=time.monotonic() + 2)
        ids = list(generation)
    assert generation.finish_reason == "cancelled"
    assert 0 < len(ids) < 60


def test_f33_the_queue_is_bounded(loaded: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A burst past the bound is refused at once, and the accepted ones finish."""
    monkeypatch.setattr(engine_module, "MOST_QUEUED", 8)
    gate = Gate(loaded)
    with Engine(loaded, kv_bytes=2 * 2 * 2 * 8 * 4 * 64, context=64) as engine:
        accepted, refusals, slowest = [], [], 0.0
        for i in range(100):
            began = time.perf_counter()
            try:
                accepted.append(engine.submit([i], greedy(2)))
            except EngineError as error:
                refusals.append(error.code)
                slowest = max(slowest, time.perf_counter() - began)
        assert 8 <= len(accepted) <= 10
        assert refusals == ["queue_full"] * (100 - len(accepted))
        assert slowest < 0.05
        gate.let(1000)
        assert all(len(list(generation)) == 2 for generation in accepted)


# --- errors --------------------------------------------------------------------------------------------------------


class Poison:
    """Raises, or gives NaN, for a sequence that holds ``MARK`` in the ids it computes."""

    def __init__(self, loaded: Any, error: BaseException | type[BaseException] | None) -> None:
        self.plain, self.error = loaded.model.forward, error
        loaded.model.forward = self.forward

    def forward(self, ids: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        logits = self.plain(ids, *args, **kwargs)
        if MARK in ids.tolist():
            if self.error is not None:
                error = self.error() if isinstance(self.error, type) else self.error
                error.at = time.monotonic()  # type: ignore[attr-defined]
                raise error
            logits = logits * math.nan
        return logits


@pytest.mark.parametrize(
    "error", [RuntimeError("secret content"), MemoryError(), None, ZeroDivisionError(), StopIteration(1), KeyError("x")]
)
def test_f37_f38_an_error_in_the_step_reaches_its_consumer_alone(loaded: Any, error: BaseException | None) -> None:
    """An exception, no memory or NaN logits end the request they belong to; those beside and after give what they
    give; nothing the failed one computed is reused; the message holds no content."""
    expected = plain_greedy(loaded.model, [1, 2, 3], 30)
    Poison(loaded, error)
    with Engine(loaded) as engine:
        beside = engine.submit([1, 2, 3], greedy(30))
        bad = engine.submit([1, 2, MARK], greedy(30))
        with pytest.raises(EngineError) as caught:
            list(bad)
        assert bad.finish_reason == "error"
        assert "secret" not in str(caught.value)
        assert caught.value.__cause__ is error
        assert list(beside) == expected
        assert list(engine.submit([1, 2, 3], greedy(30))) == expected
        assert all(MARK not in live.ids(0, live.length) for live in engine._worker.cache.lives)


@pytest.mark.parametrize("reader", ["ids", "pieces", "apieces"])
def test_an_error_reaches_every_kind_of_reader(loaded: Any, reader: str) -> None:
    """Readers of ids, of pieces and in coroutines all raise what ended the request."""
    Poison(loaded, RuntimeError())
    with Engine(loaded) as engine:
        generation = engine.submit([MARK], greedy(3))

        async def read() -> list[Any]:
            return [piece async for piece in generation.apieces()]

        readers = {
            "ids": lambda: list(generation),
            "pieces": lambda: list(generation.pieces()),
            "apieces": lambda: asyncio.run(read()),
        }
        with pytest.raises(EngineError, match="failed with RuntimeError"):
            readers[reader]()


def test_an_error_of_the_grammar_stays_with_its_request(loaded: Any) -> None:
    """Rules that fail inside the thread fail their request."""
    with Engine(loaded) as engine:
        generation = engine.submit([1], greedy(20), grammar="start: /[a-z]{10}/")
        generation._request.rules.grammar.mask = None
        with pytest.raises(EngineError, match="TypeError"):
            list(generation)
        assert list(engine.submit([1], greedy(3))) == plain_greedy(loaded.model, [1], 3)


def test_no_memory_for_a_copy_fails_the_request_that_asked(loaded: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the beginning cannot be copied, that request is told, and the cache is as before."""
    from qwen_agent_kit.engine.kv import SequenceKV

    prompt = list(range(100))
    with Engine(loaded) as engine:
        list(engine.submit(prompt, greedy(3)))
        used = engine.kv_used_bytes

        def fail(*_: Any) -> None:
            raise MemoryError

        with monkeypatch.context() as patch:
            patch.setattr(SequenceKV, "copy_from", fail)
            with pytest.raises(EngineError, match="MemoryError"):
                list(engine.submit([*prompt[:50], 1], greedy(3)))
        assert engine.kv_used_bytes == used
        assert list(engine.submit([*prompt[:50], 1], greedy(3))) == plain_greedy(loaded.model, [*prompt[:50], 1], 3)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_dying_thread_reaches_every_consumer(loaded: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the thread itself dies, running, waiting and later requests all get an error, and nobody waits for ever."""
    gate = Gate(loaded)
    engine = Engine(loaded, kv_bytes=2 * 2 * 2 * 8 * 4 * 128, context=128)
    generations = [engine.submit([i] * 20, greedy(50)) for i in range(4)]
    wait_for(lambda: gate.entered == 1)

    def die() -> None:
        raise SystemExit("the scheduler is broken")

    monkeypatch.setattr(engine._worker._scheduler, "plan", die)
    gate.let(1)
    for generation in generations:
        with pytest.raises(EngineError) as caught:
            list(generation)
        assert caught.value.code == "engine_dead"
        assert generation.finish_reason == "error"
    with pytest.raises(EngineError):
        engine.submit([1])
    engine.close()


def test_a_thread_that_vanished_is_noticed(loaded: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even where the thread could say nothing at all (a forked child has none), its consumers look and are told."""
    gate = Gate(loaded)
    engine = Engine(loaded)
    generation = engine.submit([1], greedy(5))
    wait_for(lambda: gate.entered == 1)
    generation._alive = lambda: False
    with pytest.raises(EngineError, match="thread is gone"):
        list(generation)
    gate.let(100)
    engine.close()


# --- any order of everything ----------------------------------------------------------------------------------------


class Chaos:
    """Random submissions, cancels, leaving, deadlines and errors; every consumer must end, and right.

    Prompts come from a pool, so that what each should give is worked out once.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.loaded = small_loaded()
        Poison(self.loaded, RuntimeError)  # a new one each time: a raised one keeps its frames
        choice = random.Random(seed)
        pool = [[choice.randrange(3) for _ in range(choice.randrange(1, 70))] for _ in range(24)]
        self.pool = [(prompt, plain_greedy(small_loaded().model, prompt, 20)) for prompt in pool]
        self.problems: list[str] = []
        self.ended = 0
        self.late: list[float] = []
        self.lock = threading.Lock()

    def one(self, engine: Engine, choice: random.Random) -> None:
        prompt, expected = choice.choice(self.pool)
        kind = choice.random()
        bad = kind < 0.1
        deadline = time.monotonic() + choice.random() / 50 if 0.1 < kind < 0.2 else None
        generation = engine.submit(
            [*prompt, MARK] if bad else prompt,
            greedy(choice.randrange(1, 20)),
            deadline=deadline,
            priority=choice.randrange(-1, 2),
        )
        ids: list[int] = []
        try:
            for token in generation:
                ids.append(token)
                if kind > 0.8 and choice.random() < 0.2:
                    generation.cancel()
                elif kind > 0.65 and choice.random() < 0.1:
                    break
        except EngineError as error:
            if isinstance(error.__cause__, RuntimeError):
                self.late.append(time.monotonic() - error.__cause__.at)  # type: ignore[attr-defined]
            if not bad and error.code != "queue_timeout":
                self.problems.append(f"an error reached a request that was fine: {error.code}")
        else:
            if bad and kind < 0.65:
                self.problems.append("an error did not reach its caller")
        with self.lock:
            self.ended += 1
            if not bad and ids != expected[: len(ids)]:
                self.problems.append("wrong ids")

    def work(self, engine: Engine, start: int, events: int) -> None:
        choice = random.Random(self.seed * 100 + start)
        for _ in range(events):
            self.one(engine, choice)

    def run(self, events: int, threads: int = 5) -> list[int]:
        """Returns the resident bytes after each tenth."""
        resident = []
        with Engine(self.loaded, chunk=24, kv_bytes=2 * 2 * 2 * 8 * 4 * 320, context=128) as engine:
            for _ in range(10):
                part = events // 10 // threads
                workers = [
                    threading.Thread(target=self.work, args=(engine, i, part), daemon=True) for i in range(threads)
                ]
                for worker in workers:
                    worker.start()
                for worker in workers:
                    worker.join(300)
                assert not any(worker.is_alive() for worker in workers), "a consumer is stuck"
                wait_for(lambda: not engine._worker._scheduler.busy)
                assert all(not live.running for live in engine._worker.cache.lives)
                gc.collect()
                resident.append(resident_bytes())
        assert self.problems == []
        assert self.late
        assert max(self.late) < 1.0, "an error reached its caller after more than a second"
        assert self.ended == events // 10 // threads * threads * 10
        assert engine.kv_used_bytes == 0
        return resident


def resident_bytes() -> int:
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * 4096


def test_f59_no_consumer_is_ever_stuck() -> None:
    """500 random events (submit, read, cancel, leave, deadline, error) on five threads: all end, with the right ids."""
    Chaos(1).run(500)


@pytest.mark.full
def test_f59_ten_thousand_events_leave_nothing_behind() -> None:
    """10,000 of them: every consumer ends, errors reach their callers alone and within a second, room returns to what
    it was, and memory grows by less than 1 MB per 1,000 events (the second half against the first)."""
    resident = Chaos(2).run(10_000)
    assert (sum(resident[-3:]) / 3 - sum(resident[3:6]) / 3) / 4 < 1e6


@pytest.mark.full
def test_f59_ten_thousand_requests_one_after_the_other() -> None:
    """10,000 short requests: threads and open files stay what they are, memory grows by under 1 MB per 1,000."""
    resident: list[int] = []
    with Engine(small_loaded(), kv_bytes=2**20) as engine:
        for n in range(10_000):
            list(engine.submit([n % 250, n // 250 % 250, 7], greedy(2)))
            if n % 1000 == 999:
                gc.collect()
                resident.append(resident_bytes())
            if n == 99:
                files, threads = len(os.listdir("/proc/self/fd")), threading.active_count()
        assert (len(os.listdir("/proc/self/fd")), threading.active_count()) == (files, threads)
    assert (sum(resident[-3:]) / 3 - sum(resident[2:5]) / 3) / 5 < 1e6
