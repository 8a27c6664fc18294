"""Structured output."""

from __future__ import annotations

import dataclasses
import json

import pytest
from pydantic import BaseModel, Field

from qwen_agent_kit import Agent, Limits, ToolCall
from qwen_agent_kit.backends import Capabilities, Finish
from qwen_agent_kit.errors import OutputError, SchemaError, UsageError
from qwen_agent_kit.testing import ScriptedModel


class Person(BaseModel):
    """A person."""

    name: str
    age: int = Field(ge=0)


@dataclasses.dataclass
class Point:
    """A point."""

    x: int
    y: int


def find(name: str) -> str:
    """Find somebody."""
    return f"{name} is 41"


GOOD = '{"name": "Ada", "age": 41}'


def test_a_pydantic_model_comes_back_validated() -> None:
    """The request carries its schema, the output is an instance."""
    model = ScriptedModel([GOOD])
    result = Agent(model, output=Person).run("who?")
    assert result.output == Person(name="Ada", age=41)
    assert model.requests[0].output_schema["properties"].keys() == {"name", "age"}


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        (Point, '{"x": 1, "y": 2}', Point(1, 2)),
        (list[int], "[1, 2]", [1, 2]),
        (int, "7", 7),
        ({"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}, '{"a": 1}', {"a": 1}),
        ({"enum": ["yes", "no"]}, '"yes"', "yes"),
    ],
)
def test_other_kinds_of_output(kind: object, text: str, value: object) -> None:
    """Dataclasses, annotations and JSON schemas."""
    assert Agent(ScriptedModel([text])).run("q", output=kind).output == value


def test_a_run_may_ask_for_another_output_than_the_agent() -> None:
    """`output=` of run wins."""
    assert Agent(ScriptedModel(["3"]), output=Person).run("q", output=int).output == 3


def test_an_answer_that_does_not_fit_goes_back_with_a_short_error() -> None:
    """The model reads what is wrong and answers again; the conversation shows both."""
    model = ScriptedModel(['{"name": "Ada", "age": "old"}', GOOD])
    result = Agent(model, output=Person).run("who?")
    assert result.output.age == 41
    correction = model.requests[1].messages[-1]
    assert correction.role == "user"
    assert "`age`" in correction.text
    assert len(correction.text) < 400
    assert [message.role for message in result.messages] == ["user", "assistant", "user", "assistant"]


def test_tries_are_bounded_and_the_error_holds_the_run() -> None:
    """After Limits.mistakes tries OutputError; its text says what is wrong and nothing of the answer."""
    model = ScriptedModel(lambda _request: '{"name": "CANARY", "age": -5}')
    with pytest.raises(OutputError) as error:
        Agent(model, output=Person, limits=Limits(mistakes=2)).run("who?")
    assert len(model.requests) == 2
    assert "`age`" in str(error.value)
    assert "CANARY" not in str(error.value)
    assert error.value.result.stop_reason == "error"
    assert len(error.value.result.steps) == 2


def test_an_answer_that_was_cut_off_is_no_output() -> None:
    """At the length limit the run stops with `length`, and the output is None, not half an object."""
    result = Agent(ScriptedModel([['{"name": "Ad', Finish("length")]]), output=Person).run("q")
    assert (result.output, result.stop_reason) == (None, "length")


def test_tools_and_output_together() -> None:
    """Tools run first; the schema goes with every request where the model takes both."""
    model = ScriptedModel([ToolCall("", "find", {"name": "Ada"}), GOOD])
    result = Agent(model, tools=[find], output=Person).run("who?")
    assert result.output == Person(name="Ada", age=41)
    assert all(request.output_schema is not None for request in model.requests)
    assert [tool.name for tool in model.requests[0].tools] == ["find"]


NOT_BOTH = Capabilities(tools_with_schema=False)


def test_where_a_model_cannot_take_both_the_schema_is_a_tool() -> None:
    """`final_answer` has the schema as its parameters, and its call is the answer."""
    model = ScriptedModel([ToolCall("", "find", {"name": "Ada"}), ToolCall("", "final_answer", json.loads(GOOD))],
                          caps=NOT_BOTH)  # fmt: skip
    result = Agent(model, tools=[find], output=Person).run("who?")
    assert result.output == Person(name="Ada", age=41)
    assert result.stop_reason == "done"
    request = model.requests[0]
    assert request.output_schema is None
    assert [tool.name for tool in request.tools] == ["find", "final_answer"]
    assert request.tools[1].parameters["properties"].keys() == {"name", "age"}
    assert request.tool_choice == "required"
    assert result.messages[-1].role == "tool"


def test_final_answer_wraps_what_is_no_object() -> None:
    """A list is asked for under `answer`."""
    model = ScriptedModel([ToolCall("", "final_answer", {"answer": [1, 2]})], caps=NOT_BOTH)
    assert Agent(model, tools=[find], output=list[int]).run("q").output == [1, 2]
    assert model.requests[0].tools[1].parameters["required"] == ["answer"]


def test_a_wrong_final_answer_goes_back_to_the_model() -> None:
    """As any mistake; then it may mend it, or say it in text."""
    bad, good = {"name": "Ada", "age": "old"}, json.loads(GOOD)
    model = ScriptedModel([ToolCall("", "final_answer", bad), ToolCall("", "final_answer", good)], caps=NOT_BOTH)
    result = Agent(model, tools=[find], output=Person).run("q")
    assert result.output.age == 41
    assert result.steps[0].results[0].is_error
    assert "`age`" in result.steps[0].results[0].text
    model = ScriptedModel([GOOD], caps=NOT_BOTH)
    assert Agent(model, tools=[find], output=Person).run("q").output.age == 41


def test_a_users_final_answer_is_in_the_way_only_then() -> None:
    """The name is refused where the kit needs it, and free otherwise."""

    def final_answer(x: int) -> int:
        """A tool of the user's own."""
        return x

    with pytest.raises(UsageError, match="final_answer"):
        Agent(ScriptedModel([], caps=NOT_BOTH), tools=[final_answer], output=int).run("q")
    model = ScriptedModel([ToolCall("", "final_answer", {"x": 3}), "3"])
    assert Agent(model, tools=[final_answer], output=int).run("q").output == 3


def test_a_schema_that_is_refused_is_refused_when_the_agent_is_made() -> None:
    """With a JSON pointer to the place."""
    with pytest.raises(SchemaError) as error:
        Agent(ScriptedModel([]), output={"type": "object", "properties": {"a": {"type": "strange"}}})
    assert error.value.pointer.startswith("/properties/a")


def test_a_schema_that_the_model_can_never_serve_is_refused_before_it_speaks() -> None:
    """`ChatModel.check` is asked once, before the first request."""

    class Picky(ScriptedModel):
        def check(self, request):
            raise SchemaError("no", pointer="/x")

    model = Picky(["x"])
    with pytest.raises(SchemaError):
        Agent(model, output=int).run("q")
    assert not model.requests
