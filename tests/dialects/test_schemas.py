"""Schemas that are refused when an agent is built, with the place of the fault."""

from __future__ import annotations

import json
import re
import socket
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen_agent_kit import dialects
from qwen_agent_kit.dialects.prepare import prepared
from qwen_agent_kit.dialects.samples import sample
from qwen_agent_kit.dialects.schema import checked, resolved
from qwen_agent_kit.engine.grammar import GrammarCompiler
from qwen_agent_kit.errors import SchemaError, UsageError
from qwen_agent_kit.testing.models import tiny_tokenizer

CONTROL = {"<tool_call>": 151657, "</tool_call>": 151658}


@pytest.fixture(scope="module")
def compiler(qwen25_dir: Path) -> GrammarCompiler:
    return GrammarCompiler((qwen25_dir / "tokenizer.json").read_bytes(), 151936, [151645, 151643])


def definition(parameters: Any, name: str = "f") -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "description": "", "parameters": parameters}}


def of(schema: Any, **more: Any) -> dict[str, Any]:
    return {"type": "object", "properties": {"x": schema}, "required": ["x"], "additionalProperties": False, **more}


def nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(depth):
        schema = {"type": "object", "properties": {"a": schema}}
    return schema


LOOP = {"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}}
ENDLESS = {"$defs": {"a": {"type": "object", "properties": {"n": {"$ref": "#/$defs/a"}}, "required": ["n"]}}}
REFUSED: dict[str, tuple[Any, str]] = {
    "bad type": (of({"type": "strin"}), "/properties/x/type"),
    "type of types": (of({"type": ["string", 3]}), "/properties/x/type"),
    "bad pattern": (of({"type": "string", "pattern": "("}), "/properties/x/pattern"),
    "look-around": (of({"type": "string", "pattern": "(?=a)b"}), "/properties/x/pattern"),
    "ref loop": (of({"$ref": "#/$defs/a"}, **LOOP), "/$defs/a/$ref"),
    "ref to nothing": (of({"$ref": "#/$defs/no"}), "/properties/x/$ref"),
    "endless value": (of({"$ref": "#/$defs/a"}, **ENDLESS), "/properties/x"),
    "depth": (of(nested(10_000)), "/properties/x/properties/a"),
    "enums": (of({"enum": [f"value {i}" for i in range(10_000)]}), "/properties/x/enum"),
    "NUL in a pattern": (of({"type": "string", "pattern": "a\0b"}), "/properties/x/pattern"),
    "NUL in a name": ({"type": "object", "properties": {"a\0": {}}}, "/properties/a\0"),
    "remote": (of({"$ref": "http://127.0.0.1:9/x.json"}), "/properties/x/$ref"),
    "file": (of({"$ref": "file:///etc/passwd"}), "/properties/x/$ref"),
    "no object": ({"type": "array"}, "/type"),
    "no schema": (of(3), "/properties/x"),
    "bounds": (of({"type": "integer", "minimum": 5, "maximum": 3}), "/properties/x/minimum"),
    "deep inside": (
        of({"type": "array", "items": of({"type": "array", "uniqueItems": True})}),
        "/properties/x/items/properties/x/uniqueItems",
    ),
    "in a definition": (
        of({"$ref": "#/$defs/q"}, **{"$defs": {"q": of({"type": "string", "pattern": "["})}}),
        "/$defs/q/properties/x/pattern",
    ),
    "too long for the turn": (
        of({"type": "array", "items": {"type": "integer"}, "minItems": 400}),
        "/properties/x/minItems",
    ),
    "surrogate": (of({"enum": ["\ud800"]}), "/properties/x/enum"),
    "not JSON": (of({"const": float("nan")}), "/properties/x/const"),
    "tilde and slash": ({"type": "object", "properties": {"a/b~c": {"type": "x"}}}, "/properties/a~1b~0c/type"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_f19_bad_schemas_are_refused_with_a_pointer(
    compiler: GrammarCompiler, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each is refused within a second, without a socket, naming the tool and the place."""

    def no_socket(*_: Any, **__: Any) -> Any:
        raise AssertionError("a schema opened a socket")

    monkeypatch.setattr(socket, "socket", no_socket)
    parameters, pointer = REFUSED[name]
    began = time.process_time()
    with pytest.raises(SchemaError) as caught:
        dialects.check(
            dialects.get("hermes"),
            [definition(parameters, "bad_tool")],
            compile=compiler.compile,
            control=CONTROL,
            max_tokens=256,
        )
    assert time.process_time() - began < (3 if name == "too long for the turn" else 1)
    assert "'bad_tool'" in caught.value.message
    assert caught.value.pointer.startswith(pointer)
    assert len(caught.value.pointer) < 2000


def test_the_output_schema_is_checked_too(compiler: GrammarCompiler) -> None:
    """Its fault is told as its own."""
    with pytest.raises(SchemaError, match="output schema") as caught:
        dialects.check(
            dialects.get("hermes"), [], of({"not": {}}), compile=compiler.compile, control=CONTROL, max_tokens=64
        )
    assert caught.value.pointer == "/properties/x/not"
    assert "`/properties/x/not`" in caught.value.message, "people read the message, not the attribute"


@pytest.mark.parametrize("name", dialects.NAMES)
def test_good_tools_pass(compiler: GrammarCompiler, name: str) -> None:
    """Recursion that ends, formats nobody knows, empty and missing parameters are served."""
    tree = {
        "$defs": {"t": {"type": "object", "properties": {"kids": {"type": "array", "items": {"$ref": "#/$defs/t"}}}}}
    }
    tools = [
        definition(of({"$ref": "#/$defs/t"}, **tree), "tree"),
        definition(of({"type": "string", "format": "path"}), "path"),
        definition({}, "empty"),
        definition(None, "none"),
        definition({"type": "object"}, "open"),
    ]
    dialects.check(dialects.get(name), tools, compile=compiler.compile, control=CONTROL, max_tokens=256)


def test_two_tools_of_one_name(compiler: GrammarCompiler) -> None:
    """They cannot be told apart, so they are refused."""
    with pytest.raises(UsageError, match="two tools"):
        dialects.check(
            dialects.get("hermes"), [definition({}), definition({})], compile=compiler.compile, control=CONTROL
        )


@pytest.mark.parametrize(
    ("parameters", "pointer"),
    [
        (of({"type": "string", "pattern": "^a|b$"}), "/properties/x/pattern"),
        (of({"enum": ["</parameter>"]}), "/properties/x"),
        (of({"$ref": "#/properties/y"}), "/properties/x/$ref"),
        ({"type": "object", "properties": {}, "minProperties": 1}, "/minProperties"),
        ({"type": "object", "properties": {"a>b": {}}}, "/properties/a>b"),
        ({"type": "object", "properties": {}, "required": ["a"]}, "/required"),
    ],
)
def test_what_xml_cannot_tell_is_refused(parameters: dict[str, Any], pointer: str) -> None:
    """The XML form has limits of its own, told with the place."""
    if pointer == "/properties/x/$ref":
        parameters["properties"]["y"] = {"type": "integer"}
    with pytest.raises(SchemaError) as caught:
        dialects.get("xml").grammar([definition(parameters)], tool_choice="required", control=CONTROL)
    assert caught.value.pointer == pointer


KEYWORDS = {
    "not": {"type": "string"},
    "if": {"type": "string"},
    "then": {"minLength": 2},
    "else": {"minLength": 2},
    "contains": {"const": 1},
    "minContains": 1,
    "maxContains": 1,
    "uniqueItems": True,
    "dependentRequired": {"a": ["b"]},
    "dependentSchemas": {"a": {"required": ["b"]}},
    "dependencies": {"a": ["b"]},
    "propertyNames": {"pattern": "^a"},
    "unevaluatedProperties": False,
    "unevaluatedItems": False,
    "divisibleBy": 2,
    "disallow": "string",
    "extends": {"type": "string"},
}


@pytest.mark.parametrize("keyword", KEYWORDS)
def test_a_keyword_is_enforced_or_refused(compiler: GrammarCompiler, keyword: str) -> None:
    """What the grammar cannot hold is refused by its pointer when an agent is built; nothing is dropped silently."""
    with pytest.raises(SchemaError) as caught:
        dialects.check(
            dialects.get("hermes"), [], of({keyword: KEYWORDS[keyword]}), compile=compiler.compile, control=CONTROL
        )
    assert caught.value.pointer == f"/properties/x/{keyword}"


@pytest.mark.parametrize(
    ("schema", "good", "bad"),
    [
        ({"minProperties": 2}, '{"a": 1, "b": 2}', '{"a": 1}'),
        ({"type": "object", "maxProperties": 1}, '{"a": 1}', '{"a": 1, "b": 2}'),
        ({"allOf": [{"minProperties": 1}]}, '{"a": 1}', "{}"),
        ({"anyOf": [{"type": "object", "minProperties": 1}]}, '{"a": 1}', "{}"),
        ({"multipleOf": 2}, "2", "3"),
        ({"minItems": 2}, "[1, 2]", "[1]"),
        ({"minLength": 2}, '"ab"', '"a"'),
        ({"minimum": 3}, "3", "2"),
        ({"required": ["a"]}, '{"a": 1}', "{}"),
    ],
)
def test_a_keyword_holds_without_its_type(compiler: GrammarCompiler, schema: dict, good: str, bad: str) -> None:
    """A keyword binds the values of its type, whether the schema names the type or not."""
    import llguidance

    text = dialects.get("hermes").grammar([], output_schema=schema, control=CONTROL)
    assert text is not None
    tokenizer = llguidance.LLTokenizer(tiny_tokenizer())
    for value, fits in ((good, True), (bad, False)):
        matcher = llguidance.LLMatcher(tokenizer, llguidance.LLMatcher.grammar_from_lark(text), log_level=0)
        assert not matcher.is_error(), matcher.get_error()
        taken = matcher.try_consume_tokens(tokenizer.tokenize_str(value))
        assert (taken == len(tokenizer.tokenize_str(value)) and matcher.is_accepting()) == fits, value


def test_prepared_leaves_the_users_schema_alone() -> None:
    """The compiler's copy bounds integers and drops unknown formats; the original keeps its values."""
    schema = of(
        {"anyOf": [{"type": "integer"}, {"type": "string", "format": "path"}, {"type": "integer", "minimum": 1}]}
    )
    before = json.dumps(schema)
    arms = prepared(schema, digits=3)["properties"]["x"]["anyOf"]
    assert json.dumps(schema) == before
    assert arms[0] == {"type": "integer", "minimum": -999, "maximum": 999}
    assert arms[1] == {"type": "string"}
    assert arms[2] == {"type": "integer", "minimum": 1, "maximum": 999}


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(
                [
                    "type",
                    "properties",
                    "items",
                    "$ref",
                    "anyOf",
                    "allOf",
                    "enum",
                    "required",
                    "pattern",
                    "$defs",
                    "x",
                    "const",
                ]
            )
            | st.text(max_size=4),
            inner,
            max_size=5,
        )
    ),
    max_leaves=25,
)


@settings(max_examples=400, deadline=None)
@given(JSON)
def test_any_json_is_taken_or_refused(schema: Any) -> None:
    """Whatever stands for a schema, the check ends with it or with a pointer that begins at its root."""
    try:
        nodes = checked(schema, where="it")
    except SchemaError as error:
        assert error.pointer == "" or error.pointer.startswith("/")  # noqa: PT017  # either end is right
    else:
        assert nodes[0] == ("", schema)
        assert isinstance(prepared(schema), dict)
        for pointer, node in nodes:
            assert resolved(schema, "#" + pointer) is node or node == resolved(
                schema, "#" + pointer.replace("%", "%25")
            )


@pytest.mark.parametrize(
    "pattern",
    [
        r"^[a-z]+$",
        r"^\d{3}-\d{4}$",
        r"(x+x+)+y",
        r"[0-9a-f]{8}",
        r"^(red|green)$",
        r"a\.b\/c",
        r"^[^a-c]{2,}\x41\u0042$",
        r"(?:ab)?c{2}|z{9}",
        r"^\S+@\S+\.\w+$",
        r"[\d\-]+?x",
    ],
)
def test_samples_match_their_pattern(pattern: str) -> None:
    """The sample of a common pattern is found by Python's own engine."""
    text = sample(pattern)
    assert text is not None
    assert re.search(pattern, text)


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet="ab01()[]{}|*+?^$.\\-,:=!x", max_size=20))
def test_any_pattern_has_a_sample_or_none(pattern: str) -> None:
    """No pattern, however broken, is more than None."""
    assert sample(pattern) is None or isinstance(sample(pattern), str)
