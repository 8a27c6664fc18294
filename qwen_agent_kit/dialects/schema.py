"""JSON schemas on their way into a grammar: what is refused at once.

Everything here reads the schema without a compiler, a network or recursion in Python, so that a hostile schema is
refused in milliseconds with a JSON pointer (RFC 6901). What only the compiler can know is found by ``locate``.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from qwen_agent_kit.errors import SchemaError

__all__ = [
    "LISTS",
    "MAPS",
    "MAX_DEPTH",
    "MAX_ENUM",
    "MAX_SIZE",
    "SINGLE",
    "checked",
    "children",
    "escape",
    "longest_close",
    "resolved",
]

MAX_DEPTH = 100
"""Containers inside each other; the compiler's own JSON reader stops at 128."""

MAX_ENUM = 8192
"""Values of all ``enum`` lists together."""

MAX_SIZE = 1 << 20
"""Characters of the schema as JSON text."""

TYPES = frozenset({"array", "boolean", "integer", "null", "number", "object", "string"})

MAPS = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
LISTS = ("anyOf", "allOf", "oneOf", "prefixItems", "items")
SINGLE = (
    "items",
    "additionalItems",
    "additionalProperties",
    "propertyNames",
    "contains",
    "not",
    "if",
    "then",
    "else",
    "unevaluatedItems",
    "unevaluatedProperties",
)
_SAME_INSTANCE = ("allOf", "anyOf", "oneOf")
_METASCHEMA = re.compile(r"https?://json-schema\.org/")  # the compiler carries these
_IGNORED = ("$dynamicRef", "$recursiveRef", "extends", "disallow", "divisibleBy")  # compiled as if they said nothing


def escape(key: str) -> str:
    """A key as one segment of a JSON pointer."""
    return key.replace("~", "~0").replace("/", "~1")


def children(node: Any) -> Iterator[tuple[str, Any]]:
    """The schemas directly inside a schema, each with its pointer from there."""
    if not isinstance(node, Mapping):
        return
    for key in MAPS:
        if isinstance(node.get(key), Mapping):
            for name, child in node[key].items():
                yield f"/{escape(key)}/{escape(str(name))}", child
    for key in LISTS:
        if isinstance(node.get(key), list):
            for index, child in enumerate(node[key]):
                yield f"/{key}/{index}", child
    for key in SINGLE:
        if key in node and not isinstance(node[key], list):
            yield f"/{key}", node[key]


def resolved(root: Any, ref: str) -> Any:
    """What a local ``#`` or ``#/...`` reference points at; KeyError where there is nothing."""
    node = root
    for part in ref[1:].split("/")[1:]:
        key = _unquoted(part).replace("~1", "/").replace("~0", "~")
        if isinstance(node, Mapping) and key in node:
            node = node[key]
        elif isinstance(node, list) and key.isdigit() and int(key) < len(node):
            node = node[int(key)]
        else:
            raise KeyError(ref)
    return node


def _unquoted(part: str) -> str:
    from urllib.parse import unquote

    return unquote(part)


def checked(schema: Any, *, where: str) -> list[tuple[str, Any]]:
    """All schemas inside ``schema``, itself first, with their pointers.

    Args:
        schema: A JSON schema.
        where: Whose it is, for the message: ``tool 'f'`` or ``the output schema``.

    Raises:
        SchemaError: Where it is not well formed, too deep or too large, has no finite value, or refers to nothing.
    """
    _bounded(schema, where)
    nodes: list[tuple[str, Any]] = []
    stack: list[tuple[str, Any]] = [("", schema)]
    budget = MAX_ENUM
    while stack:
        pointer, node = stack.pop()
        nodes.append((pointer, node))
        budget = _well_formed(node, pointer, where, budget)
        stack.extend((pointer + step, child) for step, child in reversed(list(children(node))))
    for pointer, node in nodes:
        _references(schema, node, pointer, where)
    if math.isinf(_costs(schema, nodes)[id(schema)]):
        raise SchemaError(f"{where}: no finite value fulfils the schema", pointer=_endless(schema, nodes))
    return nodes


