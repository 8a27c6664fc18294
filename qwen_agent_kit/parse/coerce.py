"""The text of an XML parameter becomes the JSON value that the tool's schema asks for.

The rules are those on which ollama (``model/parsers/qwen3coder.go``), vLLM and sglang agree: the most specific type
that the text can have wins, and text that fits none stays a string, which validation then reports to the model.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from qwen_agent_kit.parse.body import strict_json

__all__ = ["coerce", "kinds"]

MAX_DEPTH = 32
MAX_DIGITS = 4000
"""Python refuses to read longer whole numbers."""

_ALIASES = {
    "str": "string",
    "int": "integer",
    "float": "number",
    "double": "number",
    "bool": "boolean",
    "list": "array",
    "dict": "object",
}
_WHOLE = re.compile(r"[+-]?[0-9]+")
_REAL = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
_JSON_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?")


def kinds(schema: Any, root: Mapping[str, Any] | None = None) -> frozenset[str]:
    """The JSON types that a schema admits; empty where it names none.

    Args:
        schema: Of one parameter.
        root: The schema that local references (``#/$defs/...``) start from.
    """
    return frozenset(_kinds(schema, root or {}, MAX_DEPTH, set()))


def _kinds(schema: Any, root: Mapping[str, Any], depth: int, followed: set[str]) -> Iterator[str]:
    if not isinstance(schema, Mapping) or depth == 0:
        return
    named = schema.get("type")
    for kind in (named,) if isinstance(named, str) else named if isinstance(named, Sequence) else ():
        if isinstance(kind, str):
            yield _ALIASES.get(kind, kind)
    for word in ("anyOf", "oneOf", "allOf"):
        options = schema.get(word)
        for option in options if isinstance(options, Sequence) else ():
            yield from _kinds(option, root, depth - 1, followed)
    reference = schema.get("$ref")
    if isinstance(reference, str) and reference not in followed:
        followed.add(reference)
        yield from _kinds(_target(reference, root), root, depth - 1, followed)
    if named is None and isinstance(schema.get("enum"), Sequence):
        yield from map(_kind_of, schema["enum"])
    if named is None and "const" in schema:
        yield _kind_of(schema["const"])


def _target(reference: str, root: Mapping[str, Any]) -> Any:
    found: Any = root
    for step in reference.removeprefix("#").split("/")[1:]:
        found = found.get(step.replace("~1", "/").replace("~0", "~")) if isinstance(found, Mapping) else None
    return found


def _kind_of(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return "null" if value is None else "boolean"
    for kind, name in ((str, "string"), (int, "integer"), (float, "number"), (Mapping, "object")):
        if isinstance(value, kind):
            return name
    return "array"


def coerce(text: str, admitted: frozenset[str]) -> Any:
    """The value of ``text`` as one of the ``admitted`` JSON types, or ``text`` itself where none fits."""
    if admitted <= {"string"}:
        return text
    word = text.strip()
    if word.lower() == "null" and ("null" in admitted or "string" not in admitted):
        return None
    if "boolean" in admitted and word.lower() in ("true", "false"):
        return word.lower() == "true"
    if admitted & {"integer", "number"}:
        number = _number(word, admitted)
        if number is not None:
            return number
    if admitted & {"array", "object"} and word[:1] in ("[", "{"):
        try:
            return strict_json(word)
        except ValueError:
            return text
    return text


def _number(word: str, admitted: frozenset[str]) -> int | float | None:
    if len(word) > MAX_DIGITS or ("string" in admitted and not _JSON_NUMBER.fullmatch(word)):
        return None  # beside strings, `007` and `+1` are rather a code or a dial prefix than a number
    if _WHOLE.fullmatch(word):
        return int(word)
    if "number" in admitted and _REAL.fullmatch(word) and math.isfinite(float(word)):
        return float(word)
    return None
