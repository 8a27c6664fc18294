"""The engine gives the ids that the model gives, whatever is cached, chunked or running beside, and counts right."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
import weakref
from array import array
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_decoder import EOS, VOCAB, plain_greedy, small_loaded

from qwen_agent_kit.backends import MediaSpan, Prompt, Sampling
from qwen_agent_kit.engine import Engine
from qwen_agent_kit.engine.prompts import PromptReader
from qwen_agent_kit.errors import EngineError, UsageError

PROMPTS = st.lists(st.integers(0, 255), min_size=1, max_size=60)


@pytest.fixture(scope="module")
def loaded() -> Any:
    return small_loaded()


@pytest.fixture
def engine(loaded: Any) -> Any:
    with Engine(loaded, chunk=16) as engine:
        yield engine


def prompt_of(n: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(0, 256, n).tolist()


def greedy(n: int, **fields: Any) -> Sampling:
    return Sampling(temperature=0, max_tokens=n, **fields)


def test_greedy_is_the_models_own(engine: Any, loaded: Any) -> None:
    """Cold, with a warm prefix and with all of it warm, greedy output is that of the whole sequence recomputed."""
    for seed in range(5):
        prompt = prompt_of(40, seed)
        expected = plain_greedy(loaded.model, prompt, 20)
        for _ in range(2):
            generation = engine.submit(prompt, greedy(20))
            assert list(generation) == expected
            assert generation.ids == expected
        longer = [*prompt, *expected, 1, 2, 3]
        assert list(engine.submit(longer, greedy(10))) == plain_greedy(loaded.model, longer, 10)
        other = [*prompt[:25], 7, 7]
        assert list(engine.submit(other, greedy(10))) == plain_greedy(loaded.model, other, 10)


@settings(max_examples=15, deadline=None)
@given(prompts=st.lists(PROMPTS, min_size=1, max_size=4), chunk=st.integers(1, 70), shared=st.integers(0, 60))
def test_chunks_and_neighbours_change_nothing(prompts: list[list[int]], chunk: int, shared: int) -> None:
    """Any chunk size, any number of prompts at once, with or without a common beginning: the same ids."""
    loaded = small_loaded()
    prompts = [prompts[0][:shared] + prompt for prompt in prompts]
    with Engine(loaded, chunk=chunk) as engine:
        generations = [engine.submit(prompt, greedy(8)) for prompt in prompts]
        for prompt, generation in zip(prompts, generations, strict=True):
            assert list(generation) == plain_greedy(loaded.model, prompt, 8)


def test_many_threads_get_each_their_own(engine: Any, loaded: Any) -> None:
    """Submissions from eight threads at once end with what each would have got alone."""
    prompts = [prompt_of(30 + i, i % 5) for i in range(24)]
    found: dict[int, list[int]] = {}

    def work(start: int) -> None:
        for i in range(start, len(prompts), 8):
            found[i] = list(engine.submit(prompts[i], greedy(12)))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {i: plain_greedy(loaded.model, prompt, 12) for i, prompt in enumerate(prompts)}


def test_requests_take_turns(loaded: Any) -> None:
    """A long prompt is computed in chunks between which others decode: none waits for the whole of it."""
    order: list[tuple[int, int]] = []
    loaded = small_loaded()
    loaded.model.before = lambda ids, positions, start: order.append((start, len(ids)))
    ready = threading.Event()
    with Engine(loaded, chunk=16) as engine:
        short = engine.submit(prompt_of(10), greedy(40))
        ids = iter(short)
        next(ids)
        long = engine.submit(prompt_of(160, 1), greedy(2))
        list(long)
        ready.set()
        list(ids)
    first = order.index((16, 16))
    last = order.index((144, 16))
    between = [n for start, n in order[first:last] if n == 1]
    assert len(between) >= 8
    assert all(n <= 16 for _, n in order)


def test_prompts_take_turns() -> None:
    """Two prompts that arrive together are computed a chunk of one, a chunk of the other."""
    loaded = small_loaded()
    order: list[int] = []
    go = threading.Event()

    def before(ids: Any, positions: Any, start: int) -> None:
        go.wait(10)
        order.append(int(ids[0]))

    loaded.model.before = before
    with Engine(loaded, chunk=16) as engine:
        generations = [engine.submit([token] * 80, greedy(1)) for token in (1, 2)]
        go.set()
        for generation in generations:
            list(generation)
    assert order[:1] == [1]
    assert order[1:9] in ([1, 2] * 4, [2, 1] * 4)


def test_a_seed_gives_the_same_whatever_runs_beside(engine: Any) -> None:
    """A seeded draw is repeated exactly, alone and beside others; another seed differs."""
    prompt = prompt_of(20)
    sampling = Sampling(temperature=1.5, top_p=0.95, seed=11, max_tokens=30)
    alone = list(engine.submit(prompt, sampling))
    crowd = [engine.submit(prompt_of(30, i), Sampling(temperature=1.0, max_tokens=30)) for i in range(5)]
    again = engine.submit(prompt, sampling)
    assert list(again) == alone
    for generation in crowd:
        list(generation)
    assert list(engine.submit(prompt, Sampling(temperature=1.5, top_p=0.95, seed=12, max_tokens=30))) != alone


def test_usage_adds_up(engine: Any) -> None:
    """Cached and computed positions are the prompt and all generated ids but the last; times are there."""
    prompt = prompt_of(50)
    for cached in (0, 49):
        before = engine.counters.positions
        generation = engine.submit(prompt, greedy(9))
        assert len(list(generation)) == 9
        usage = generation.usage
        assert (usage.prompt_tokens, usage.cached_tokens, usage.generated_tokens) == (50, cached, 9)
        assert usage.computed_tokens == 50 - cached + 9 - 1 == engine.counters.positions - before
        assert usage.forced_tokens == 0
        assert usage.first_token_ms > 0
        assert usage.first_token_ms >= usage.prefill_ms > 0
        assert usage.decode_ms > 0
        assert usage.tool_ms is None
        assert generation.finish_reason == "length"


@pytest.mark.parametrize("drafts", [False, True])
@pytest.mark.parametrize("chunk", [7, 512])
def test_a_tool_loop_computes_only_what_is_new(chunk: int, drafts: bool) -> None:
    """Over ten steps, step N+1 computes len(prompt N+1) - len(prompt N) - len(output N) + 1 positions of its prompt;
    what is drafted in vain comes on top, and is counted."""
    loaded = small_loaded()
    counted = []
    loaded.model.before = lambda ids, positions, start: counted.append(len(ids))
    with Engine(loaded, chunk=chunk, drafts=drafts) as engine:
        prompt, last = prompt_of(80), 0
        for step in range(10):
            counted.clear()
            generation = engine.submit(prompt, greedy(12))
            output = list(generation)
            new = len(prompt) - last + (1 if step else 0)
            usage = generation.usage
            assert usage.computed_tokens == new + len(output) - 1
            assert sum(counted) == usage.computed_tokens + usage.drafted_tokens - usage.accepted_tokens
            assert drafts or usage.drafted_tokens == 0
            assert usage.cached_tokens == len(prompt) - new
            assert generation.usage.prefix_break is None
            last = len(prompt) + len(output)
            prompt = [*prompt, *output, *prompt_of(25, step + 1)]


def test_two_agents_on_one_prefix_share_it(engine: Any, loaded: Any) -> None:
    """A request that starts while another with the same beginning runs reuses what that has computed."""
    prompt = prompt_of(200)
    first = engine.submit([*prompt, 1], greedy(200))
    ids = iter(first)
    next(ids)
    second = engine.submit([*prompt, 2], greedy(20))
    assert list(second) == plain_greedy(loaded.model, [*prompt, 2], 20)
    assert second.usage.cached_tokens == 200
    assert first.finish_reason is None or len(first.ids) == 200
    assert list(ids) == plain_greedy(loaded.model, [*prompt, 1], 200)[1:]


def test_media_and_positions_reach_the_model() -> None:
    """Positions [3, n] are given to the model as they came and go on after the prompt; media part the prefix."""
    loaded = small_loaded()
    seen: list[list[list[int]]] = []
    loaded.model.before = lambda ids, positions, start: seen.append(positions.tolist())
    positions = np.tile(np.arange(10), (3, 1))
    positions[1, 4:] += 3
    with Engine(loaded) as engine:
        prompt = Prompt(list(range(10)), (MediaSpan(2, 4, "one"),), positions)
        list(engine.submit(prompt, greedy(3)))
        assert seen == [positions.tolist(), [[13]] * 3, [[14]] * 3]
        other = engine.submit(Prompt(list(range(10)), (MediaSpan(2, 4, "two"),), positions), greedy(1))
        list(other)
        assert other.usage.cached_tokens == 2
        assert other.usage.prefix_break == "media differ at 2 of 12"


def test_memory_returns_to_nothing(loaded: Any) -> None:
    """Kept sequences stay under the budget while requests come, and closing returns the count to zero."""
    position = 2 * 2 * 2 * 8 * 4
    with Engine(loaded, kv_bytes=position * 640, context=256) as engine:
        assert engine.kv_used_bytes == 0
        for seed in range(12):
            list(engine.submit(prompt_of(60, seed), greedy(8)))
            assert 0 < engine.kv_used_bytes <= position * 640
    assert engine.kv_used_bytes == 0


def test_an_array_of_ids_is_as_good_as_a_list(engine: Any) -> None:
    """Ids may come as list, tuple, array or ndarray."""
    prompt = prompt_of(20)
    expected = list(engine.submit(prompt, greedy(5)))
    for form in (tuple(prompt), array("i", prompt), np.asarray(prompt), Prompt(array("q", prompt))):
        assert list(engine.submit(form, greedy(5))) == expected


@given(st.lists(st.lists(st.integers(0, VOCAB - 1), max_size=30), min_size=1, max_size=8), st.booleans())
def test_reading_a_prompt_does_not_depend_on_the_last(parts: list[list[int]], grow: bool) -> None:
    """Prompts that go on from the last one, shrink or differ are read as each would be alone."""
    reader, prompt = PromptReader(VOCAB), [1]
    for part in parts:
        prompt = [*prompt, *part] if grow else [*part, 1]
        assert reader.read(prompt).ids.tolist() == prompt
        prompt[0] ^= 1
        assert reader.read(prompt).ids.tolist() == prompt
        with pytest.raises(UsageError):
            reader.read([*prompt, VOCAB])


@pytest.mark.parametrize(
    "prompt",
    [
        [],
        [1.5],
        [True, False],
        ["a"],
        [[1, 2]],
        [1, [2]],
        [-1],
        [VOCAB],
        [10**30],
        Prompt([1, 2, 3], (MediaSpan(2, 2, "x"),)),
        Prompt([1, 2, 3], (MediaSpan(1, 1, "x"), MediaSpan(0, 1, "y"))),
        Prompt([1, 2, 3], (MediaSpan(1, 0, "x"),)),
        Prompt([1, 2, 3], (MediaSpan(1, 1, "x", item=object()),)),
        Prompt([1, 2, 3], (), np.zeros((2, 3), dtype=int)),
        Prompt([1, 2, 3], (), np.zeros((3, 3))),
    ],
)
def test_a_prompt_that_makes_no_sense_is_refused(engine: Any, prompt: Any) -> None:
    """What cannot be a prompt is refused where it is submitted, never inside the thread."""
    with pytest.raises(UsageError):
        engine.submit(prompt, greedy(1))


@pytest.mark.parametrize("fields", [{"context": 0}, {"context": True}, {"chunk": 0}, {"chunk": 1.5}])
def test_an_engine_that_makes_no_sense_is_refused(loaded: Any, fields: dict[str, Any]) -> None:
    """Context and chunk are whole numbers from 1."""
    with pytest.raises(UsageError, match="allowed: a whole number from 1"):
        Engine(loaded, **fields)


def test_f35_a_prompt_that_can_never_fit_is_refused(loaded: Any) -> None:
    """Longer than the context, or than the KV budget holds: refused at once, with the code that clients know."""
    with Engine(loaded, context=100) as engine:
        assert len(list(engine.submit(prompt_of(99), greedy(50)))) == 1
        with pytest.raises(UsageError, match="the prompt has 100 tokens; allowed: at most 99") as caught:
            engine.submit(prompt_of(100), greedy(1))
        assert caught.value.code == "context_length_exceeded"
    with Engine(loaded, kv_bytes=2 * 2 * 2 * 8 * 4 * 128) as engine:
        assert list(engine.submit(prompt_of(127), greedy(50)))
        with pytest.raises(UsageError, match="allowed: at most 127"):
            engine.submit(prompt_of(128), greedy(1))


def test_f36_more_than_fits_at_once_all_finish(loaded: Any) -> None:
    """With room for two at a time, twenty requests queue, finish, and give what they give unloaded."""
    prompts = [prompt_of(50, i) for i in range(20)]
    with Engine(loaded, kv_bytes=2 * 2 * 2 * 8 * 4 * 256, context=128) as engine:
        generations = [engine.submit(prompt, greedy(20)) for prompt in prompts]
        outputs = [list(generation) for generation in generations]
    assert outputs == [plain_greedy(loaded.model, prompt, 20) for prompt in prompts]


def test_f39_without_max_tokens_a_default_is_used_and_reported(loaded: Any) -> None:
    """A missing max_tokens takes 2,048 or what the context leaves, and the generation says which."""
    with Engine(loaded, context=64) as engine:
        generation = engine.submit(prompt_of(40))
        assert generation.max_tokens == 24
        assert len(list(generation)) == 24
        assert generation.finish_reason == "length"
    with Engine(loaded) as engine:
        generation = engine.submit(prompt_of(40))
        assert generation.max_tokens == 2048
        generation.cancel()


def test_the_models_defaults_are_under_what_is_asked() -> None:
    """Sampling fields left out come from the model; given ones win."""
    loaded = small_loaded(sampling_defaults={"temperature": 1.0, "top_k": 50, "seed": 5, "max_tokens": 6})
    with Engine(loaded) as engine:
        drawn = list(engine.submit(prompt_of(10)))
        assert len(drawn) == 6
        assert list(engine.submit(prompt_of(10), Sampling(seed=5))) == drawn
        asked = list(engine.submit(prompt_of(10), greedy(9)))
        assert asked == plain_greedy(loaded.model, prompt_of(10), 9)


def test_the_end_of_turn_stops_and_stays_in_the_ids() -> None:
    """The id that ends the turn is the last of ``ids``, has no text, and the reason is ``stop``."""
    loaded = small_loaded()
    prompt = prompt_of(12)
    output = plain_greedy(loaded.model, prompt, 10)
    loaded.eos = (EOS, output[4])
    with Engine(loaded) as engine:
        generation = engine.submit(prompt, greedy(10))
        text = "".join(piece.text for piece in generation.pieces())
        assert generation.ids == output[: output.index(output[4]) + 1]
        assert generation.finish_reason == "stop"
        assert text == bytes(generation.ids[:-1]).decode("utf-8", "replace")


def test_a_generation_is_read_once(engine: Any) -> None:
    """Ids or pieces, once; the second reader is told."""
    generation = engine.submit(prompt_of(5), greedy(2))
    list(generation)
    for read in (generation.__iter__, generation.pieces):
        with pytest.raises(UsageError, match="already being read"):
            read()


def test_a_coroutine_reads_the_same_pieces(engine: Any) -> None:
    """``apieces`` yields what ``pieces`` yields, several side by side on one loop."""
    prompts = [prompt_of(10, i) for i in range(4)]
    expected = [list(engine.submit(prompt, greedy(25)).pieces()) for prompt in prompts]

    async def read(prompt: list[int]) -> list[Any]:
        return [piece async for piece in engine.submit(prompt, greedy(25)).apieces()]

    async def all_of_them() -> list[Any]:
        return await asyncio.gather(*(read(prompt) for prompt in prompts))

    assert asyncio.run(all_of_them()) == expected


def test_closing_ends_the_thread_and_is_told(loaded: Any) -> None:
    """``close`` stops the thread; requests in flight and later ones get an ``EngineError``; twice does no harm."""
    engine = Engine(loaded)
    generation = engine.submit(prompt_of(10), greedy(3000))
    ids = iter(generation)
    next(ids)
    thread = next(t for t in threading.enumerate() if t.name == "qak-engine")
    engine.close()
    engine.close()
    assert not thread.is_alive()
    with pytest.raises(EngineError) as caught:
        list(ids)
    assert caught.value.code == "engine_closed"
    assert generation.finish_reason == "error"
    with pytest.raises(EngineError):
        engine.submit([1])


def test_a_dropped_engine_ends_its_thread() -> None:
    """Nobody has to close: without references the engine, its thread and its model go."""
    loaded = small_loaded()
    engine = Engine(loaded)
    list(engine.submit(prompt_of(5), greedy(2)))
    model = weakref.ref(loaded.model)
    thread = engine._worker._thread
    del engine, loaded
    gc.collect()
    thread.join(5)
    assert not thread.is_alive()
    gc.collect()
    assert model() is None


def test_an_engine_that_was_never_used_has_no_thread(loaded: Any) -> None:
    """The thread starts with the first request."""
    before = threading.active_count()
    with Engine(loaded):
        assert threading.active_count() == before


def test_a_generation_keeps_its_engine(loaded: Any) -> None:
    """An engine of which only a generation is left goes on until that is read."""
    generation = Engine(loaded).submit(prompt_of(10), greedy(200))
    gc.collect()
    assert len(list(generation)) == 200


def test_handing_an_id_over_is_cheap(engine: Any) -> None:
    """From the engine's thread to a waiting consumer an id costs under 50 microseconds of anybody's time."""
    request = engine.submit(prompt_of(5), greedy(1))
    list(request)
    from qwen_agent_kit.engine.request import End

    generation = engine.submit(prompt_of(5), greedy(1))
    while generation.finish_reason is None:
        time.sleep(0.001)
    queue = generation._request.out
    while not queue.empty():
        queue.get()
    began = time.thread_time()
    for _ in range(20_000):
        queue.put(5)
    queue.put(End())
    assert len(list(generation)) == 20_000
    assert (time.thread_time() - began) / 20_000 < 50e-6
