"""What is computed while nobody asks: found by whoever asks next, and never in anybody's way."""

from __future__ import annotations

import threading
import time
from typing import Any

from small_decoder import plain_greedy, small_loaded

from qwen_agent_kit.backends import Sampling
from qwen_agent_kit.engine import Engine
from qwen_agent_kit.engine.scheduler import AHEAD

PROMPT = [(i * 7) % 250 for i in range(300)]


def greedy(n: int) -> Sampling:
    return Sampling(temperature=0, max_tokens=n)


def finished(generation: Any) -> str:
    until = time.monotonic() + 20
    while generation.finish_reason is None:
        assert time.monotonic() < until, "it did not end"
        time.sleep(0.001)
    reason: str = generation.finish_reason
    return reason


class Steps:
    """Notes the rows of each forward; each waits for a permit."""

    def __init__(self, loaded: Any) -> None:
        self.rows: list[int] = []
        self.permits = threading.Semaphore(0)
        loaded.model.before = self.before

    def before(self, ids: Any, *_: Any) -> None:
        self.rows.append(len(ids))
        assert self.permits.acquire(timeout=20), "nobody let it go"


def test_the_next_request_finds_what_was_computed() -> None:
    """All of it is cached, and said to be computed ahead, once; the answer is that of a cold engine."""
    with Engine(small_loaded()) as engine:
        assert finished(engine.ahead(PROMPT)) == "length"
        for ahead, cached in ((300, 300), (0, 303)):
            generation = engine.submit([*PROMPT, 1, 2, 3, 4], greedy(5))
            assert list(generation) == plain_greedy(small_loaded().model, [*PROMPT, 1, 2, 3, 4], 5)
            usage = generation.usage
            assert (usage.ahead_tokens, usage.cached_tokens) == (ahead, cached)
            assert usage.cached_tokens + usage.computed_tokens == 304 + 4
    assert engine.kv_used_bytes == 0


def test_only_what_was_not_there_is_ahead() -> None:
    """A turn's own positions are cached as ever; those after it were computed ahead."""
    with Engine(small_loaded()) as engine:
        list(engine.submit(PROMPT[:200], greedy(1)))
        finished(engine.ahead([*PROMPT[:180], *[9] * 50]))
        generation = engine.submit([*PROMPT[:180], *[9] * 50, 1], greedy(1))
        list(generation)
        assert (generation.usage.cached_tokens, generation.usage.ahead_tokens) == (230, 50)


def test_whoever_asks_ends_it_at_once() -> None:
    """The step that runs is its last, and a short one; what it computed stays, and is found later."""
    loaded = small_loaded()
    steps = Steps(loaded)
    with Engine(loaded) as engine:
        ahead = engine.ahead(PROMPT)
        while len(steps.rows) < 2:
            steps.permits.release()
            time.sleep(0.01)
        computed = sum(steps.rows)
        asked = engine.submit([1, 2, 3], greedy(4))
        steps.permits.release(100)
        assert list(asked) == plain_greedy(small_loaded().model, [1, 2, 3], 4)
        assert finished(ahead) == "cancelled"
        assert max(steps.rows) <= AHEAD
        assert computed <= sum(steps.rows) <= computed + AHEAD + 3 + 3
        again = engine.submit([*PROMPT, 1], greedy(2))
        assert list(again) == plain_greedy(small_loaded().model, [*PROMPT, 1], 2)
        assert 0 < again.usage.ahead_tokens == again.usage.cached_tokens < 300
        assert again.usage.cached_tokens % AHEAD == 0


def test_beside_others_it_does_not_begin() -> None:
    """While somebody is served nothing is computed ahead."""
    loaded = small_loaded()
    steps = Steps(loaded)
    with Engine(loaded) as engine:
        asked = engine.submit([1, 2, 3], greedy(4))
        ahead = engine.ahead(PROMPT)
        steps.permits.release(100)
        assert finished(ahead) == "cancelled"
        list(asked)
        assert sum(steps.rows) <= 3 + 4 + 10


def test_dropping_it_ends_it() -> None:
    """As any generation; and so does closing the engine."""
    loaded = small_loaded()
    steps = Steps(loaded)
    engine = Engine(loaded)
    ahead = engine.ahead(PROMPT)
    request = ahead._request
    del ahead
    steps.permits.release(100)
    while request.finish_reason is None:
        time.sleep(0.001)
    assert request.finish_reason == "cancelled"
    engine.close()
    assert engine.kv_used_bytes == 0
