"""Schemas that are small to write and endless to follow end in an error, quickly, and never end the process."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from qwen_agent_kit.errors import SchemaError
from qwen_agent_kit.tools import check_schema

Schema = dict[str, Any]


def chained(count: int, link: Callable[[Schema], Schema]) -> Schema:
    """Definitions of which each refers to the next through ``link``."""
    definitions = {f"D{i}": link({"$ref": f"#/$defs/D{i + 1}"}) for i in range(count)}
    return {**link({"$ref": "#/$defs/D0"}), "$defs": {**definitions, f"D{count}": {"type": "string"}}}


def nested(count: int, link: Callable[[Schema], Schema]) -> Schema:
    """The same without references."""
    schema: Schema = {"type": "string"}
    for _ in range(count):
        schema = link(schema)
    return schema


def plainly(inner: Schema) -> Schema:
    return inner


def twice(inner: Schema) -> Schema:
    return {"allOf": [inner, dict(inner)]}


def either(inner: Schema) -> Schema:
    return {"anyOf": [inner, dict(inner)]}


def listed(inner: Schema) -> Schema:
    return {"type": "array", "items": inner}


def named(inner: Schema) -> Schema:
    return {"type": "object", "properties": {"a": inner}, "required": ["a"]}


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        (chained(65, plainly), "at most 64 references"),
        (chained(20_000, plainly), "at most 64 references"),
        (chained(14, twice), "at most 10000 schemas that look at one value"),
        (chained(60, either), "at most 10000 schemas that look at one value"),
        (nested(14, listed), "fewer lists in one another"),
        (nested(90, listed), "fewer lists in one another"),
        (chained(4_000, named), "at most 8000 levels together"),
    ],
    ids=["chain", "long chain", "allOf", "anyOf", "lists", "many lists", "objects"],
)
def test_bombs_are_refused(schema: Schema, message: str) -> None:
    """Before any compiler sees them."""
    with pytest.raises(SchemaError, match=message):
        check_schema(schema, what="it")


FINE = {
    "a chain": chained(60, plainly),
    "both of two": chained(4, twice),
    "lists": nested(12, listed),
    "lists by reference": chained(500, listed),
    "objects": chained(1_500, named),
    "recursive": {
        "$ref": "#/$defs/T",
        "$defs": {"T": {"type": "object", "properties": {"next": {"$ref": "#/$defs/T"}}}},
    },
    "parts referred to": {
        "type": "object",
        "properties": {"a": {"type": "string"}, "b": {"$ref": "#/properties/a"}, "c": {"$ref": "#/properties/a"}},
    },
}

COMPILED = """
import json, sys
from qwen_agent_kit import dialects
from qwen_agent_kit.engine.grammar import GrammarCompiler
from qwen_agent_kit.errors import SchemaError
from qwen_agent_kit.tools import check_schema
from pathlib import Path

schema = json.loads(sys.stdin.read())
check_schema(schema, what="it")
compiler = GrammarCompiler(Path(sys.argv[1]).read_text(), 151_936, [151_645])
dialect = dialects.get("hermes")
try:
    compiler.compile(dialect.grammar([], output_schema=schema, control={}))
except SchemaError as error:
    print(error)
print("whole")
"""


@pytest.mark.parametrize("name", FINE)
def test_what_is_let_through_is_followed_to_its_end(name: str, qwen25_dir: Any) -> None:
    """At the bounds the compiler's process goes on, whether it takes the schema or not."""

    command = [sys.executable, "-c", COMPILED, str(qwen25_dir / "tokenizer.json")]
    done = subprocess.run(
        command, input=json.dumps(FINE[name]), capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.endswith("whole\n")