def _bounded(schema: Any, where: str) -> None:
    """Refuse what is nested too deep or too large, without recursion."""
    stack: list[tuple[str, Any, int]] = [("", schema, 0)]
    seen = 0
    while stack:
        pointer, node, depth = stack.pop()
        seen += len(node) if isinstance(node, str) else 8
        if seen > MAX_SIZE:
            raise SchemaError(f"{where}: the schema is larger than {MAX_SIZE} characters", pointer=_cut(pointer))
        if depth > MAX_DEPTH:
            raise SchemaError(f"{where}: the schema is nested deeper than {MAX_DEPTH}", pointer=_cut(pointer))
        if isinstance(node, Mapping):
            for key, child in node.items():
                if not isinstance(key, str):
                    raise SchemaError(f"{where}: key {key!r} is no string", pointer=_cut(pointer))
                stack.append((f"{pointer}/{escape(key)}", child, depth + 1))
        elif isinstance(node, list | tuple):
            stack.extend((f"{pointer}/{index}", child, depth + 1) for index, child in enumerate(node))
        elif isinstance(node, float) and not math.isfinite(node):
            raise SchemaError(f"{where}: {node!r} is not JSON", pointer=_cut(pointer))
        elif node is not None and not isinstance(node, str | bool | int | float):
            raise SchemaError(f"{where}: {type(node).__name__} is not JSON", pointer=_cut(pointer))


def _cut(pointer: str) -> str:
    """A pointer of bounded length: its first hundred segments."""
    return "/".join(pointer.split("/", MAX_DEPTH + 2)[: MAX_DEPTH + 2])


def _well_formed(node: Any, pointer: str, where: str, budget: int) -> int:
    """Check one schema's own keywords; the enum values that may still come."""

    def refuse(key: str, message: str) -> None:
        raise SchemaError(f"{where}: {message}", pointer=f"{pointer}/{key}" if key else pointer)

    if not isinstance(node, Mapping):
        if not isinstance(node, bool):
            refuse("", f"a schema is {type(node).__name__}; allowed: an object or a boolean")
        return budget
    kinds = node.get("type", [])
    for kind in kinds if isinstance(kinds, list) else [kinds]:
        if not isinstance(kind, str) or kind not in TYPES:
            refuse("type", f"type {kind!r}; allowed: {', '.join(sorted(TYPES))}")
    for key in ("properties", "patternProperties", "$defs", "definitions"):
        if key in node and not isinstance(node[key], Mapping):
            refuse(key, f"`{key}` is {type(node[key]).__name__}; allowed: an object of schemas")
    for key in ("anyOf", "allOf", "oneOf"):
        if key in node and not (isinstance(node[key], list) and node[key]):
            refuse(key, f"`{key}` is not a filled list of schemas")
    for key in _IGNORED:
        if key in node:
            refuse(key, f"`{key}` cannot be enforced while sampling")
    _names_and_patterns(node, refuse)
    return _enum(node, refuse, budget)


def _names_and_patterns(node: Mapping[str, Any], refuse: Callable[[str, str], None]) -> None:
    for name in node.get("properties", ()):
        if "\0" in name:
            refuse(f"properties/{escape(name)}", "a property name holds NUL")
    for pattern in node.get("patternProperties", ()):
        if "\0" in pattern:
            refuse(f"patternProperties/{escape(pattern)}", "a pattern holds NUL")
    if "pattern" in node and (not isinstance(node["pattern"], str) or "\0" in node["pattern"]):
        refuse("pattern", "`pattern` is no string, or it holds NUL")
    required = node.get("required", [])
    if isinstance(required, list) and not all(isinstance(name, str) for name in required):
        refuse("required", "`required` holds something other than names")


def _enum(node: Mapping[str, Any], refuse: Callable[[str, str], None], budget: int) -> int:
    if "enum" not in node:
        return budget
    values = node["enum"]
    if not isinstance(values, list) or not values:
        refuse("enum", "`enum` is not a filled list")
    if len(values) > budget:
        refuse("enum", f"more than {MAX_ENUM} enum values; a string or a search tool serves better")
    return budget - len(values)


def _references(root: Any, node: Any, pointer: str, where: str) -> None:
    """Refuse a reference to nothing, and one that comes back to itself without consuming anything."""
    if not isinstance(node, Mapping) or "$ref" not in node:
        return
    ref = node["$ref"]
    if not isinstance(ref, str):
        raise SchemaError(f"{where}: `$ref` is {type(ref).__name__}; allowed: a string", pointer=f"{pointer}/$ref")
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]*:", ref) and not _METASCHEMA.match(ref) and not _declares(root, ref):
        raise SchemaError(
            f"{where}: `$ref` points outside the schema, and nothing is fetched",
            pointer=f"{pointer}/$ref",
            hint="put the schema under `$defs`",
        )
    seen: set[int] = set()
    stack: list[Any] = [node]
    first = True
    while stack:
        current = stack.pop()
        if not isinstance(current, Mapping):
            continue
        if current is node and not first:
            raise SchemaError(f"{where}: `$ref` leads back to itself", pointer=f"{pointer}/$ref")
        first = False
        if id(current) in seen:
            continue
        seen.add(id(current))
        stack.extend(part for key in _SAME_INSTANCE for part in current.get(key, ()) if isinstance(part, Mapping))
        target = current.get("$ref")
        if isinstance(target, str) and (target == "#" or target.startswith("#/")):
            try:
                stack.append(resolved(root, target))
            except KeyError:
                if current is node and not _embeds(root):
                    raise SchemaError(
                        f"{where}: `$ref` {target[:80]!r} points at nothing", pointer=f"{pointer}/$ref"
                    ) from None


