"""XML values by the tool's schema."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen_agent_kit.parse.coerce import coerce, kinds


@pytest.mark.parametrize(
    ("text", "admitted", "value"),
    [
        ("12", "", "12"),
        ("12", "string", "12"),
        ("12", "integer", 12),
        ("007", "integer", 7),
        ("007", "string integer", "007"),
        ("+47", "string integer", "+47"),
        (" 12 ", "integer", 12),
        ("1_000", "integer", "1_000"),
        ("١٢", "integer", "١٢"),
        ("1.5", "integer", "1.5"),
        ("1.5", "number", 1.5),
        ("1e3", "number", 1000.0),
        ("1e999", "number", "1e999"),
        ("nan", "number", "nan"),
        ("9" * 5000, "integer", "9" * 5000),
        ("True", "boolean", True),
        ("yes", "boolean", "yes"),
        ("null", "string", "null"),
        ("null", "string null", None),
        ("NULL", "integer", None),
        ("[1, 2", "array", "[1, 2"),
        ('{"a": 1, "a": 2}', "object", '{"a": 1, "a": 2}'),
        ("[" * 100_000, "array", "[" * 100_000),
        ('{"a": [1]}', "object string", {"a": [1]}),
    ],
)
def test_values(text: str, admitted: str, value: Any) -> None:
    """The most specific type that the text can have wins; text that fits none stays a string."""
    found = coerce(text, frozenset(admitted.split()))
    assert found == value
    assert type(found) is type(value)


@given(st.text(), st.frozensets(st.sampled_from(["string", "integer", "number", "boolean", "null", "array", "object"])))
def test_every_value_is_json(text: str, admitted: frozenset[str]) -> None:
    """Whatever the text, the value can be written as JSON and is of an admitted type or the text itself."""
    value = coerce(text, admitted)
    assert json.loads(json.dumps(value, allow_nan=False)) == value
    assert value == text or value is None or admitted


@pytest.mark.parametrize(
    ("schema", "expected"),
    [
        ({}, ""),
        (None, ""),
        ({"type": "string"}, "string"),
        ({"type": ["integer", "null"]}, "integer null"),
        ({"anyOf": [{"type": "integer"}, {"oneOf": [{"type": "array"}]}]}, "integer array"),
        ({"$ref": "#/$defs/a~1b"}, "boolean"),
        ({"$ref": "#/$defs/loop"}, ""),
        ({"$ref": "#/$defs/nowhere/x"}, ""),
        ({"$ref": "http://example.com/x"}, ""),
        ({"enum": ["a", 1, 1.5, True, None, [], {}]}, "string integer number boolean null array object"),
        ({"const": 3}, "integer"),
        ({"type": "float"}, "number"),
    ],
)
def test_types_of_a_schema(schema: Any, expected: str) -> None:
    """Types are found through unions and local references; a cycle names none."""
    root = {"$defs": {"a/b": {"type": "boolean"}, "loop": {"$ref": "#/$defs/loop"}}}
    assert kinds(schema, root) == frozenset(expected.split())


def test_a_schema_that_branches_into_itself_ends_soon() -> None:
    """References that branch and cycle cost no more than references that do not."""
    root: dict[str, Any] = {"$defs": {"x": {"anyOf": [{"$ref": "#/$defs/x"}] * 4}}}
    assert kinds({"$ref": "#/$defs/x"}, root) == frozenset()
