"""JSON schemas as the grammar's compiler gets them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qwen_agent_kit.dialects.schema import LISTS, MAPS, SINGLE

__all__ = ["ENFORCED", "prepared"]

ENFORCED = frozenset({"date", "date-time", "duration", "email", "hostname", "ipv4", "ipv6", "time", "uri", "uuid"})
"""The formats that the compiler knows."""


def prepared(schema: Any, *, digits: int | None = 18, spaced: bool = False) -> Any:
    """The schema as the compiler gets it.

    Args:
        schema: One that passed ``checked``.
        digits: Integers without bounds get at most this many digits, so that no number goes on for ever; None keeps
            them unbounded.
        spaced: Whether any JSON whitespace is allowed. Otherwise values are written as ``json.dumps`` does, so that
            most structure is forced and white space cannot go on for ever.

    Returns:
        A new schema, with ``x-guidance`` (https://github.com/guidance-ai/llguidance docs/json_schema.md).
    """
    if not isinstance(schema, Mapping):
        schema = {} if schema else {"not": {}}
    made = _settled(schema, digits)
    style: dict[str, Any] = {"whitespace_flexible": True}
    if not spaced:
        style = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
    return {**made, "x-guidance": style}


def _settled(node: Any, digits: int | None) -> Any:
    """A copy in which integers have bounds and formats are known. Recursion is as deep as ``checked`` allows."""
    if not isinstance(node, Mapping):
        return node
    made = dict(node)
    for key in MAPS:
        if isinstance(made.get(key), Mapping):
            made[key] = {name: _settled(child, digits) for name, child in made[key].items()}
    for key in (*LISTS, *SINGLE):
        if isinstance(made.get(key), list):
            made[key] = [_settled(child, digits) for child in made[key]]
        elif isinstance(made.get(key), Mapping):
            made[key] = _settled(made[key], digits)
    if made.get("format") not in ENFORCED:
        made.pop(
            "format", None
        )  # an annotation to every validator that does not know it (draft 2020-12, section 7.2.2)
    if digits is not None:
        _bound(made, digits)
    return made


def _bound(made: dict[str, Any], digits: int) -> None:
    kinds = made.get("type")
    kinds = kinds if isinstance(kinds, list) else [kinds]
    if "integer" in kinds and "number" not in kinds and not {"enum", "const", "multipleOf"} & made.keys():
        top = 10**digits - 1
        if "maximum" not in made and "exclusiveMaximum" not in made and _below(made, top):
            made["maximum"] = top
        if "minimum" not in made and "exclusiveMinimum" not in made and _above(made, -top):
            made["minimum"] = -top


def _below(node: Mapping[str, Any], top: int) -> bool:
    bounds = [node.get("minimum", 0), node.get("exclusiveMinimum", 0)]
    return all(isinstance(bound, int | float) and bound < top for bound in bounds)


def _above(node: Mapping[str, Any], bottom: int) -> bool:
    bounds = [node.get("maximum", 0), node.get("exclusiveMaximum", 0)]
    return all(isinstance(bound, int | float) and bound > bottom for bound in bounds)
