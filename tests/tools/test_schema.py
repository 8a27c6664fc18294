"""Schemas given by hand, and output types."""

from __future__ import annotations

import dataclasses
import enum
import json
import socket
import time
import typing
from typing import Annotated, Any, Literal

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, Field

from qwen_agent_kit.errors import OutputError, SchemaError, UsageError
from qwen_agent_kit.tools import ArgumentsError, Tool, check_schema, output_type
from qwen_agent_kit.tools.checking import problems_of_schema, schema_validator


def _given(schema: Any) -> Tool:
    return Tool("t", "d", schema, lambda **kwargs: "ran")


def _object(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties}


def _deep(levels: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(levels):
        schema = {"type": "object", "properties": {"a": schema}}
    return schema


def _itself() -> dict[str, Any]:
    schema = _object(a={"type": "object"})
    schema["properties"]["a"]["properties"] = schema["properties"]
    return schema


BAD = {
    "type": (_object(a={"type": "strin"}), "/properties/a/type"),
    "type-number": (_object(a={"type": 3}), "/properties/a/type"),
    "type-empty": (_object(a={"type": []}), "/properties/a/type"),
    "pattern": (_object(a={"type": "string", "pattern": "["}), "/properties/a/pattern"),
    "pattern-number": (_object(a={"pattern": 5}), "/properties/a/pattern"),
    "pattern-look": (_object(a={"pattern": "(?=x)y"}), "/properties/a/pattern"),
    "pattern-back": (_object(a={"pattern": r"(a)\1"}), "/properties/a/pattern"),
    "pattern-big": (_object(a={"pattern": "(a{1000}){1000}"}), "/properties/a/pattern"),
    "pattern-long": (_object(a={"pattern": "a" * 20_000}), "/properties/a/pattern"),
    "pattern-key": ({"type": "object", "patternProperties": {"(": {}}}, "/patternProperties/("),
    "ref-self": (_object(a={"$ref": "#/properties/a"}), "/properties/a"),
    "ref-pair": (
        {"type": "object", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"allOf": [{"$ref": "#/$defs/a"}]}}},
        "/$defs/",
    ),
    "ref-root-in-place": ({"type": "object", "anyOf": [{"$ref": "#"}]}, ""),
    "ref-remote": (_object(a={"$ref": "http://127.0.0.1:9/x.json"}), "/properties/a/$ref"),
    "ref-file": (_object(a={"$ref": "file:///etc/passwd"}), "/properties/a/$ref"),
    "ref-dangling": (_object(a={"$ref": "#/$defs/nothing"}), "/properties/a/$ref"),
    "ref-anchor": (_object(a={"$ref": "#name"}), "/properties/a/$ref"),
    "ref-number": (_object(a={"$ref": 1}), "/properties/a/$ref"),
    "ref-dynamic": (_object(a={"$dynamicRef": "#m"}), "/properties/a/$dynamicRef"),
    "depth": (_deep(10_000), "/properties/a/"),
    "python-cycle": (_itself(), "/properties/a/"),
    "nul-name": (_object(**{"a\0": {}}), "/properties"),
    "nul-value": (_object(a={"enum": ["x\0y"]}), "/properties/a/enum/0"),
    "nul-description": ({"type": "object", "description": "\0"}, "/description"),
    "surrogate": (_object(a={"const": "\ud800"}), "/properties/a/const"),
    "nan": (_object(a={"minimum": float("nan")}), "/properties/a/minimum"),
    "not-json": (_object(a={"default": object()}), "/properties/a/default"),
    "key": (_object(a={1: 2}), "/properties/a"),
    "properties": ({"type": "object", "properties": []}, "/properties"),
    "schema": (_object(a="string"), "/properties/a"),
    "required": ({"type": "object", "required": "a"}, "/required"),
    "enum-empty": (_object(a={"enum": []}), "/properties/a/enum"),
    "union-empty": (_object(a={"anyOf": []}), "/properties/a/anyOf"),
    "number": (_object(a={"minimum": "3"}), "/properties/a/minimum"),
    "multiple": (_object(a={"multipleOf": 0}), "/properties/a/multipleOf"),
    "count": (_object(a={"minLength": -1}), "/properties/a/minLength"),
    "escape": (_object(**{"a/b~c": {"type": "x"}}), "/properties/a~1b~0c/type"),
    "array": ({"type": "array"}, "/type"),
    "no-type": ({}, "/type"),
}


