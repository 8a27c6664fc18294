"""What an encoder made is kept by digest and salt under a byte budget, and an encoder's mistake is its request's."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from qwen_agent_kit.backends import Embeddings, MediaSpan
from qwen_agent_kit.engine.content import Content
from qwen_agent_kit.engine.media import MediaCache, Slot
from qwen_agent_kit.errors import EngineError


class Counting:
    """Four rows of the item's value; remembers what it was given."""

    def __init__(self, rows: int = 4) -> None:
        self.rows, self.seen = rows, []

    def encode(self, items: Any) -> list[Embeddings]:
        self.seen += list(items)
        return [Embeddings(torch.full((self.rows, 8), float(item))) for item in items]


def content(*values: int, salt: str = "") -> Content:
    spans = tuple(MediaSpan(4 * i, 4, f"digest {value}", value) for i, value in enumerate(values))
    return Content(np.zeros(4 * len(values), dtype=np.int32), spans, None, salt)


def rows(filled: Content) -> list[float]:
    return [float(span.item.embeddings.hidden[0, 0]) for span in filled.media]


def test_each_medium_is_encoded_once_while_it_fits() -> None:
    """Twice in one request and again in the next; the least recently used goes first, a request keeps what it has."""
    encoder = Counting()
    cache = MediaCache(encoder, hidden=8, budget=2 * 4 * 8 * 4)
    first = cache.fill(content(1, 2, 1))
    assert rows(first) == [1, 2, 1]
    assert encoder.seen == [1, 2]
    cache.fill(content(1))
    cache.fill(content(3))
    assert cache.used_bytes <= 256
    assert cache.counters.evicted == 1
    cache.fill(content(1))
    assert encoder.seen == [1, 2, 3]
    cache.fill(content(2))
    assert encoder.seen == [1, 2, 3, 2]
    assert rows(first) == [1, 2, 1]


def test_more_than_the_budget_still_serves_its_request() -> None:
    """It is only not kept."""
    cache = MediaCache(Counting(), hidden=8, budget=10)
    assert rows(cache.fill(content(1, 2))) == [1, 2]
    assert cache.used_bytes == 0


def test_f62_salts_share_nothing() -> None:
    """One digest under two salts is two media."""
    encoder = Counting()
    cache = MediaCache(encoder, hidden=8)
    cache.fill(content(1, salt="a"))
    cache.fill(content(1, salt="b"))
    assert encoder.seen == [1, 1]


def test_an_encoder_that_errs_is_an_error_of_the_request() -> None:
    """A wrong number of rows, and an exception; the cache serves the next."""

    class Broken:
        def encode(self, items: Any) -> Any:
            raise ValueError("secret")

    for encoder in (Counting(rows=3), Broken()):
        with pytest.raises(EngineError) as caught:
            MediaCache(encoder, hidden=8).fill(content(1))
        assert caught.value.code == "encoder_failed"
        assert "secret" not in str(caught.value)


def test_media_that_wait_together_are_encoded_together() -> None:
    """What comes while the encoder is busy is one batch, and one medium in it that fails fails alone."""
    began, go = threading.Event(), threading.Event()

    class Slow(Counting):
        batches: ClassVar[list[list[int]]] = []

        def encode(self, items: Any) -> list[Embeddings]:
            self.batches.append(list(items))
            began.set()
            assert go.wait(10)
            if 13 in items:
                raise ValueError("secret")
            return super().encode(items)

    cache = MediaCache(Slow(), hidden=8)
    with ThreadPoolExecutor(5) as callers:
        first = callers.submit(cache.fill, content(1))
        assert began.wait(10)
        others = [callers.submit(cache.fill, content(value)) for value in (2, 13, 3, 2)]
        until = time.monotonic() + 10
        while len(cache._waiting) < 3 and time.monotonic() < until:
            time.sleep(0.001)
        go.set()
        assert rows(first.result()) == [1]
        assert [rows(others[i].result()) for i in (0, 2, 3)] == [[2], [3], [2]]
        with pytest.raises(EngineError):
            others[1].result()
    assert Slow.batches[0] == [1]
    assert sorted(Slow.batches[1]) == [2, 3, 13]
    assert (cache.counters.encoded, cache.counters.found) == (3, 1)


def test_a_closed_cache_refuses() -> None:
    """Nobody waits for a thread that has ended."""
    cache = MediaCache(Counting(), hidden=8)
    cache.close()
    with pytest.raises(EngineError) as caught:
        cache.fill(content(1))
    assert caught.value.code == "engine_closed"


def test_a_slot_lets_go_when_its_request_ends() -> None:
    """Idle sequences keep keys and values, not embeddings."""
    slot = Slot(Embeddings(torch.zeros(1, 1)))
    slot.clear()
    assert slot.embeddings is None


@pytest.mark.parametrize(
    ("made", "told"),
    [
        (
            lambda items: [Embeddings(np.zeros((4, 8)))],
            r"Embeddings of a numpy\.ndarray; allowed: a tensor of torch",
        ),
        (lambda items: [torch.zeros(4, 8)], "gave a Tensor; allowed: Embeddings"),
        (lambda items: [], "gave 0 results for 1 items"),
        (lambda items: [Embeddings(torch.zeros(3, 8))], r"gave \[3, 8\] for 4 ids of width 8"),
        (lambda items: 1 / 0, r"failed with ZeroDivisionError \(test_media\.py:\d+\)"),
    ],
)
def test_an_encoders_mistake_is_told_as_one(made: Any, told: str) -> None:
    """What it gave and what is allowed, or what it raised and where."""
    encoder = type("Odd", (), {"encode": lambda self, items: made(items)})()
    with pytest.raises(EngineError, match=told) as caught:
        MediaCache(encoder, hidden=8).fill(content(1))
    assert caught.value.code == "encoder_failed"
