"""Sampling and usage: ranges are checked where the object is made."""

from __future__ import annotations

import math
from dataclasses import fields
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen_agent_kit import Sampling, Usage
from qwen_agent_kit.errors import UsageError

BAD: list[Any] = [math.nan, math.inf, -math.inf, 1e308, "1", True, [1], -1e9, 10**400]
BAD_OF = {
    "logit_bias": [
        3,
        [1],
        {"x": 1.0},
        {1: math.nan},
        {1: "2"},
        {-1: 0.5},
        {1: 1e308},
        {True: 1},
        dict.fromkeys(range(10**5), 1.0),
    ],
    "stop": [3, "", [""], [3], ("x" * 10**6,), ["x"] * 1000, {"x": 1}],
}


@pytest.mark.parametrize("name", [f.name for f in fields(Sampling)])
def test_f22_a_bad_sampling_field_is_refused_by_name(name: str) -> None:
    """NaN, infinities, huge numbers, strings and bools for each field are usage errors that name it."""
    for value in BAD_OF.get(name, BAD):
        if name == "seed" and value == -1e9:
            continue
        with pytest.raises(UsageError, match=f"`{name}`") as caught:
            Sampling(**{name: value})
        assert caught.value.code == "invalid_sampling"
        assert len(str(caught.value)) < 300


def test_bounds_are_inside() -> None:
    """The ends of each range are allowed where the docstring says so."""
    Sampling(
        temperature=0, top_p=1, top_k=0, min_p=1, presence_penalty=-2, frequency_penalty=2, max_tokens=1, logprobs=0
    )
    assert Sampling(stop="x").stop == ("x",)  # type: ignore[arg-type]  # accepted on purpose
    assert Sampling(logit_bias={"7": 1}).logit_bias == {7: 1.0}  # type: ignore[dict-item]  # as JSON brings it
    for bad in ({"top_p": 0}, {"repetition_penalty": 0}, {"max_tokens": 0}):
        with pytest.raises(UsageError):
            Sampling(**bad)


def test_settings_go_over_defaults() -> None:
    """What was set wins, what was left out comes from the defaults; 0 counts as set."""
    merged = Sampling(temperature=0, stop=("a",)).over(Sampling(temperature=0.7, top_p=0.9, stop=("b",)))
    assert (merged.temperature, merged.top_p, merged.stop) == (0, 0.9, ("a",))
    assert Sampling(top_k=3).to_dict() == {"top_k": 3}


usages = st.builds(Usage, *[st.none() | st.integers(0, 100)] * 5)


@given(usages, usages, usages)
def test_usage_adds_up(a: Usage, b: Usage, c: Usage) -> None:
    """Adding is associative, None is neutral, and two numbers add."""
    assert (a + b) + c == a + (b + c)
    assert a + Usage() == a
    if a.prompt_tokens is not None and b.prompt_tokens is not None:
        assert (a + b).prompt_tokens == a.prompt_tokens + b.prompt_tokens
