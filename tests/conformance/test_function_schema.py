"""Function to tool definition: cases of openai-agents, transformers, smolagents and pydantic-ai (file 05).

Conventions differ per library, so names, types, required and descriptions are compared. What is not compared, or is
compared in another way, and why:

* ``*args`` and ``**kwargs`` have a schema in openai-agents; here they are refused with a hint (design section 3).
* openai-agents' strict mode lists parameters with a default as required; ours are those without one.
* transformers and smolagents refuse a function whose docstring leaves a parameter out; ``@tool`` takes it, and
  ``check_tools`` refuses it.
* transformers cannot write tuples of one or of any length and refuses them; they have a schema here.
* pydantic-ai wraps what a function returns into its description; here it is left out.
* titles, ``additionalProperties``, ``nullable``, key order and the return type are not compared.
"""

from __future__ import annotations

from typing import Any

import pytest
from cases import load

from qwen_agent_kit.errors import SchemaError, UsageError
from qwen_agent_kit.testing.tools import check_tools
from qwen_agent_kit.tools import Tool, ToolContext, check_schema, tool
from qwen_agent_kit.tools.checking import problems_of_schema, schema_validator
from qwen_agent_kit.tools.docstrings import read_docstring

CASES = load("05_function_schema.jsonl")


class RunContextWrapper(ToolContext):
    """Stands for the context types of the other libraries: a context parameter is never in the schema."""

    def __class_getitem__(cls, item: Any) -> type[RunContextWrapper]:
        return cls


def _function(case: dict[str, Any]) -> Any:
    """The case's function. The prelude uses names of the upstream test module, which are given here."""
    scope: dict[str, Any] = dict.fromkeys(("RunContextWrapper", "ToolContext", "RunContext"), RunContextWrapper)
    exec(compile(case["module_prelude"], "<prelude>", "exec", dont_inherit=True), scope)
    for name, kind in (("_ELEMENTWISE_DEFAULT", "_ElementwiseEqual"), ("_ALWAYS_EQUAL_DEFAULT", "_AlwaysEqual")):
        if kind in scope:
            scope[name] = scope[kind]()
    exec(compile(case["function_source"], "<case>", "exec", dont_inherit=True), scope)
    return scope[case["function_name"]]


def _kind(case: dict[str, Any]) -> str:
    if case["kind"] == "full_schema" and _is_variadic(case):
        return "variadic"
    return str(case["kind"])


def _code(function: Any) -> Any:
    return getattr(function, "__func__", function).__code__


def _is_variadic(case: dict[str, Any]) -> bool:
    code = _code(_function(case))
    return bool(code.co_flags & (0x04 | 0x08))


def _of(kind: str) -> list[Any]:
    return [pytest.param(case, id=case["id"].split("::")[-1]) for case in CASES if _kind(case) == kind]


def _types(schema: dict[str, Any], defs: dict[str, Any]) -> Any:
    """The types of a schema in one normal form: a set of names, with arrays and objects followed inside."""
    if "$ref" in schema:
        return _types(defs[schema["$ref"].rpartition("/")[2]], defs)
    if "allOf" in schema and len(schema["allOf"]) == 1:
        return _types(schema["allOf"][0], defs)
    found: set[Any] = set()
    for union in ("anyOf", "oneOf"):
        for member in schema.get(union, ()):
            found |= _types(member, defs)
    for name in _names(schema):
        if name == "array":
            found.add(("array", frozenset(_types(schema.get("items", {}), defs))))
        elif name == "object" and "properties" in schema:
            members = ((key, frozenset(_types(inner, defs))) for key, inner in schema["properties"].items())
            found.add(("object", frozenset(members)))
        elif name == "object":
            rest = schema.get("additionalProperties")
            found.add(("object", frozenset(_types(rest, defs)) if isinstance(rest, dict) else frozenset()))
        else:
            found.add(name)
    if schema.get("nullable"):
        found.add("null")
    return found


def _names(schema: dict[str, Any]) -> list[str]:
    if "type" in schema:
        return [schema["type"]] if isinstance(schema["type"], str) else list(schema["type"])
    values = schema.get("enum", [schema["const"]] if "const" in schema else [])
    kinds = {str: "string", bool: "boolean", int: "integer", float: "number", type(None): "null"}
    return sorted({kinds[type(value)] for value in values})


_CONSTRAINTS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "minLength", "maxLength", "pattern")


def _options(case: dict[str, Any]) -> dict[str, Any]:
    given = case["call_kwargs"]
    return {"name": eval(given["name_override"])} if "name_override" in given else {}


def _required(expected: dict[str, Any], strict: bool) -> set[str]:
    names = set(expected.get("required", ()))
    return {name for name in names if not (strict and "default" in expected["properties"][name])}