def _identities(root: Any) -> Iterator[tuple[Any, str]]:
    """Every part of the document that carries an identity, and that identity."""
    stack = [root]
    while stack:
        node = stack.pop()
        if isinstance(node, Mapping):
            own = node.get("$id", node.get("id"))
            if isinstance(own, str):
                yield node, own
            stack.extend(node.values())
        elif isinstance(node, list):
            stack.extend(node)


def _declares(root: Any, ref: str) -> bool:
    """Whether some part of the document may be what ``ref`` names; the compiler resolves it exactly."""
    base = ref.split("#", 1)[0]
    return any("/" in own or own == base for _, own in _identities(root))


def _embeds(root: Any) -> bool:
    """Whether a part has an identity of its own, against which references inside it are read."""
    return any(node is not root for node, _ in _identities(root))


# --- how long the shortest value is -------------------------------------------------------------------------------


def longest_close(schema: Any, nodes: list[tuple[str, Any]]) -> int:
    """A bound in characters on what one choice can still demand: the longest of the shortest values of all parts."""
    return int(max((cost for cost in _costs(schema, nodes).values() if math.isfinite(cost)), default=0))


def _costs(root: Any, nodes: list[tuple[str, Any]]) -> dict[int, float]:
    """About how many characters the shortest value of each schema has; infinite where there is none.

    A least fixed point: references start at infinity and come down, so that recursion without an end stays there.
    """
    costs = {id(node): math.inf for _, node in nodes}
    for _ in range(len(nodes) + 1):
        changed = False
        for _, node in reversed(nodes):
            cost = _cost(root, node, costs)
            if cost < costs[id(node)]:
                costs[id(node)], changed = cost, True
        if not changed:
            break
    return costs


def _cost(root: Any, node: Any, costs: dict[int, float]) -> float:
    if not isinstance(node, Mapping):
        return 1.0 if node else math.inf
    if "const" in node:
        return float(len(json.dumps(node["const"])))
    if "enum" in node:
        return float(min(len(json.dumps(value)) for value in node["enum"]))
    kinds = node.get("type", "object" if "required" in node else "null")
    kinds = kinds if isinstance(kinds, list) else [kinds]
    found = min((_of_type(kind, node, costs) for kind in kinds), default=1.0)
    for key in ("anyOf", "oneOf"):
        if key in node:
            found = max(found, min(costs.get(id(part), 1.0) for part in node[key]))
    for part in node.get("allOf", ()):
        found = max(found, costs.get(id(part), 1.0))
    ref = node.get("$ref")
    if isinstance(ref, str) and (ref == "#" or ref.startswith("#/")):
        try:
            found = max(found, costs.get(id(resolved(root, ref)), 1.0))
        except KeyError:  # inside an embedded schema, whose references the compiler resolves
            return found
    return found


def _of_type(kind: str, node: Mapping[str, Any], costs: dict[int, float]) -> float:
    if kind == "object":
        properties = node.get("properties", {})
        required = node.get("required", ())
        required = required if isinstance(required, list) else ()
        return 2 + sum(len(json.dumps(name)) + 4 + costs.get(id(properties.get(name)), 1.0) for name in required)
    if kind == "array":
        least, prefix = node.get("minItems", 0), node.get("prefixItems", ())
        least = least if isinstance(least, int) else 0
        rest = costs.get(id(node.get("items")), 1.0) if isinstance(node.get("items"), Mapping | bool) else 1.0
        head = sum(costs.get(id(part), 1.0) + 2 for part in prefix[:least])
        return 2 + head + (max(0, least - len(prefix)) * (rest + 2) if least > len(prefix) else 0)
    if kind == "string":
        least = node.get("minLength", 0)
        return 2 + (least if isinstance(least, int) else 0) + (10 if "format" in node or "pattern" in node else 0)
    return 2.0


def _endless(root: Any, nodes: list[tuple[str, Any]]) -> str:
    """The pointer of the deepest required part that has no finite value."""
    costs = _costs(root, nodes)
    pointers = {id(node): pointer for pointer, node in nodes}
    current, pointer, seen = root, "", {id(root)}
    while isinstance(current, Mapping):
        parts = [current.get("properties", {}).get(name) for name in current.get("required", ())]
        following = next(
            (part for part in parts if math.isinf(costs.get(id(part), 0.0)) and id(part) not in seen), None
        )
        if following is None:
            break
        seen.add(id(following))
        current, pointer = following, pointers.get(id(following), pointer)
    return pointer
