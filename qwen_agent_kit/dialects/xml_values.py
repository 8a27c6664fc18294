"""The grammar of parameters between tags: strings as raw text, everything else as JSON.

The parser reads a value by its schema's types (the convention of the Qwen3-Coder parsers), so raw text is written where
it reads back as a string, and JSON elsewhere. ``format`` is an annotation here; the tool's own validation checks it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from qwen_agent_kit.dialects.lark import Rules, parameters_of, quote, without
from qwen_agent_kit.dialects.samples import samples
from qwen_agent_kit.dialects.schema import checked, escape, resolved
from qwen_agent_kit.errors import SchemaError

__all__ = ["xml_call"]

END = "\n</parameter>\n"
TAG = r"<\/?(parameter|function|tool_call)[=>]"
TAGS = ("<parameter=", "</parameter>", "<function=", "</function>", "<tool_call>", "</tool_call>")
"""What no raw value may hold: each of these ends it for some reader."""

_PLAIN = frozenset({"type", "title", "description", "default", "examples", "deprecated", "$comment"})
_ROOT = _PLAIN | {"properties", "required", "additionalProperties", "$defs", "definitions", "$schema", "$id"}
_TEXT = _PLAIN | {"minLength", "maxLength", "pattern", "enum", "const", "format", "contentEncoding", "contentMediaType"}


def xml_call(rules: Rules, name: str, function: Mapping[str, Any]) -> str:
    """One function with its parameters in the schema's order; optional ones may be absent.

    Raises:
        SchemaError: For a schema that parameters cannot express.
    """
    where = f"tool {function['name']!r}"
    schema = parameters_of(function)
    checked(schema, where=where)
    unknown = sorted(key for key in schema if key not in _ROOT and not key.startswith("x-"))
    if unknown:
        raise SchemaError(f"{where}: `{unknown[0]}` cannot be told in parameters", pointer=f"/{escape(unknown[0])}")
    properties, required = schema.get("properties", {}), schema.get("required", [])
    missing = [key for key in required if key not in properties]
    if missing:
        raise SchemaError(f"{where}: required {missing[0]!r} has no schema in `properties`", pointer="/required")
    parts = [quote(f"<function={_tagged(function['name'], where, '')}>\n")]
    for index, (key, child) in enumerate(properties.items()):
        pointer = f"/properties/{escape(key)}"
        value = _Value(rules, f"{name}_{index}", schema, where, pointer).written(child)
        rule = rules.add(f"{name}_{index}", f"{quote(f'<parameter={_tagged(key, where, pointer)}>' + chr(10))} {value}")
        parts.append(rule if key in required else f"{rule}?")
    return " ".join([*parts, quote("</function>")])


def _tagged(name: str, where: str, pointer: str) -> str:
    if ">" in name or "\n" in name:
        raise SchemaError(f"{where}: {name!r} cannot stand in a tag", pointer=pointer)
    return name


class _Value:
    """Writes the rules of one parameter's value, its end tag included."""

    def __init__(self, rules: Rules, name: str, root: Mapping[str, Any], where: str, pointer: str) -> None:
        self.rules, self.name, self.root, self.where, self.pointer = rules, name, root, where, pointer

    def refuse(self, message: str, step: str = "") -> SchemaError:
        return SchemaError(f"{self.where}: {message}", pointer=self.pointer + step)

    def written(self, schema: Any) -> str:
        arms = list(self._arms(schema, 0))
        texts = [arm for arm in arms if _is_text(arm)]
        others = [arm for arm in arms if not _is_text(arm)]
        if not texts:
            return self._whole(schema)
        swallowed = all(_reads_back(arm) for arm in others) and any(_is_free(arm) for arm in texts)
        branches = [self._text(arm, i, guarded=bool(others) and not swallowed) for i, arm in enumerate(texts)]
        if not swallowed:
            branches += [self._whole(arm) for arm in others]
        return f"({' | '.join(branches)})"

    def _arms(self, schema: Any, depth: int) -> Iterator[Any]:
        """The alternatives that a schema stands for, each of one type."""
        if not isinstance(schema, Mapping):
            if schema is False:
                raise self.refuse("no value is allowed")
            yield {"type": "string"}
            return
        keys = schema.keys() - _PLAIN | ({"type"} & schema.keys())
        if keys == {"$ref"} and depth < 32:
            yield from self._arms(self._target(schema["$ref"]), depth + 1)
        elif keys in ({"anyOf"}, {"oneOf"}, {"allOf"}) and (keys != {"allOf"} or len(schema["allOf"]) == 1):
            for part in schema[next(iter(keys))]:
                yield from self._arms(part, depth + 1)
        elif isinstance(schema.get("type"), list):
            for kind in schema["type"]:
                yield {**schema, "type": kind}
        elif not keys:
            yield {"type": "string"}
        elif "type" not in schema and ("enum" in schema or "const" in schema):
            values = schema["enum"] if "enum" in schema else [schema["const"]]
            strings = [value for value in values if isinstance(value, str)]
            rest = [value for value in values if not isinstance(value, str)]
            yield from ([{"type": "string", "enum": strings}] if strings else [])
            yield from ([{"enum": rest}] if rest else [])
        elif "type" not in schema and {"$ref", "anyOf", "oneOf", "allOf", "not"} & keys:
            raise self.refuse("this combination of keywords cannot be told in a parameter")
        else:
            yield schema

    def _target(self, ref: str) -> Any:
        if not ref.startswith(("#/$defs/", "#/definitions/")):
            raise self.refuse("a parameter can only refer to `$defs` or `definitions`", "/$ref")
        return resolved(self.root, ref)

    def _whole(self, schema: Any) -> str:
        self.rules.closers.append(END)
        return f"{self._json(schema)} {quote(END)}"

    def _json(self, schema: Any) -> str:
        made = dict(schema)
        for key in ("$defs", "definitions"):
            if key in self.root:
                made[key] = self.root[key]
        if made.get("type") == "string" or self._foreign(schema):
            raise self.refuse("a parameter can only refer to `$defs` or `definitions`")
        return self.rules.value(made, self.where)

    def _foreign(self, schema: Any) -> bool:
        stack = [schema]
        while stack:
            node = stack.pop()
            if isinstance(node, Mapping):
                ref = node.get("$ref")
                if isinstance(ref, str) and not ref.startswith(("#/$defs/", "#/definitions/")):
                    return True
                stack.extend(node.values())
            elif isinstance(node, list):
                stack.extend(node)
        return False

    def _text(self, schema: Mapping[str, Any], index: int, *, guarded: bool) -> str:
        unknown = sorted(schema.keys() - _TEXT)
        if unknown:
            raise self.refuse(f"`{unknown[0]}` on a string cannot be told in a parameter", f"/{escape(unknown[0])}")
        if "enum" in schema or "const" in schema:
            values = [v for v in schema.get("enum", [schema.get("const")]) if isinstance(v, str)]
            for value in values:
                if any(tag in value for tag in TAGS) or value != value.strip("\n"):
                    raise self.refuse("a value holds a tag, or begins or ends with a newline")
            if not values:
                raise self.refuse("no string is allowed")
            return " | ".join(quote(value + END) for value in values)
        terms = [without(TAG)]
        if guarded:
            terms.append(r'/([^\s\-0-9"\[{](?s:.*))?/ & ~/(?i:true|false|null|none|nan|infinity)(?s:.*)/')
        least, most = schema.get("minLength", 0), schema.get("maxLength", "")
        if least or most != "":
            terms.append(f"/(?s:.{{{least},{most}}})/")
            self.rules.reserve = max(self.rules.reserve, min(int(least), 128) + 24)
        else:
            terms.append("/(?s:.*)/")
        if "pattern" in schema:
            terms.append(f"/{self._pattern(schema['pattern'])}/")
        word = f"{self.name}_{index}_TEXT".upper()
        self.rules.add(word, " & ".join(terms))
        self.rules.samples += [text + END for text in samples([("", schema)])]
        self.rules.closers += [END, "\n" + END]
        rule = f"{self.name}_raw_{index}"
        self.rules.add(f"{rule}[lazy]", f"{word} {quote(END)}")
        return rule

    def _pattern(self, pattern: str) -> str:
        """The pattern of JSON schema, which searches, as one that matches the whole text."""
        begins = pattern.startswith("^")
        ends = pattern.endswith("$") and not pattern.endswith("\\$")
        core = pattern[begins : len(pattern) - ends]
        if (begins or ends) and _splits(core):
            raise self.refuse("an anchored alternative cannot be told in a parameter", "/pattern")
        core = re.sub(r"(?<!\\)((?:\\\\)*)/", r"\1\\/", core)
        return f"{'' if begins else '(?s:.*)'}({core}){'' if ends else '(?s:.*)'}"


def _splits(pattern: str) -> bool:
    """Whether there is an alternative outside all groups and classes."""
    depth, inside, skip = 0, False, False
    for char in pattern:
        if skip:
            skip = False
        elif char == "\\":
            skip = True
        elif inside:
            inside = char != "]"
        elif char == "[":
            inside = True
        elif char in "()":
            depth += 1 if char == "(" else -1
        elif char == "|" and depth == 0:
            return True
    return False


def _is_text(arm: Any) -> bool:
    return isinstance(arm, Mapping) and arm.get("type") == "string"


def _is_free(arm: Mapping[str, Any]) -> bool:
    return not {"minLength", "maxLength", "pattern", "enum", "const"} & arm.keys()


def _reads_back(arm: Mapping[str, Any]) -> bool:
    """Whether raw text that happens to read as this type is always valid for it."""
    return arm.get("type") in ("null", "boolean", "number", "integer") and not (arm.keys() - _PLAIN)