@pytest.mark.parametrize("case", _of("full_schema"))
def test_definition_equals_the_upstream_one(case: dict[str, Any]) -> None:
    """Names, types, constraints, required parameters and descriptions are those of the library the case is from."""
    made: Tool = tool(**_options(case))(_function(case)) if _options(case) else tool(_function(case))
    expected = case["expected"]
    ours, theirs = made.parameters, expected["parameters"]
    assert made.name == expected["name"]
    assert list(ours["properties"]) == list(theirs["properties"])
    assert set(ours.get("required", ())) == _required(theirs, bool(expected.get("strict")))
    documented = case["call_kwargs"].get("use_docstring_info") != "False"
    if documented and "<returns>" not in (expected["description"] or ""):
        assert " ".join(made.description.split()) == " ".join((expected["description"] or "").split())
    for name, wanted in theirs["properties"].items():
        found = ours["properties"][name]
        assert _types(found, ours.get("$defs", {})) == _types(wanted, theirs.get("$defs", {})), name
        assert found.get("enum") == wanted.get("enum") or "anyOf" in found, name
        for constraint in _CONSTRAINTS:
            assert found.get(constraint) == wanted.get(constraint), (name, constraint)
        if documented or "description" in wanted:
            assert found.get("description") == wanted.get("description"), name


@pytest.mark.parametrize("case", _of("docstring"))
def test_docstring_reads_as_upstream(case: dict[str, Any]) -> None:
    """The description and those of the parameters come out of the docstring as in the library the case is from."""
    function = _function(case)
    expected, found = case["expected"], read_docstring(function.__doc__)
    assert function.__name__ == expected["name"]
    assert found.description == (expected["description"] or "")
    assert dict(found.parameters) == (expected["param_descriptions"] or {})


@pytest.mark.parametrize("case", _of("docstring"))
def test_context_and_self_stay_out_of_the_schema(case: dict[str, Any]) -> None:
    """A context parameter and `self` are not offered to the model; every other parameter is."""
    function = _function(case)
    code = _code(function)
    if _is_variadic(case):
        with pytest.raises(SchemaError, match="no fixed shape"):
            tool(function)
        return
    names = [name for name in code.co_varnames[: code.co_argcount] if name not in ("self", "ctx")]
    made = tool(function)
    assert list(made.parameters["properties"]) == names
    assert made.unbound == ("self" in code.co_varnames[:1])


@pytest.mark.parametrize("case", _of("variadic"))
def test_variadic_functions_are_refused(case: dict[str, Any]) -> None:
    """`*args` and `**kwargs` are refused at once, with the cure; upstream gives them a schema."""
    with pytest.raises(SchemaError, match="no fixed shape") as caught:
        tool(_function(case))
    assert caught.value.hint


@pytest.mark.parametrize("case", _of("must_raise"))
def test_what_upstream_refuses_is_refused(case: dict[str, Any]) -> None:
    """What the other library refuses, `@tool` refuses or `check_tools` does."""
    if "tuple[" in case["function_source"]:
        assert tool(_function(case)).parameters["type"] == "object"
        return
    with pytest.raises((UsageError, AssertionError)):
        check_tools(tool(_function(case)))


@pytest.mark.parametrize("name", ["04a_json_schema_test_suite.jsonl", "04b_maskbench_sample.jsonl"])
def test_values_are_judged_as_the_suites_say(name: str) -> None:
    """Against a schema given by hand, a value is valid where the suite says so.

    Not judged are schemas that `check_schema` refuses (references that are remote or by anchor), and instances about
    which the suite and python's jsonschema differ (formats, which are not asserted).
    """
    judged = refused = 0
    wrong = []
    for case in load(name):
        schema = case["schema"]
        try:
            check_schema({"anyOf": [schema]} if isinstance(schema, bool) else schema, what="it")
        except SchemaError:
            refused += 1
            assert "$ref" in str(schema) or "$dynamicRef" in str(schema)
            continue
        validator = schema_validator(schema)
        for instance in case["tests"]:
            if instance.get("python_jsonschema_agrees", True):
                judged += 1
                if (problems_of_schema(validator, instance["data"]) == []) != instance["valid"]:
                    wrong.append((case["id"], instance))
    assert wrong == []
    assert refused <= 0.15 * len(load(name))
    assert judged >= 300


def test_every_case_is_run() -> None:
    """No case is left out: each has a kind that a test above takes."""
    kinds = [_kind(case) for case in CASES]
    assert len(kinds) == len(CASES) >= 31
    assert set(kinds) <= {"full_schema", "docstring", "variadic", "must_raise"}
    described = [c for c in CASES if _kind(c) == "full_schema" and "<returns>" in (c["expected"]["description"] or "")]
    if len(CASES) == 31:
        assert [kinds.count(kind) for kind in ("full_schema", "docstring", "variadic", "must_raise")] == [15, 12, 3, 1]
        assert len(described) == 1, "descriptions that are not compared"