@pytest.mark.parametrize("name", BAD)
def test_f19_bad_schema_is_refused_with_a_pointer(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A schema that cannot be served is refused when the tool is built: with a pointer, under a second, no network."""

    def no_network(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("a socket was opened")

    schema, pointer = BAD[name]
    monkeypatch.setattr(socket, "socket", no_network)
    began = time.process_time()
    with pytest.raises(SchemaError) as caught:
        _given(schema)
    assert time.process_time() - began < 1
    assert caught.value.pointer.startswith(pointer)
    assert len(str(caught.value)) < 700
    assert caught.value.code == "invalid_schema"


def test_f19_ten_thousand_enum_values_are_fine() -> None:
    """A long enum is no mistake: it is taken under a second, and arguments are checked against it."""
    began = time.process_time()
    made = _given(_object(a={"enum": [f"value-{i}" for i in range(10_000)]}))
    assert made.validate({"a": "value-9999"}) == {"a": "value-9999"}
    with pytest.raises(ArgumentsError) as caught:
        made.validate({"a": "value-10000"})
    assert time.process_time() - began < 1
    assert len(caught.value.feedback) < 500


def test_f20_catastrophic_patterns_take_linear_time() -> None:
    """A pattern that makes `re` run for ever is matched in linear time."""
    made = _given(_object(a={"type": "string", "pattern": "^(x+x+)+y$"}))
    began = time.process_time()
    with pytest.raises(ArgumentsError):
        made.validate({"a": "x" * 5000})
    assert time.process_time() - began < 1


def test_recursive_schemas_that_consume_something_are_fine() -> None:
    """A tree refers to itself through its children; that is no cycle."""
    tree = {"type": "object", "properties": {"kids": {"type": "array", "items": {"$ref": "#"}}}}
    made = _given(tree)
    assert made.validate({"kids": [{"kids": []}]})
    with pytest.raises(ArgumentsError) as caught:
        made.validate({"kids": [{"kids": 3}]})
    assert "`kids[0].kids`: found 3; allowed: array" in caught.value.feedback


def test_the_given_schema_is_the_tools_own() -> None:
    """Changing the dict afterwards changes no tool."""
    schema = _object(a={"type": "string"})
    made = _given(schema)
    schema["properties"]["a"]["type"] = "integer"
    assert made.parameters["properties"]["a"]["type"] == "string"


@pytest.mark.parametrize(
    ("schema", "arguments", "line"),
    [
        ({"required": ["a"]}, {}, "`a`: missing"),
        ({"additionalProperties": False}, {"b": 1}, "`b`: not a known name; allowed: a"),
        ({}, {"a": 5}, "`a`: found 5; allowed: string"),
        ({"properties": {"a": {"anyOf": [{"type": "string"}, {"type": "null"}]}}}, {"a": 5}, "`a`: found 5; allowed: "),
        ({"properties": {"a": {"enum": ["x", "y"]}}}, {"a": "z"}, '`a`: found "z"; allowed: "x", "y"'),
        ({"properties": {"a": {"minimum": 3}}}, {"a": 1}, "`a`: found 1; allowed: at least 3"),
        ({"properties": {"a": {"pattern": "^x$"}}}, {"a": "y"}, 'allowed: text that matches "^x$"'),
        ({"properties": {"a": {"items": {"type": "string"}}}}, {"a": ["x", 2]}, "`a[1]`: found 2"),
        ({"patternProperties": {"^n": {"type": "integer"}}}, {"n1": "x"}, "`n1`: found"),
        ({"additionalProperties": {"type": "integer"}}, {"q": "x"}, "`q`: found"),
        ({"not": {}}, {"a": "x"}, "what `not` of the schema says"),
    ],
)
def test_mistakes_against_given_schemas_are_said_shortly(schema: Any, arguments: Any, line: str) -> None:
    """The model reads which argument, what was found and what is allowed."""
    made = _given({**_object(a={"type": "string"}), **schema})
    with pytest.raises(ArgumentsError) as caught:
        made.validate(arguments)
    assert line in caught.value.feedback


_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.sampled_from(["", "a", "ab", "b1"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["a", "b", "n1"]), inner, max_size=3),
    max_leaves=8,
)
_SCHEMAS = st.recursive(
    st.sampled_from(
        [{}, {"type": "string"}, {"type": "integer", "minimum": 0}, {"pattern": "^a"}, {"enum": ["a", None, 1]}, False]
    ),
    lambda inner: (
        st.fixed_dictionaries(
            {"type": st.just("object"), "properties": st.dictionaries(st.sampled_from(["a", "b"]), inner, max_size=2)},
            optional={
                "additionalProperties": st.booleans() | inner,
                "patternProperties": st.dictionaries(st.sampled_from(["^n", "b"]), inner, max_size=1),
                "required": st.just(["a"]),
            },
        )
        | st.lists(inner, min_size=1, max_size=3).map(lambda several: {"anyOf": several})
        | inner.map(lambda one: {"type": "array", "items": one})
    ),
    max_leaves=6,
)


@settings(max_examples=150, deadline=None)
@given(schema=_SCHEMAS, value=_VALUES)
def test_our_keywords_decide_as_jsonschema_does(schema: Any, value: Any) -> None:
    """Pattern, patternProperties and additionalProperties are ours; the verdict is that of jsonschema's own."""
    check_schema({"anyOf": [schema]}, what="it")
    expected = jsonschema.Draft202012Validator(schema).is_valid(value)
    assert (problems_of_schema(schema_validator(schema), value) == []) == expected


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


@dataclasses.dataclass
class Point:
    x: int
    y: float = 0.5


class Box(BaseModel):
    """A box."""

    title: str = Field(description="its title")
    corner: Point
    colours: list[Colour] = []


class OldDict(typing.TypedDict, total=False):
    a: typing.Required[int]
    b: list[Point]


def _keys(schema: Any) -> set[str]:
    if isinstance(schema, dict):
        return set(schema).union(*(_keys(value) for value in schema.values()))
    if isinstance(schema, list):
        return set().union(*(_keys(value) for value in schema))
    return set()


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        (
            Box,
            '{"title": "t", "corner": {"x": 1}, "colours": ["red"]}',
            Box(title="t", corner=Point(1), colours=[Colour.RED]),
        ),
        (Point, '{"x": 3, "y": 1}', Point(3, 1.0)),
        (OldDict, '{"a": 1, "b": [{"x": 2}]}', {"a": 1, "b": [Point(2)]}),
        (list[int], "[1, 2]", [1, 2]),
        (Literal["a", "b"], '"a"', "a"),
        (int | None, "null", None),
        (Annotated[int, Field(ge=3)], " 5\n", 5),
        (Colour, '"blue"', Colour.BLUE),
        ({"type": "object", "properties": {"a": {"type": "integer"}}}, '```json\n{"a": 1}\n```', {"a": 1}),
        ({"type": "array", "items": {"type": "integer"}}, "[1]", [1]),
    ],
)
def test_output_types_parse_what_they_describe(kind: Any, text: str, value: Any) -> None:
    """Any annotation, or a JSON schema, is an output type: its schema is plain, and a fitting answer is validated."""
    made = output_type(kind)
    assert made.parse(text) == value
    json.dumps(made.schema)
    check_schema(made.schema, what="it")
    assert output_type(made) is made


