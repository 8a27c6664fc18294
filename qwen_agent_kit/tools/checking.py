"""Values against JSON schemas that were given by hand.

``jsonschema`` does it, with two changes: patterns are matched by pydantic's regular expressions, which run in linear
time, in place of ``re``, which may not end; and the schemas come through ``check_schema``, so that nothing is fetched.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

from qwen_agent_kit.tools.validation import MAX_ALLOWED, MAX_FOUND, Problem, merged, path_of, shorten

__all__ = ["problems_of_schema", "schema_validator"]


def schema_validator(schema: Mapping[str, Any]) -> Any:
    """A ``jsonschema`` validator for a schema that ``check_schema`` passed."""
    from jsonschema import Draft202012Validator  # type: ignore[import-untyped]  # it ships no types
    from jsonschema.validators import extend  # type: ignore[import-untyped]  # it ships no types

    matches = _Patterns().matches

    def pattern(_: Any, wanted: str, instance: Any, __: Any) -> Iterator[Any]:
        if isinstance(instance, str) and not matches(wanted, instance):
            yield _mismatch()

    def pattern_properties(validator: Any, patterns: Mapping[str, Any], instance: Any, _: Any) -> Iterator[Any]:
        if isinstance(instance, Mapping):
            for wanted, subschema in patterns.items():
                for name in [name for name in instance if matches(wanted, name)]:
                    yield from validator.descend(instance[name], subschema, path=name, schema_path=wanted)

    def additional(validator: Any, allowed: Any, instance: Any, around: Mapping[str, Any]) -> Iterator[Any]:
        if not isinstance(instance, Mapping):
            return
        extra = _extra(instance, around, matches)
        if allowed is False and extra:
            yield _mismatch()
        elif isinstance(allowed, Mapping):
            for name in extra:
                yield from validator.descend(instance[name], allowed, path=name)

    own = {"pattern": pattern, "patternProperties": pattern_properties, "additionalProperties": additional}
    return extend(Draft202012Validator, own)(schema)


class _Patterns:
    """Compiled patterns of one schema."""

    def __init__(self) -> None:
        self._compiled: dict[str, Any] = {}

    def matches(self, pattern: str, text: str) -> bool:
        from pydantic_core import SchemaValidator, core_schema

        if pattern not in self._compiled:
            self._compiled[pattern] = SchemaValidator(core_schema.str_schema(pattern=pattern))
        return bool(self._compiled[pattern].isinstance_python(text))


def _mismatch() -> Any:
    from jsonschema.exceptions import ValidationError  # type: ignore[import-untyped]  # it ships no types

    return ValidationError("does not fit")


def _extra(instance: Mapping[str, Any], around: Mapping[str, Any], matches: Any) -> list[str]:
    known, patterns = around.get("properties", {}), around.get("patternProperties", {})
    return [name for name in instance if name not in known and not any(matches(p, name) for p in patterns)]


_LIMITS = {
    "minimum": "at least {}",
    "maximum": "at most {}",
    "exclusiveMinimum": "above {}",
    "exclusiveMaximum": "below {}",
    "multipleOf": "a multiple of {}",
    "minLength": "at least {} characters",
    "maxLength": "at most {} characters",
    "minItems": "at least {} items",
    "maxItems": "at most {} items",
    "minProperties": "at least {} members",
    "maxProperties": "at most {} members",
    "pattern": "text that matches {}",
    "const": "{}",
    "format": "text of format {}",
}


def problems_of_schema(validator: Any, data: Any) -> list[Problem]:
    """The mistakes that a ``jsonschema`` validator finds in ``data``; at most a hundred are looked for."""
    from jsonschema.exceptions import best_match

    problems: list[Problem] = []
    try:
        for error in islice(validator.iter_errors(data), 100):
            leaf = best_match([error]) or error
            path = path_of(tuple(leaf.absolute_path), data)
            problems += _of_keyword(leaf, path)
    except RecursionError:
        problems.append(Problem("", "a value that is nested less deeply", data))
    return merged(problems)


def _of_keyword(error: Any, path: str) -> list[Problem]:
    keyword, value, found = error.validator, error.validator_value, error.instance
    inside = f"{path}." if path else ""
    if keyword == "required":
        missing = [name for name in value if name not in found]
        return [Problem(f"{inside}{shorten(str(name), MAX_FOUND)}", "", kind="missing") for name in missing]
    if keyword == "additionalProperties" and value is False:
        names = shorten(", ".join(error.schema.get("properties", {})) or "none", MAX_ALLOWED)
        extra = _extra(found, error.schema, _Patterns().matches)
        return [Problem(f"{inside}{shorten(str(name), MAX_FOUND)}", names, kind="extra") for name in extra]
    if keyword == "type":
        types = [value] if isinstance(value, str) else value
        return [Problem(path, " or ".join(types), found)]
    if keyword == "enum":
        return [
            Problem(path, shorten(", ".join(json.dumps(v, ensure_ascii=False) for v in value[:50]), MAX_ALLOWED), found)
        ]
    if keyword in _LIMITS:
        return [
            Problem(path, shorten(_LIMITS[keyword].format(json.dumps(value, ensure_ascii=False)), MAX_ALLOWED), found)
        ]
    return [Problem(path, f"what `{keyword}` of the schema says", found)]
