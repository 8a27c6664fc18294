"""Many requests in one forward per step: fair, each with its own rules, and none hurt by what happens to another."""

from __future__ import annotations

import math
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from small_decoder import PlainKV, plain_greedy, small_loaded

from qwen_agent_kit.backends import Sampling
from qwen_agent_kit.engine import Engine
from qwen_agent_kit.engine import request as request_module
from qwen_agent_kit.errors import EngineError, UsageError

POSITION = 2 * 2 * 2 * 8 * 4
"""Bytes of one position of the small decoder."""


def greedy(n: int, **fields: Any) -> Sampling:
    return Sampling(temperature=0, max_tokens=n, **fields)


def prompt_of(n: int, start: int = 0) -> list[int]:
    return [(start * 31 + i * 7) % 250 for i in range(n)]


class Steps:
    """Notes the rows of each forward, and holds the first until ``go``."""

    def __init__(self, loaded: Any) -> None:
        self.rows: list[list[int]] = []
        self.go = threading.Event()
        self.plain = loaded.model.forward_batch
        loaded.model.forward_batch = self

    def __call__(self, ids: Any, positions: Any, segments: Any) -> Any:
        assert self.go.wait(20), "nobody let it go"
        self.rows.append([segment.count for segment in segments])
        return self.plain(ids, positions, segments)


def test_all_that_decode_share_a_forward() -> None:
    """Eight prompts, eight answers: about as many forwards as one answer has ids, each with a row per request."""
    loaded = small_loaded()
    steps = Steps(loaded)
    prompts = [prompt_of(10, i) for i in range(8)]
    with Engine(loaded, drafts=False) as engine:
        generations = [engine.submit(prompt, greedy(20)) for prompt in prompts]
        steps.go.set()
        for prompt, generation in zip(prompts, generations, strict=True):
            assert list(generation) == plain_greedy(small_loaded().model, prompt, 20)
    assert [1] * 8 in steps.rows
    assert len(steps.rows) <= 20 + 8


def test_a_step_has_one_budget() -> None:
    """Decoding rows and chunks of prompts together stay within the budget; short prompts share a step."""
    loaded = small_loaded()
    steps = Steps(loaded)
    with Engine(loaded, chunk=64, drafts=False) as engine:
        generations = [engine.submit(prompt_of(n, n), greedy(12)) for n in (30, 30, 200, 5)]
        steps.go.set()
        for generation in generations:
            list(generation)
    assert max(sum(rows) for rows in steps.rows) <= 64
    assert any(len(rows) > 1 and max(rows) > 1 for rows in steps.rows)


def test_priorities_go_first() -> None:
    """Of what waits the highest priority is admitted first, equals in the order they came."""
    loaded = small_loaded()
    steps = Steps(loaded)
    admitted: list[int] = []

    def first_ids(ids: Any, positions: Any, segments: Any) -> Any:
        """Which prompt begins, by its first id."""
        at = 0
        for segment in segments:
            admitted.extend(ids[at : at + 1].tolist() if segment.start == 0 else ())
            at += segment.count
        return steps(ids, positions, segments)

    loaded.model.forward_batch = first_ids
    with Engine(loaded, kv_bytes=128 * POSITION, context=128) as engine:
        first = engine.submit(prompt_of(100), greedy(5))
        waiting = [engine.submit(prompt_of(100, i), greedy(2), priority=p) for i, p in enumerate((-1, 0, 5, 5), 1)]
        first.cancel()
        steps.go.set()
        for generation in waiting:
            assert len(list(generation)) == 2
    begun = [start for start in admitted if start != prompt_of(1)[0]]
    assert begun == [prompt_of(1, i)[0] for i in (3, 4, 2, 1)]


def test_a_higher_priority_takes_the_room_of_a_lower() -> None:
    """Where there is no room the lower one gives way, and goes on later as if nothing had been."""
    loaded = small_loaded()
    with Engine(loaded, kv_bytes=192 * POSITION, context=192) as engine:
        low = engine.submit(prompt_of(100), greedy(60))
        ids = iter(low)
        got = [next(ids)]
        high = engine.submit(prompt_of(100, 1), greedy(10), priority=1)
        assert list(high) == plain_greedy(small_loaded().model, prompt_of(100, 1), 10)
        got += list(ids)
    assert got == plain_greedy(small_loaded().model, prompt_of(100), 60)


