"""JSON schemas that are given by hand, checked: quickly, without the network, whatever is in them. Draft 2020-12.

Also the bounds within which a compiler of grammars can follow one: it goes down on its stack, and takes each list's
``items`` twice.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from qwen_agent_kit.errors import SchemaError
from qwen_agent_kit.tools.validation import shorten

__all__ = ["LISTS", "MAPS", "ONES", "check_schema"]

MAX_DEPTH = 200
"""JSON levels; an object inside an object takes two."""
MAX_NODES = 200_000
MAX_PATTERN = 10_000
MAX_CHAIN = 64
"""References that follow on each other for one value; compilers of grammars follow them on their stack."""
MAX_LOOKS = 10_000
"""Schemas that look at one value, each time that a reference or combination leads to one counted."""
MAX_LEVELS = 8_000
"""Levels along any way through references, which compilers of grammars go down on their stack."""
MAX_GROWN = 20_000
"""Copies of schemas that compilers of grammars make, who take each list's ``items`` twice: 13 lists in one another."""
TYPES = ("array", "boolean", "integer", "null", "number", "object", "string")

MAPS = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
LISTS = ("allOf", "anyOf", "oneOf", "prefixItems")
ONES = (
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


@dataclass(frozen=True, slots=True)
class _Place:
    """A schema inside another: where it lies, which definition owns it, and how the way there counts."""

    schema: Any
    pointer: str
    owner: str
    level: int = 0
    times: int = 1
    key: str = ""

    def inside(self, schema: Any, at: str) -> _Place:
        """What lies inside it, or what it refers to."""
        if not at.startswith(f"{self.pointer}/"):
            return _Place(schema, at, at)
        key = at[len(self.pointer) + 1 :].partition("/")[0]
        times = self.times * (2 if key == "items" else 1)
        return _Place(schema, at, self.owner, self.level + 1, times, key)


class _Check:
    """One walk over the keywords of a schema whose JSON is known to be sound."""

    def __init__(self, schema: Mapping[str, Any], what: str) -> None:
        self.root = schema
        self.what = what
        self.edges: dict[str, list[str]] = {}
        self.owners: dict[str, str] = {}
        self.deepest: dict[str, int] = {}
        self.targets: set[str] = set()

    def run(self) -> None:
        todo, later = [_Place(self.root, "", "")], list[_Place]()
        grown = 0
        while todo or later:
            place = (todo or later).pop()
            if place.pointer in self.edges:
                continue
            self.edges[place.pointer], self.owners[place.pointer] = [], place.owner
            self.deepest[place.owner] = max(place.level, self.deepest.get(place.owner, 0))
            grown += place.times - 1
            if grown > MAX_GROWN:
                raise self._refuse(place.pointer, place.pointer, "fewer lists in one another")
            for inner, at in self._visit(place.schema, place.pointer):
                found = place.inside(inner, at)
                # What is defined is looked at where it is referred to, and where nothing does, last.
                (later if found.key in ("$defs", "definitions") else todo).append(found)
                self.targets.update({at} if found.owner == at else ())
        self._bound_looks()
        self._bound_levels()

    def _bound_levels(self) -> None:
        """No way through references is deep: each definition on it once, each part that is referred to again once."""
        again = Counter(self.owners[target] for target in self.targets if self.owners[target] != target)
        levels = sum((most + 1) * (1 + again[owner]) for owner, most in self.deepest.items())
        if levels > MAX_LEVELS:
            allowed = f"definitions that come to at most {MAX_LEVELS} levels together; these have {levels}"
            raise self._refuse("", "the schema", allowed)

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
            if key in MAPS:
                inner += self._members(value, at)
                if key == "patternProperties":
                    for pattern in value:
                        self._pattern(pattern, f"{at}/{_escape(pattern)}")
            elif key in LISTS or (key == "items" and isinstance(value, list | tuple)):
                if not isinstance(value, list | tuple) or not value:
                    raise self._refuse(at, value, "a list of schemas, not empty")
                inner += [(item, f"{at}/{index}") for index, item in enumerate(value)]
            elif key in ONES:
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

    def _bound_looks(self) -> None:
        """Of the schemas that look at one value: no cycle, no long chain, and not many of them."""
        done: dict[str, tuple[int, int]] = {}  # the longest chain from here on, and how many schemas look
        for start in self.edges:
            path: dict[str, None] = {}
            stack: list[tuple[str, bool]] = [(start, False)]
            while stack:
                node, leaving = stack.pop()
                if leaving:
                    del path[node]
                    after = [done[target] for target in self.edges.get(node, ())]
                    chain = 1 + max((chain for chain, _ in after), default=0)
                    done[node] = self._bounded(node, chain, 1 + sum(looks for _, looks in after))
                elif node in path:
                    raise self._refuse(node, node, "references that come to an end; this one leads back to itself")
                elif node not in done:
                    path[node] = None
                    stack.append((node, True))
                    stack += [(target, False) for target in self.edges.get(node, ())]

    def _bounded(self, node: str, chain: int, looks: int) -> tuple[int, int]:
        if chain > MAX_CHAIN:
            raise self._refuse(node, node, f"at most {MAX_CHAIN} references and combinations that follow on each other")
        if looks > MAX_LOOKS:
            raise self._refuse(node, node, f"at most {MAX_LOOKS} schemas that look at one value")
        return chain, looks


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
