"""Loops are noticed, and nothing else is."""

from __future__ import annotations

import random
import statistics
import time
from itertools import cycle, islice

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen_agent_kit.engine.repetition import BLANKS, EVERY, PERIODS, REPEATED, RepetitionWatch


def noticed(ids: list[int], blank: set[int] = frozenset()) -> int | None:
    """After how many ids the watch says stop."""
    watch = RepetitionWatch(lambda token: token in blank)
    seen: list[int] = []
    for token in ids:
        seen.append(token)
        if watch.accept(seen):
            return len(seen)
    return None


def random_ids(n: int, seed: int = 0) -> list[int]:
    return [random.Random(seed + i).randrange(1000) for i in range(n)]


@pytest.mark.parametrize("period", [1, 2, 3, 7, 31, PERIODS])
@pytest.mark.parametrize("before", [0, 5, 333])
def test_f40_a_repeated_run_is_noticed(period: int, before: int) -> None:
    """A run of up to 64 ids that repeats is noticed once 512 ids were repeats, at most 31 ids late."""
    head = random_ids(before)
    loop = list(islice(cycle(range(2000, 2000 + period)), 1000))
    at = noticed(head + loop)
    assert at is not None
    assert before + period + REPEATED <= at < before + period + REPEATED + EVERY


def test_f40_blanks_are_noticed() -> None:
    """More than 200 blank ids in a row are noticed at once, whatever their order."""
    ids = random_ids(50) + [random.Random(i).choice((7001, 7002, 7003)) for i in range(400)]
    assert noticed(ids, {7001, 7002, 7003}) == 50 + BLANKS + 1


def test_blanks_with_anything_between_are_text() -> None:
    """200 blanks, a word, 200 blanks: nothing to stop."""
    ids: list[int] = []
    blanks = [7001 + random.Random(i).randrange(3) for i in range(BLANKS)]
    for word in range(20):
        ids += [*blanks[word:], *blanks[:word], word]
    assert noticed(ids, {7001, 7002, 7003}) is None


@pytest.mark.parametrize(
    "ids",
    [
        pytest.param(random_ids(3000), id="text"),
        pytest.param(list(islice(cycle(range(PERIODS + 1)), 3000)), id="a longer period"),
        pytest.param([9] * REPEATED + random_ids(1000), id="a run that ends in time"),
        pytest.param([x for i in range(800) for x in (5, 6, i % 97, 7)], id="rows that differ in a cell"),
        pytest.param([x for i in range(100) for x in ([4] * (REPEATED - 50) + [i + 100])], id="rulers between rows"),
    ],
)
def test_what_is_no_loop_goes_on(ids: list[int]) -> None:
    """Text, tables, and repetition that is shorter or longer than the bounds are left alone."""
    assert noticed(ids) is None


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 2), max_size=200), st.integers(1, 80), st.integers(0, 700))
def test_the_answer_is_that_of_the_definition(head: list[int], period: int, length: int) -> None:
    """At every look, the watch says what a plain reading of the definition says."""
    ids = head + list(islice(cycle([*range(10, 10 + period)]), length))
    expected = None
    for n in range(EVERY, len(ids) + 1, EVERY):
        if any(
            n >= REPEATED + p and all(ids[i] == ids[i - p] for i in range(n - REPEATED, n))
            for p in range(1, PERIODS + 1)
        ):
            expected = n
            break
    assert noticed(ids) == expected


def test_the_cost_of_an_id_does_not_grow() -> None:
    """The 20,000th id costs what the 2,000th does, and both a few microseconds."""
    watch = RepetitionWatch(lambda token: False)
    seen: list[int] = []
    costs = []
    for token in random_ids(22_000):
        seen.append(token)
        began = time.perf_counter()
        watch.accept(seen)
        costs.append(time.perf_counter() - began)
    early, late = statistics.median(costs[1000:3000]), statistics.median(costs[20_000:])
    assert late < 3 * early + 5e-6
    assert late < 50e-6