@pytest.mark.parametrize("fields", [{}, {"temperature": 1.2, "seed": 5}])
def test_f36_without_room_all_finish_as_if_there_were(fields: dict[str, Any]) -> None:
    """Twelve requests grow out of room for five: some give way and go on, outputs are the unloaded ones, and what is
    computed twice is counted."""
    loaded = small_loaded()
    sampling = Sampling(**{"temperature": 0.0, "max_tokens": 90, **fields})
    prompts = [prompt_of(40, i) for i in range(12)]
    with Engine(small_loaded(), drafts=False) as engine:
        expected = [list(engine.submit(prompt, sampling)) for prompt in prompts]
    with Engine(loaded, kv_bytes=5 * 64 * POSITION, context=192) as engine:
        generations = [engine.submit(prompt, sampling) for prompt in prompts]
        assert [list(generation) for generation in generations] == expected
        assert sum(generation._request.preemptions for generation in generations) > 0
        assert all(generation.usage.prompt_tokens == 40 for generation in generations)
    assert engine.kv_used_bytes == 0


@pytest.mark.parametrize("error", [MemoryError(), torch.OutOfMemoryError("no"), RuntimeError("can't allocate memory")])
def test_f37_no_memory_in_one_step_hurts_nobody(error: Exception) -> None:
    """Once out of memory: what is kept for later is given up, each part is tried alone, all answers are right, and the
    pool is what it was."""
    loaded = small_loaded()
    plain, calls = loaded.model.forward_batch, [0]

    def forward(ids: Any, positions: Any, segments: Any) -> Any:
        calls[0] += 1
        if calls[0] == 12:
            raise error
        return plain(ids, positions, segments)

    loaded.model.forward_batch = forward
    prompts = [prompt_of(20, i) for i in range(4)]
    with Engine(loaded) as engine:
        generations = [engine.submit(prompt, greedy(20)) for prompt in prompts]
        for prompt, generation in zip(prompts, generations, strict=True):
            assert list(generation) == plain_greedy(small_loaded().model, prompt, 20)
    assert engine.kv_used_bytes == 0


def test_f37_a_batch_that_never_fits_goes_one_by_one() -> None:
    """Where two rows at once are always too much, requests still finish, each alone."""
    loaded = small_loaded()
    plain = loaded.model.forward_batch

    def forward(ids: Any, positions: Any, segments: Any) -> Any:
        if len(segments) > 1:
            raise MemoryError
        return plain(ids, positions, segments)

    loaded.model.forward_batch = forward
    with Engine(loaded) as engine:
        generations = [engine.submit(prompt_of(20, i), greedy(10)) for i in range(3)]
        for i, generation in enumerate(generations):
            assert list(generation) == plain_greedy(small_loaded().model, prompt_of(20, i), 10)


@pytest.mark.parametrize("where", ["sampler", "grammar", "nan", "model"])
def test_f38_what_fails_for_one_stays_with_it(where: str) -> None:
    """An exception in one request's sampler or grammar, NaN in its logits, or a model that cannot take it: the three
    beside it, in the same forwards, get what they get alone."""
    loaded = small_loaded()
    steps = Steps(loaded)
    plain = steps.plain

    def poisoned(ids: Any, positions: Any, segments: Any) -> Any:
        logits = plain(ids, positions, segments)
        first, row = 0, 0
        for segment in segments:
            if 255 in ids[first : first + segment.count].tolist():
                if where == "model":
                    raise RuntimeError("this one")
                logits[row : row + segment.wanted] *= math.nan
            first, row = first + segment.count, row + segment.wanted
        return logits

    if where in ("nan", "model"):
        steps.plain = poisoned
    with Engine(loaded) as engine:
        good = [engine.submit(prompt_of(20, i), greedy(15)) for i in range(3)]
        bad = engine.submit([*prompt_of(20, 9), 255], greedy(15), grammar="start: /[a-z]{9}/")
        if where == "sampler":
            bad._request.rules.sampler._greedy = None
        elif where == "grammar":
            bad._request.rules.grammar.mask = None
        steps.go.set()
        with pytest.raises(EngineError):
            list(bad)
        assert bad.finish_reason == "error"
        for i, generation in enumerate(good):
            assert list(generation) == plain_greedy(small_loaded().model, prompt_of(20, i), 15)
        assert list(engine.submit(prompt_of(5), greedy(3))) == plain_greedy(small_loaded().model, prompt_of(5), 3)
    assert engine.kv_used_bytes == 0