def test_schemas_of_types_are_plain_and_closed() -> None:
    """No titles but the user's own fields of that name; every object is closed; definitions stay shared."""
    schema = output_type(Box).schema
    assert schema["properties"]["title"] == {"type": "string", "description": "its title"}
    assert schema["additionalProperties"] is False
    assert schema["$defs"]["Point"] == {
        "type": "object",
        "properties": {"x": {"type": "integer"}, "y": {"type": "number", "default": 0.5}},
        "required": ["x"],
        "additionalProperties": False,
    }
    assert "title" not in _keys(output_type(Point).schema)


@pytest.mark.parametrize(
    "kind", [Box, {"type": "object", "properties": {"title": {"type": "string"}}, "required": ["title"]}]
)
@pytest.mark.parametrize("text", ["", "no", "[", "NaN", '{"title": 4711}', "[1]", "[" * 100_000, '{"title": NaN}'])
def test_what_does_not_fit_is_an_output_error(kind: Any, text: str) -> None:
    """The error is short, says what is wrong, and quotes nothing of the answer."""
    with pytest.raises(OutputError) as caught:
        output_type(kind).parse(text)
    assert len(str(caught.value)) < 400
    assert "4711" not in str(caught.value)


@pytest.mark.parametrize("kind", [None, "int", 3, [int], (int,)])
def test_values_are_no_output_types(kind: Any) -> None:
    """A value in the place of a type is refused with the cure."""
    with pytest.raises(UsageError, match="allowed: a type or a JSON schema"):
        output_type(kind)


def test_types_without_a_schema_are_refused() -> None:
    """A type that pydantic cannot describe is refused, not passed on."""
    with pytest.raises(SchemaError, match="has no JSON schema"):
        output_type(socket.socket)
    with pytest.raises(SchemaError) as caught:
        output_type({"type": "object", "properties": {"a": {"type": "nope"}}})
    assert caught.value.pointer == "/properties/a/type"
