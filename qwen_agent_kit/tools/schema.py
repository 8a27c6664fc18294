"""JSON schemas: those that are given by hand are checked, those that come from Python types are made small and plain.

Draft 2020-12.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qwen_agent_kit.errors import OutputError, SchemaError, UsageError
from qwen_agent_kit.tools.checking import problems_of_schema, schema_validator
from qwen_agent_kit.tools.validation import Problem, listing, problems_of_pydantic, shorten

__all__ = ["OutputType", "check_schema", "output_type", "plain_schema"]

MAX_DEPTH = 200
"""JSON levels; an object inside an object takes two."""
MAX_NODES = 200_000
MAX_PATTERN = 10_000
TYPES = ("array", "boolean", "integer", "null", "number", "object", "string")

_MAPS = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
_LISTS = ("allOf", "anyOf", "oneOf", "prefixItems")
_ONES = (
    "additionalItems",
    "additionalProperties",
    "contains",
    "else",
    "if",
    "items",
    "not",
    "propertyNames",
    "then",
    "unevaluatedItems",
    "unevaluatedProperties",
)
_IN_PLACE = ("allOf", "anyOf", "oneOf", "not", "if", "then", "else")
"""Keywords whose subschemas look at the same value: a ``$ref`` cycle through these alone never ends."""
_NUMBERS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf")
_COUNTS = (
    "minLength",
    "maxLength",
    "minItems",
    "maxItems",
    "minProperties",
    "maxProperties",
    "minContains",
    "maxContains",
)
_UNSUPPORTED = ("$dynamicRef", "$recursiveRef")


# --- schemas given by hand ----------------------------------------------------------------------------------------


def check_schema(schema: Any, *, what: str) -> None:
    """Refuse a JSON schema that could not be served: quickly, without the network, whatever is in it.

    Args:
        schema: JSON data.
        what: What the schema is of, for the message, such as "the parameters of tool `f`".

    Raises:
        SchemaError: ``pointer`` says where. Refused are: what is not JSON data, more than ``MAX_DEPTH`` levels or
            ``MAX_NODES`` values, NUL and lone surrogates, unknown types, keywords of the wrong kind, patterns
            that do not compile or need look-around or back-references, and references that are remote, dangling or
            circular.
    """
    if not isinstance(schema, Mapping):
        raise SchemaError(f"{what}: the schema is {shorten(repr(type(schema).__name__), 60)}; allowed: an object")
    _check_json(schema, what)
    _Check(schema, what).run()


def _check_json(schema: Any, what: str) -> None:
    stack: list[tuple[Any, str, int]] = [(schema, "", 0)]
    nodes = 0
    while stack:
        value, pointer, depth = stack.pop()
        nodes += 1
        if depth > MAX_DEPTH:
            raise SchemaError(f"{what}: nested more than {MAX_DEPTH} levels deep", pointer=_short(pointer))
        if nodes > MAX_NODES:
            raise SchemaError(f"{what}: more than {MAX_NODES} values", pointer=_short(pointer))
        if isinstance(value, Mapping):
            for key, inner in value.items():
                if not isinstance(key, str):
                    raise SchemaError(f"{what}: the key {key!r} is no string", pointer=pointer)
                _check_text(key, pointer, what)
                stack.append((inner, f"{pointer}/{_escape(key)}", depth + 1))
        elif isinstance(value, list | tuple):
            stack += [(inner, f"{pointer}/{index}", depth + 1) for index, inner in enumerate(value)]
        elif isinstance(value, str):
            _check_text(value, pointer, what)
        elif isinstance(value, float) and not math.isfinite(value):
            raise SchemaError(f"{what}: {value!r} is no JSON number", pointer=pointer)
        elif value is not None and not isinstance(value, bool | int | float):
            raise SchemaError(f"{what}: a value of type {type(value).__name__!r} is no JSON data", pointer=pointer)


def _check_text(text: str, pointer: str, what: str) -> None:
    if "\0" in text:
        raise SchemaError(f"{what}: a string holds NUL", pointer=pointer)
    try:
        text.encode()
    except UnicodeEncodeError:
        raise SchemaError(f"{what}: a string holds half a surrogate pair", pointer=pointer) from None


class _Check:
    """One walk over the keywords of a schema whose JSON is known to be sound."""

    def __init__(self, schema: Mapping[str, Any], what: str) -> None:
        self.root = schema
        self.what = what
        self.edges: dict[str, list[str]] = {}

    def run(self) -> None:
        todo: list[tuple[Any, str]] = [(self.root, "")]
        while todo:
            schema, pointer = todo.pop()
            if pointer not in self.edges:
                self.edges[pointer] = []
                todo += self._visit(schema, pointer)
        self._refuse_cycles()

    def _refuse(self, pointer: str, found: Any, allowed: str, hint: str | None = None) -> SchemaError:
        text = shorten(repr(found), 80)
        message = f"{self.what}: `{_short(pointer) or '/'}` is {text}; allowed: {allowed}"
        return SchemaError(message, pointer=pointer, hint=hint)

    def _visit(self, schema: Any, pointer: str) -> list[tuple[Any, str]]:
        """Check one schema's own keywords and return its subschemas."""
        if isinstance(schema, bool):
            return []
        if not isinstance(schema, Mapping):
            raise self._refuse(pointer, schema, "a schema (an object, true or false)")
        self._scalars(schema, pointer)
        inner: list[tuple[Any, str]] = []
        for key, value in schema.items():
            at = f"{pointer}/{_escape(key)}"
            if key in _MAPS:
                inner += self._members(value, at)
                if key == "patternProperties":
                    for pattern in value:
                        self._pattern(pattern, f"{at}/{_escape(pattern)}")
            elif key in _LISTS or (key == "items" and isinstance(value, list | tuple)):
                if not isinstance(value, list | tuple) or not value:
                    raise self._refuse(at, value, "a list of schemas, not empty")
                inner += [(item, f"{at}/{index}") for index, item in enumerate(value)]
            elif key in _ONES:
                inner.append((value, at))
            elif key == "$ref":
                inner.append(self._target(value, at))
            if key == "$ref":
                self.edges[pointer].append(inner[-1][1])
            elif key in _IN_PLACE:
                self.edges[pointer] += [where for _, where in inner if where.startswith(at)]
        return inner

    def _members(self, value: Any, at: str) -> list[tuple[Any, str]]:
        if not isinstance(value, Mapping):
            raise self._refuse(at, value, "an object of schemas")
        return [(item, f"{at}/{_escape(name)}") for name, item in value.items()]

    def _scalars(self, schema: Mapping[str, Any], pointer: str) -> None:
        for key, value in schema.items():
            at = f"{pointer}/{_escape(key)}"
            if key == "type":
                self._type(value, at)
            elif key == "pattern":
                self._pattern(value, at)
            elif key == "enum" and (not isinstance(value, list | tuple) or not value):
                raise self._refuse(at, value, "a list of values, not empty")
            elif key == "required":
                if not isinstance(value, list | tuple) or not all(isinstance(name, str) for name in value):
                    raise self._refuse(at, value, "a list of names")
            elif key in _NUMBERS:
                low = key == "multipleOf" and not isinstance(value, bool | str) and value is not None
                if isinstance(value, bool) or not isinstance(value, int | float) or (low and value <= 0):
                    raise self._refuse(at, value, "a number above 0" if key == "multipleOf" else "a number")
            elif key in _COUNTS:
                if isinstance(value, bool) or not isinstance(value, int | float) or value < 0 or value != int(value):
                    raise self._refuse(at, value, "a whole number from 0 on")
            elif key in _UNSUPPORTED:
                raise self._refuse(at, value, '`$ref` with a local pointer, such as "#/$defs/name"')

    def _type(self, value: Any, at: str) -> None:
        several = value if isinstance(value, list | tuple) else [value]
        if not several or not all(isinstance(name, str) and name in TYPES for name in several):
            raise self._refuse(at, value, f"{', '.join(TYPES)}, or a list of these")

    def _pattern(self, pattern: Any, at: str) -> None:
        if not isinstance(pattern, str) or len(pattern) > MAX_PATTERN:
            raise self._refuse(at, pattern, f"a regular expression of at most {MAX_PATTERN} characters")
        fault = _pattern_fault(pattern)
        if fault is not None:
            hint = "say in the description what the pattern should say" if "look-around" in fault else None
            raise self._refuse(at, pattern, f"a regular expression without look-around ({fault})", hint)

    def _target(self, ref: Any, at: str) -> tuple[Any, str]:
        if not isinstance(ref, str) or not re.fullmatch(r"#(/.*)?", ref, re.DOTALL):
            raise self._refuse(at, ref, 'a local reference, such as "#/$defs/name"; nothing is fetched')
        from urllib.parse import unquote

        steps = [part.replace("~1", "/").replace("~0", "~") for part in unquote(ref[1:]).split("/")[1:]]
        here: Any = self.root
        for step in steps:
            if isinstance(here, Mapping) and step in here:
                here = here[step]
            elif isinstance(here, list | tuple) and step.isdecimal() and int(step) < len(here):
                here = here[int(step)]
            else:
                raise self._refuse(at, ref, "a reference to something that is there")
        return here, "".join(f"/{_escape(step)}" for step in steps)

    def _refuse_cycles(self) -> None:
        done: set[str] = set()
        for start in self.edges:
            path: dict[str, None] = {}
            stack: list[tuple[str, bool]] = [(start, False)]
            while stack:
                node, leaving = stack.pop()
                if leaving:
                    del path[node]
                    done.add(node)
                elif node in path:
                    raise self._refuse(node, node, "references that come to an end; this one leads back to itself")
                elif node not in done:
                    path[node] = None
                    stack.append((node, True))
                    stack += [(target, False) for target in self.edges.get(node, ())]