@pytest.mark.parametrize("stop", [(), ("never",)])
def test_f32_a_consumer_that_reads_nothing_is_let_go(monkeypatch: pytest.MonkeyPatch, stop: tuple[str, ...]) -> None:
    """What waits for a reader is bounded; past that the request ends with an error that the reader gets after what
    there is, and the others go on."""
    monkeypatch.setattr(request_module, "MOST_UNREAD", 100)
    monkeypatch.setattr(request_module, "MOST_UNREAD_TEXT", 100)
    with Engine(small_loaded(), stop_repetition=False) as engine:
        idle = engine.submit(prompt_of(10), greedy(3000, stop=stop))
        read = engine.submit(prompt_of(10, 1), greedy(300))
        assert len(list(read)) == 300
        until = time.monotonic() + 20
        while idle.finish_reason is None and time.monotonic() < until:
            time.sleep(0.001)
        assert idle.finish_reason == "error"
        assert idle._request.out.qsize() <= 102
        ids = []
        with pytest.raises(EngineError, match="wait for a reader") as caught:
            ids.extend(idle)
        assert caught.value.code == "consumer_stalled"


def test_f32_the_bounds_are_within_a_mebibyte() -> None:
    """Ids wait as objects that the generation keeps anyway (8 bytes more each); text as pieces of under 256 bytes."""
    assert request_module.MOST_UNREAD * 8 <= 2**20
    assert request_module.MOST_UNREAD_TEXT * 256 <= 2**20


def test_cancelling_one_of_many_takes_it_out_of_the_next_step() -> None:
    """After ``cancel`` the forward that runs is its last; the others' output is theirs."""
    loaded = small_loaded()
    steps = Steps(loaded)
    with Engine(loaded, drafts=False) as engine:
        generations = [engine.submit(prompt_of(10, i), greedy(400)) for i in range(4)]
        steps.go.set()
        readers = [iter(generation) for generation in generations]
        for reader in readers:
            next(reader)
        generations[2].cancel()
        while generations[2].finish_reason is None:
            time.sleep(0.0005)
        n = len(generations[2].ids)
        generations[0].cancel()
        while generations[0].finish_reason is None:
            time.sleep(0.0005)
        assert len(generations[2].ids) == n < 400
        for i in (1, 3):
            assert [generations[i].ids[0], *readers[i]] == plain_greedy(small_loaded().model, prompt_of(10, i), 400)


@pytest.mark.parametrize(
    "options", [{"priority": 1.5}, {"priority": 2000}, {"salt": 3}, {"salt": "\n"}, {"adapter": "x"}]
)
def test_what_cannot_be_is_refused(options: dict[str, Any]) -> None:
    """Wrong priorities, salts and adapters are named where they are said."""
    with Engine(small_loaded()) as engine, pytest.raises(UsageError, match=f"`{next(iter(options))}`"):
        engine.submit([1], **options)


def test_f62_salts_part_what_is_kept() -> None:
    """Equal prompts under different salts share nothing; under one they share all."""
    with Engine(small_loaded()) as engine:
        for salt, cached in (("", 0), ("a", 0), ("b", 0), ("a", 99), ("", 99)):
            generation = engine.submit(prompt_of(100), greedy(2), salt=salt)
            list(generation)
            assert generation.usage.cached_tokens == cached


# --- any combination ----------------------------------------------------------------------------------------------


GRAMMAR = 'start: "{" ("abc" | "abd") /[0-9]{2,6}/ ", name: " /[a-e]{3,20}/ "}"'


