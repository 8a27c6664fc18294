"""Drafts change when ids are computed, never which; and they stop where they do not pay."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_decoder import EOS, plain_greedy, small_loaded

from qwen_agent_kit.backends import Sampling
from qwen_agent_kit.engine import Engine
from qwen_agent_kit.engine.costs import Costs
from qwen_agent_kit.engine.drafts import SHORTEST, Drafter, lookup


@given(st.lists(st.integers(0, 2), max_size=60), st.integers(0, 12))
def test_a_draft_is_what_followed_before(ids: list[int], most: int) -> None:
    """There is one exactly where the last ids occurred earlier; it follows one of the places that share most."""
    draft = lookup(np.asarray(ids, dtype=np.int32), most).tolist()
    n = len(ids)

    def equal(end: int) -> int:
        k = 0
        while k < end and k < n and ids[end - 1 - k] == ids[n - 1 - k]:
            k += 1
        return k

    found = {end: min(equal(end), 12) for end in range(1, n)}
    best = max(found.values(), default=0)
    if best < SHORTEST or most == 0:
        assert draft == []
        return
    end = max(e for e, k in found.items() if k == best)
    assert draft == [ids[end + i % (n - end)] for i in range(most)]


def test_what_repeats_is_drafted_and_right() -> None:
    """A model whose answer repeats itself: fewer forwards than ids, the same ids, and usage says how many came true."""
    loaded = small_loaded()
    said = [*range(40, 60)] * 6
    script_forward(loaded, said)
    with Engine(loaded, stop_repetition=False) as engine:
        generation = engine.submit([0], Sampling(temperature=0, max_tokens=120))
        assert list(generation) == said
        usage = generation.usage
    assert usage.accepted_tokens > 20
    assert usage.drafted_tokens >= usage.accepted_tokens
    assert usage.computed_tokens == 120
    assert engine.counters.forwards <= 120 - usage.accepted_tokens
    assert engine.counters.positions == 120 + usage.drafted_tokens - usage.accepted_tokens


def script_forward(loaded: Any, said: list[int]) -> None:
    """After a prompt of one id the model says ``said``, wherever it is asked."""
    import torch

    def forward(ids: Any, positions: Any, kv: Any, *, start: int, logits_from: int) -> Any:
        n = len(ids)
        for layer in range(2):
            kv.write(layer, torch.zeros(n, 2, 8), torch.zeros(n, 2, 8), start)
        logits = torch.zeros(n, 260)
        for row in range(n):
            if start + row < len(said):
                logits[row, said[start + row]] = 10.0
        return logits[logits_from:]

    loaded.model.forward = forward


@pytest.mark.parametrize(
    "fields", [{"temperature": 0.0}, {"temperature": 0.7, "seed": 3}, {"temperature": 1.3, "seed": 4}]
)
def test_drafts_change_no_id(fields: dict[str, Any]) -> None:
    """On a model that repeats itself now and then: the ids with drafts are those without, greedy and seeded."""
    prompt = [1, 2, 3, 4, 5, 6, 7, 8] * 8
    sampling = Sampling(max_tokens=200, **fields)
    outputs = []
    for drafts in (False, True):
        with Engine(small_loaded(), drafts=drafts, stop_repetition=False) as engine:
            outputs.append(list(engine.submit(prompt, sampling)))
    assert outputs[0] == outputs[1]
    if not fields["temperature"]:
        assert outputs[0] == plain_greedy(small_loaded().model, prompt, 200)


def test_the_end_inside_a_draft_is_the_end() -> None:
    """Where the model ends its turn in the middle of a draft, nothing comes after, and the next step reuses all but the
    last id."""
    loaded = small_loaded()
    said = [*range(40, 60), *range(40, 50), EOS]
    script_forward(loaded, said)
    with Engine(loaded) as engine:
        generation = engine.submit([0], Sampling(temperature=0, max_tokens=100))
        assert list(generation) == said
        assert generation.finish_reason == "stop"
        again = engine.submit([0, *said, 7], Sampling(temperature=0, max_tokens=1))
        list(again)
        assert again.usage.cached_tokens == len(said)


def test_drafts_that_never_come_true_are_given_up() -> None:
    """Where steps with more rows cost more and nothing is accepted, soon nothing is drafted."""
    costs, drafter = Costs(), Drafter()
    for rows in range(1, 12):
        costs.note(rows, 1.0 + 0.3 * (rows - 1))
    ids = np.asarray([1, 2, 3, 4] * 10, dtype=np.int32)
    lengths = []
    for _ in range(30):
        draft = drafter.propose(ids, costs, 1, 10, len)
        lengths.append(len(draft))
        drafter.begin(draft)
        drafter.see(99)
        drafter.end()
    assert lengths[0] > 0
    assert sum(lengths[10:]) < 6


def test_drafts_that_come_true_get_longer() -> None:
    """Where they are always right, they grow to the most that pays."""
    costs, drafter = Costs(), Drafter()
    for rows in range(1, 12):
        costs.note(rows, 1.0 + 0.05 * (rows - 1))
    ids = np.asarray([1, 2, 3, 4] * 10, dtype=np.int32)
    for _ in range(20):
        draft = drafter.propose(ids, costs, 1, 10, len)
        drafter.begin(draft)
        for token in draft:
            drafter.see(token)
        drafter.end()
    assert len(draft) == 10
    assert drafter.accepted == drafter.drafted


def test_a_step_whose_rows_cost_as_much_each_is_not_drafted() -> None:
    """Where a second row costs as much as the first, drafts cannot win, and known ids are computed one by one only
    where that was measured to be faster."""
    costs = Costs()
    for rows in range(1, 12):
        costs.note(rows, float(rows))
    assert costs.draft(1, 0.9, 10) == 0
    assert costs.split(5) == 5
    costs = Costs()
    costs.note(1, 1.0)
    costs.note(5, 9.0)
    assert costs.split(5) == 1
    assert costs.split(3) == 3


@given(st.lists(st.tuples(st.integers(1, 40), st.floats(1e-6, 10)), max_size=20), st.integers(1, 60))
def test_costs_are_positive_and_known_ones_smoothed(notes: list[tuple[int, float]], rows: int) -> None:
    """Whatever was noted, an estimate is positive, and None only where nothing is known."""
    costs = Costs()
    for n, seconds in notes:
        costs.note(n, seconds)
    found = costs.of(rows)
    assert (found is None) == (not notes)
    assert found is None or found > 0
