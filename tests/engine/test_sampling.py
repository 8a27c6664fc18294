"""Sampling against transformers' processors and plain formulae.

Draws are compared as distributions, without chance: the generator is replaced by a grid of numbers from 0 to 1, so that
the share of the grid that gives an id is its probability to within the grid's step.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen_agent_kit import foreign
from qwen_agent_kit.backends import Sampling
from qwen_agent_kit.engine.sampling import Sampler, make_sampler
from qwen_agent_kit.errors import EngineError, UsageError

VOCAB = 60
GRID = 400


class Grid:
    """Numbers from a grid in place of a generator."""

    def __init__(self) -> None:
        self.at = 0

    def random(self) -> float:
        self.at += 1
        return (self.at - 0.5) / GRID


def logits_of(seed: int, vocab: int = VOCAB) -> torch.Tensor:
    return torch.randn(vocab, generator=torch.Generator().manual_seed(seed)) * 3


def only(scores: torch.Tensor, token: int) -> None:
    """A mask that allows one id."""
    scores[torch.arange(scores.numel()) != token] = -math.inf


def shares(sampler: Sampler, logits: torch.Tensor) -> torch.Tensor:
    """The probability of each id, by walking the grid."""
    sampler._random = Grid()
    counts = torch.zeros(logits.numel())
    for _ in range(GRID):
        counts[sampler(logits.clone()).id] += 1
    return counts / GRID


def reference(sampling: Sampling, logits: torch.Tensor, prompt: list[int], generated: list[int]) -> torch.Tensor:
    """transformers' processors in transformers' order; the two OpenAI penalties by their formula."""
    process = foreign.transformers().generation.logits_process
    ids, scores = torch.tensor([prompt + generated]), logits[None].clone()
    if sampling.logit_bias:
        bias = {(key,): value for key, value in sampling.logit_bias.items()}
        scores = process.SequenceBiasLogitsProcessor(bias)(ids, scores)
    if sampling.repetition_penalty:
        scores = process.RepetitionPenaltyLogitsProcessor(float(sampling.repetition_penalty))(ids, scores)
    for token in range(logits.numel()):
        count = generated.count(token)
        scores[0, token] -= count * (sampling.frequency_penalty or 0) + (count > 0) * (sampling.presence_penalty or 0)
    scores = process.TemperatureLogitsWarper(float(sampling.temperature))(ids, scores)
    if sampling.top_k:
        scores = process.TopKLogitsWarper(sampling.top_k)(ids, scores)
    if sampling.top_p is not None and sampling.top_p < 1:
        scores = process.TopPLogitsWarper(sampling.top_p)(ids, scores)
    if sampling.min_p:
        scores = process.MinPLogitsWarper(sampling.min_p)(ids, scores)
    return scores[0].softmax(0)


def check(sampling: Sampling, seed: int, prompt: list[int], generated: list[int]) -> None:
    sampler = make_sampler(sampling, VOCAB, prompt)
    for token in generated:
        sampler.accept(token)
    logits = logits_of(seed)
    expected = reference(sampling, logits, prompt, generated)
    found = shares(sampler, logits)
    assert (found - expected).abs().max() <= 1.01 / GRID
    assert not found[expected == 0].any()


@pytest.mark.parametrize(
    "fields",
    [
        {"temperature": 0.7},
        {"temperature": 1.8},
        {"top_k": 5},
        {"top_k": 1},
        {"top_k": 1000},
        {"top_p": 0.8},
        {"top_p": 0.05},
        {"top_k": 12, "top_p": 0.9},
        {"min_p": 0.2},
        {"min_p": 1.0},
        {"repetition_penalty": 1.7},
        {"repetition_penalty": 0.6},
        {"frequency_penalty": 1.1},
        {"frequency_penalty": -1.1},
        {"presence_penalty": 1.5},
        {"logit_bias": {3: 6.0, 7: -100.0}},
        {"temperature": 0.6, "top_k": 20, "top_p": 0.95, "min_p": 0.05, "repetition_penalty": 1.05},
    ],
)
def test_each_field_gives_the_distribution_of_transformers(fields: dict) -> None:
    """Every field, alone and together, draws from the same distribution as transformers or the plain formula."""
    for seed in range(3):
        check(Sampling(**{"temperature": 1.0, **fields}), seed, [1, 2, 3, 3, 9], [3, 5, 5, 5, 40])


FIELDS = st.fixed_dictionaries(
    {"temperature": st.floats(0.2, 3.0)},
    optional={
        "top_k": st.integers(1, VOCAB + 5),
        "top_p": st.floats(0.05, 0.99),
        "min_p": st.floats(0.001, 0.9),
        "repetition_penalty": st.floats(0.5, 2.0),
        "presence_penalty": st.floats(-2, 2),
        "frequency_penalty": st.floats(-2, 2),
        "logit_bias": st.dictionaries(st.integers(0, VOCAB - 1), st.floats(-10, 10), max_size=4),
    },
)
IDS = st.lists(st.integers(0, VOCAB - 1), max_size=8)


@settings(max_examples=15, deadline=None)
@given(fields=FIELDS, seed=st.integers(0, 10**6), prompt=IDS.filter(bool), generated=IDS)
def test_fields_together_give_the_distribution_of_transformers(
    fields: dict, seed: int, prompt: list[int], generated: list[int]
) -> None:
    """Any combination of fields does, with any history."""
    check(Sampling(**fields), seed, prompt, generated)


@pytest.mark.full
@settings(max_examples=300, deadline=None)
@given(fields=FIELDS, seed=st.integers(0, 10**6), prompt=IDS.filter(bool), generated=IDS)
def test_fields_together_at_length(fields: dict, seed: int, prompt: list[int], generated: list[int]) -> None:
    """The same, over many more combinations."""
    check(Sampling(**fields), seed, prompt, generated)


@pytest.mark.parametrize("top_p", [0.5, 0.9, 0.999])
def test_a_nucleus_past_the_first_try_is_found_in_all_ids(top_p: float) -> None:
    """Where the likeliest 1,024 ids do not hold the mass, the nucleus is still the smallest set that does."""
    logits = logits_of(1, 20_000) / 10
    sampler = make_sampler(Sampling(temperature=1.0, top_p=top_p), 20_000)
    process = foreign.transformers().generation.logits_process
    kept = process.TopPLogitsWarper(top_p)(None, logits[None])[0].isfinite()
    sampler._random = Grid()
    drawn = {sampler(logits.clone()).id for _ in range(GRID)}
    assert drawn <= set(kept.nonzero().flatten().tolist())
    sampler._random = type("Last", (), {"random": lambda self: 1 - 1e-12})()
    assert sampler(logits.clone()).id == int(torch.where(kept, logits, math.inf).argmin())


@pytest.mark.parametrize("temperature", [None, 0, 0.0, 1e-9])
def test_no_temperature_is_greedy(temperature: float | None) -> None:
    """Temperature None, 0 or too small to divide by takes the likeliest id, other fields notwithstanding."""
    for seed in range(20):
        logits = logits_of(seed)
        sampler = make_sampler(Sampling(temperature=temperature, top_k=3, top_p=0.9), VOCAB)
        assert sampler(logits.clone()).id == int(logits.argmax())


@pytest.mark.parametrize("fields", [{"repetition_penalty": 1.5}, {}])
def test_logprobs_are_of_the_model_itself(fields: dict) -> None:
    """Reported logprobs are the log-softmax of the logits before bias, penalties, mask and temperature."""
    logits = logits_of(4)
    expected = logits.log_softmax(0)
    sampling = Sampling(temperature=0.5, logprobs=4, logit_bias={11: 100.0} if fields else None, **fields)
    draw = make_sampler(sampling, VOCAB, [1, 2])(logits.clone(), lambda scores: only(scores, 11))
    assert draw.id == 11
    assert draw.logprob is not None
    token, logprob, alternatives = draw.logprob
    assert (token, logprob) == (11, pytest.approx(float(expected[11])))
    best = expected.topk(4)
    assert [i for i, _ in alternatives] == best.indices.tolist()
    assert [p for _, p in alternatives] == pytest.approx(best.values.tolist())


def test_no_alternatives_where_none_were_asked_for() -> None:
    """``logprobs=0`` reports the drawn id alone, ``logprobs=None`` nothing, and a forced id has no logprob."""
    assert make_sampler(Sampling(logprobs=0), VOCAB)(logits_of(0)).logprob[2] == ()
    assert make_sampler(Sampling(), VOCAB)(logits_of(0)).logprob is None
    assert make_sampler(Sampling(logprobs=2), VOCAB).forced(5) == (5, None, ())
    assert make_sampler(Sampling(), VOCAB).forced(5) is None


@given(seed=st.integers(-(2**63), 2**63 - 1))
@settings(max_examples=50, deadline=None)
def test_a_seed_repeats_its_draws(seed: int) -> None:
    """Two samplers with one seed draw alike, however their calls interleave; another seed draws otherwise."""
    flat = torch.zeros(1000)

    def draws(sampler: Sampler, n: int) -> list[int]:
        return [sampler(flat.clone()).id for _ in range(n)]

    one, two = (make_sampler(Sampling(temperature=1.0, seed=seed), 1000) for _ in range(2))
    other = make_sampler(Sampling(temperature=1.0, seed=seed ^ 1), 1000)
    first = draws(one, 4)
    draws(other, 3)
    assert draws(two, 8) == first + draws(one, 4)
    assert draws(make_sampler(Sampling(temperature=1.0, seed=seed ^ 1), 1000), 8) != first + draws(one, 4)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_f38_logits_that_are_not_finite_are_an_error(bad: float, temperature: float) -> None:
    """One NaN or infinity among the logits, or nothing finite at all, never gives an id."""
    logits = logits_of(0)
    logits[17] = bad
    sampler = make_sampler(Sampling(temperature=temperature), VOCAB)
    for broken in (logits, torch.full((VOCAB,), -math.inf)):
        with pytest.raises(EngineError, match="not finite") as caught:
            sampler(broken)
        assert caught.value.code == "invalid_logits"


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_nothing_allowed_is_an_error(temperature: float) -> None:
    """A mask that leaves no id ends the request instead of drawing one of the forbidden."""
    sampler = make_sampler(Sampling(temperature=temperature), VOCAB)
    with pytest.raises(EngineError, match="no token is allowed"):
        sampler(logits_of(0), lambda scores: scores.fill_(-math.inf))


@pytest.mark.parametrize("number", [0.0, 1 - 2**-53])
def test_the_ends_of_the_grid_draw_what_is_allowed(number: float) -> None:
    """The least and the largest number that a generator gives never draw an id without mass."""
    sampler = make_sampler(Sampling(temperature=1.0), VOCAB)
    sampler._random = type("Fixed", (), {"random": lambda self: number})()
    for _ in range(20):
        assert sampler(logits_of(6), lambda scores: only(scores, 30)).id == 30


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_masked_ids_are_never_drawn(temperature: float) -> None:
    """Only what the mask leaves is drawn, even where it is far less likely."""
    allowed = {3, 30, 31}

    def mask(scores: torch.Tensor) -> None:
        keep = torch.zeros(VOCAB, dtype=torch.bool)
        keep[list(allowed)] = True
        scores.masked_fill_(~keep, -math.inf)

    logits = logits_of(2)
    logits[[3, 30, 31]] -= 50
    sampler = make_sampler(Sampling(temperature=temperature, top_p=0.9, top_k=10, min_p=0.01, seed=0), VOCAB)
    assert {sampler(logits.clone(), mask).id for _ in range(200)} <= allowed


def test_a_bias_outside_the_vocabulary_is_refused() -> None:
    """An id that the model does not have is named, with what is allowed."""
    with pytest.raises(UsageError, match=r"the id 60; allowed: 0 to 59") as caught:
        make_sampler(Sampling(logit_bias={60: 1.0}), VOCAB)
    assert caught.value.code == "invalid_sampling"


def test_extreme_temperatures_draw_in_range() -> None:
    """Whatever temperature is allowed, and however large the logits, an id of the vocabulary is drawn."""
    for temperature in (2e-5, 1e-3, 10.0):
        sampler = make_sampler(Sampling(temperature=temperature, seed=1), VOCAB)
        assert all(0 <= sampler(logits_of(seed) * 1e30).id < VOCAB for seed in range(20))


def test_the_prompt_of_a_repetition_penalty_may_be_an_array() -> None:
    """Prompt ids count as seen, whether they come in a list or an array."""
    logits = logits_of(3)
    best = int(logits.argmax())
    for prompt in ([best], np.array([best], dtype=np.int32)):
        assert make_sampler(Sampling(repetition_penalty=10.0), VOCAB, prompt)(logits.clone()).id != best