@st.composite
def requests(draw: Any) -> dict[str, Any]:
    kind = draw(st.sampled_from(["greedy", "seeded", "penalised", "grammar", "stop"]))
    shared = draw(st.integers(0, 150))
    own = draw(st.lists(st.integers(0, 3), min_size=1, max_size=30))
    seed = draw(st.integers(0, 99))
    fields: dict[str, Any] = {"max_tokens": draw(st.integers(1, 40)), "temperature": 0.0}
    if kind in ("seeded", "penalised"):
        fields |= {"temperature": 0.9, "seed": seed, "top_p": 0.95, "top_k": 60}
    if kind == "penalised":
        fields |= {"repetition_penalty": 1.1, "frequency_penalty": 0.3, "logprobs": 2}
    if kind == "stop":
        fields |= {"stop": ("ab", "z")}
    if kind == "grammar":
        fields |= {"max_tokens": 60, "temperature": draw(st.sampled_from([0.0, 1.0])), "seed": seed}
    prompt = [*prompt_of(150)[:shared], *own]
    return {
        "prompt": prompt,
        "sampling": Sampling(**fields),
        "grammar": GRAMMAR if kind == "grammar" else None,
        "priority": draw(st.integers(-1, 1)),
    }


def alone(request: dict[str, Any]) -> list[int]:
    """The same request by itself in an engine that reuses, drafts and cuts nothing."""
    with Engine(small_loaded(), drafts=False) as engine:
        return list(engine.submit(request["prompt"], request["sampling"], grammar=request["grammar"]))


def as_alone(said: list[int], request: dict[str, Any]) -> bool:
    """Whether they are the ids of one alone, up to where its two likeliest are one rounding apart.

    Chunks sum the same numbers in another order, so that such a draw may go either way.
    """
    wanted = alone(request)
    at = next((i for i, (a, b) in enumerate(zip(said, wanted, strict=False)) if a != b), None)
    if at is None:
        return len(said) == len(wanted)
    if request["sampling"].temperature != 0.0 or request["grammar"] is not None:
        return False
    ids = torch.tensor([*request["prompt"], *wanted[:at]])
    model, start = small_loaded().model, len(ids) - 1
    logits = model.forward(ids, torch.arange(len(ids)), PlainKV(), start=0, logits_from=start)[-1]
    return abs(float(logits[said[at]] - logits[wanted[at]])) < 4e-6


def check_combination(folder: Path, waves: list[list[dict[str, Any]]], options: dict[str, Any]) -> None:
    for wave in waves:
        with Engine(small_loaded(), context=256, prefixes=folder, **options) as engine:
            for _ in range(2):
                generations = [
                    engine.submit(r["prompt"], r["sampling"], grammar=r["grammar"], priority=r["priority"])
                    for r in wave
                ]
                for r, generation in zip(wave, generations, strict=True):
                    assert as_alone(list(generation), r)
                    usage = generation.usage
                    computed = usage.cached_tokens + usage.computed_tokens
                    pending = usage.prompt_tokens + usage.generated_tokens - computed
                    assert generation._request.preemptions or 1 <= pending <= 1 + usage.forced_tokens
        assert engine.kv_used_bytes == 0


OPTIONS = st.fixed_dictionaries(
    {
        "chunk": st.integers(1, 90),
        "drafts": st.booleans(),
        "kv_bytes": st.sampled_from([256, 320, 512, 4000]).map(lambda n: n * POSITION),
    }
)


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    waves=st.lists(st.lists(requests(), min_size=1, max_size=5), min_size=1, max_size=2),
    options=OPTIONS,
    n=st.integers(),
)
def test_every_combination_gives_the_ids_of_one_alone(
    tmp_path: Path, waves: list[list[dict[str, Any]]], options: dict[str, Any], n: int
) -> None:
    """Batched, chunked, preempted, with prefixes from memory or disk, drafted and forced: greedy and seeded ids are
    those of the request alone and cold."""
    check_combination(tmp_path / str(n), waves, options)


@pytest.mark.full
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    waves=st.lists(st.lists(requests(), min_size=1, max_size=5), min_size=1, max_size=2),
    options=OPTIONS,
    n=st.integers(),
)
def test_every_combination_at_length(
    tmp_path: Path, waves: list[list[dict[str, Any]]], options: dict[str, Any], n: int
) -> None:
    """The same, many more."""
    check_combination(tmp_path / str(n), waves, options)
