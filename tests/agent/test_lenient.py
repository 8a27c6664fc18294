"""Types and schemas that a grammar cannot hold, and limits at their edges, through the engine."""

from __future__ import annotations

import enum
from collections.abc import Iterator
from typing import Any, Literal

import pytest

from qwen_agent_kit import Agent, Host, Limits, Sampling, ToolCall, tool
from qwen_agent_kit.errors import SchemaError, UsageError
from qwen_agent_kit.testing import ScriptedModel
from qwen_agent_kit.testing.models import tiny_model_dir

UNIQUE = {"type": "array", "uniqueItems": True, "items": {"type": "integer"}}


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


@pytest.fixture(scope="module")
def open_host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Host, str]]:
    """A host, and a tiny model for it."""
    folder = tiny_model_dir(tmp_path_factory.mktemp("tiny"), layers=1, hidden=16, heads=2, kv_heads=1)
    with Host(quant="fp32", cache=False, prefixes=False) as host:
        yield host, str(folder)


KINDS = [set[int], frozenset[str], set[Colour], dict[Colour, int], dict[Literal["p", "q"], list[int]], dict[int, str]]


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_sets_and_named_keys_are_sampled(open_host: tuple[Host, str], kind: Any) -> None:
    """As arguments and as outputs: what the grammar lets through is what the type takes."""
    host, model = open_host

    def f(x: Any) -> str:
        """Take it.

        Args:
            x: It.
        """
        return repr(x)

    f.__annotations__["x"] = kind
    sampling = Sampling(max_tokens=400, seed=1)
    result = Agent(model, host=host, tools=[f], tool_choice="required", sampling=sampling, limits=Limits(steps=1)).run(
        "Go."
    )
    assert [r.is_error for r in result.steps[0].results] == [False]
    Agent(model, host=host, output=kind, sampling=sampling, limits=Limits(steps=1)).run("Go.")


def test_keys_of_an_enum_are_properties() -> None:
    """The model is shown which keys there are, and another one is told back."""

    @tool
    def paint(shares: dict[Colour, int]) -> str:
        """Paint."""
        return repr(shares)

    schema = paint.definition()["function"]["parameters"]["properties"]["shares"]
    assert schema["properties"] == {"red": {"type": "integer"}, "blue": {"type": "integer"}}
    assert schema["additionalProperties"] is False
    calls = [ToolCall(str(i), "paint", {"shares": {name: 3}}) for i, name in enumerate(("red", "green"))]
    said = [r.text for s in Agent(ScriptedModel([*calls, "ok"]), tools=[paint]).run("x").steps for r in s.results]
    assert said[0] == "{<Colour.RED: 'red'>: 3}"
    assert "found \"green\"; allowed: 'red' or 'blue'" in said[1]


def test_an_agent_may_be_lenient(open_host: tuple[Host, str]) -> None:
    """A schema that no grammar holds is refused with its pointer; with strict=False it is validated afterwards, and the
    step says so: an answer that does not fit is not taken."""
    host, model = open_host
    schema = {"type": "object", "properties": {"a": UNIQUE}, "required": ["a"]}
    sampling, limits = Sampling(max_tokens=8, temperature=0.0), Limits(steps=1)
    with pytest.raises(SchemaError, match="uniqueItems") as error:
        Agent(model, host=host, output=schema, sampling=sampling, limits=limits).run("Go.")
    assert error.value.pointer == "/properties/a/uniqueItems"
    result = Agent(model, host=host, output=schema, sampling=sampling, limits=limits, strict=False).run("Go.")
    assert result.steps[0].notes[0].startswith("strict=False")
    assert result.stop_reason != "done"


def test_time_that_is_over_before_the_first_token_is_no_step(open_host: tuple[Host, str]) -> None:
    """The run ends by its limit; there is no empty turn in it."""
    host, model = open_host
    result = Agent(model, host=host, limits=Limits(seconds=0.0005)).run("word " * 300)
    assert result.stop_reason == "limit:seconds"
    assert result.steps == ()
    assert [m.role for m in result.messages] == ["user"]


@pytest.mark.parametrize("field", ["tokens", "seconds", "steps"])
@pytest.mark.parametrize("value", [10**400, -(10**400), 10**16, float("nan"), float("inf"), -1, 0, True, "5"])
def test_limits_beyond_reason_are_refused(field: str, value: Any) -> None:
    """Named, whatever their size."""
    with pytest.raises(UsageError, match=f"`{field}` of Limits is"):
        Limits(**{field: value})


@pytest.mark.parametrize("value", [0.0, 1e-30, 0.009, 11.0])
def test_a_penalty_that_no_logit_survives_is_refused(value: float) -> None:
    """Divided by less than a hundredth, logits leave the numbers."""
    with pytest.raises(UsageError, match="repetition_penalty"):
        Sampling(repetition_penalty=value)