def _pattern_fault(pattern: str) -> str | None:
    from pydantic_core import SchemaError as CoreSchemaError
    from pydantic_core import SchemaValidator, core_schema

    try:
        SchemaValidator(core_schema.str_schema(pattern=pattern))
    except CoreSchemaError as error:
        return shorten(str(error).rpartition("error: ")[2] or "it does not compile", 120)
    return None


def _escape(key: str) -> str:
    return key.replace("~", "~0").replace("/", "~1")


def _short(pointer: str) -> str:
    return pointer if len(pointer) <= 200 else f"{pointer[:100]}…{pointer[-99:]}"


# --- schemas from Python types ------------------------------------------------------------------------------------


_LOOK = re.compile(r"\(\?<?[=!]")


def plain_schema(schema: Any) -> Any:
    """A schema made by pydantic, in keywords that every engine knows.

    Titles go; objects that do not say otherwise are closed; a union told apart by a member's value is ``anyOf``; a
    pattern with look-around (pydantic writes one for ``Decimal``) goes, and pydantic alone checks it.
    """
    if not isinstance(schema, dict):
        return schema
    plain: dict[str, Any] = {}
    for key, value in schema.items():
        if key in ("title", "discriminator") or (key == "pattern" and _LOOK.search(str(value))):
            continue
        if key == "oneOf" and "discriminator" in schema:
            key = "anyOf"
        if key in _MAPS and isinstance(value, dict):
            plain[key] = {name: plain_schema(inner) for name, inner in value.items()}
        elif key in _LISTS and isinstance(value, list):
            plain[key] = [plain_schema(inner) for inner in value]
        elif key in _ONES:
            plain[key] = plain_schema(value)
        else:
            plain[key] = value
    if "properties" in plain:
        plain.setdefault("additionalProperties", False)
    return plain


@dataclass(frozen=True, eq=False)
class OutputType:
    """What a model is asked to answer with.

    Args:
        name: For messages: the type's name, or "output".
        schema: The JSON schema of it.
        check: JSON text to the validated object, or the problems in it.
    """

    name: str
    schema: Mapping[str, Any]
    check: Callable[[str], tuple[Any, Sequence[Problem]]]

    def parse(self, text: str) -> Any:
        """The validated object that ``text`` holds, a Markdown fence around it allowed.

        Raises:
            OutputError: A few lines fit for the model to read; it names types and places, not what was found.
        """
        value, problems = self.check(_unfenced(text))
        if problems:
            raise OutputError(listing("the answer does not fit its schema", problems, reveal=False))
        return value


def output_type(value: Any) -> OutputType:
    """The output type that ``value`` describes.

    Args:
        value: A pydantic model, dataclass, TypedDict or any other annotation, or a JSON schema (a dict).

    Raises:
        SchemaError: For a schema that is refused, or a type that has none.
    """
    if isinstance(value, OutputType):
        return value
    if isinstance(value, Mapping):
        return _given_output(value)
    if value is None or isinstance(value, str | bytes | int | float | list | tuple):
        raise UsageError(
            f"the output type is {shorten(repr(value), 80)}; allowed: a type or a JSON schema",
            hint="pass a pydantic model, a dataclass, an annotation such as list[int], or a dict with a JSON schema",
        )
    return _typed_output(value)


def _given_output(schema: Mapping[str, Any]) -> OutputType:
    check_schema(schema, what="the output schema")
    own = json.loads(json.dumps(schema))
    validator = schema_validator(own)

    def check(text: str) -> tuple[Any, Sequence[Problem]]:
        try:
            data = json.loads(text, parse_constant=_no_constant)
        except (ValueError, RecursionError):
            return None, [_not_json()]
        return data, problems_of_schema(validator, data)

    return OutputType(str(schema.get("title", "output")), own, check)


def _typed_output(value: Any) -> OutputType:
    from pydantic import ValidationError

    from qwen_agent_kit.tools.annotations import adapter_of

    name = getattr(value, "__name__", "output")
    adapter, schema = adapter_of(value, what=f"the output type `{name}`")

    def check(text: str) -> tuple[Any, Sequence[Problem]]:
        try:
            return adapter.validate_json(text), ()
        except ValidationError as error:
            try:
                data = json.loads(text, parse_constant=_no_constant)
            except (ValueError, RecursionError):
                return None, [_not_json()]
            return None, problems_of_pydantic(error, data)

    return OutputType(name, schema, check)


def _unfenced(text: str) -> str:
    text = text.strip()
    match = re.fullmatch(r"```[A-Za-z]*\n(.*)\n```", text, re.DOTALL)
    return match[1] if match else text


def _no_constant(name: str) -> Any:
    raise ValueError(name)


def _not_json() -> Problem:
    return Problem("", "JSON and nothing else", "")
