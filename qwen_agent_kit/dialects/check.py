"""Whether tools and an output schema can be served, asked when an agent is built.

The compiler says that a schema is refused, not where; so its parts are compiled apart until the offending one is found.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from qwen_agent_kit.dialects.base import Definition, Dialect
from qwen_agent_kit.dialects.lark import Rules, chosen, parameters_of
from qwen_agent_kit.dialects.schema import children, escape
from qwen_agent_kit.errors import SchemaError

__all__ = ["Compiled", "check"]

SEARCH = 1.0
"""Seconds that the search for the offending part may take."""


class Compiled(Protocol):
    """What compiling gives: ``engine.grammar.CompiledGrammar``."""

    @property
    def minimum(self) -> int | None:
        """The fewest tokens that fulfil the grammar, or None where no end was found."""


Compile = Callable[[str], Compiled]


def check(
    dialect: Dialect,
    tools: Sequence[Definition],
    output_schema: Mapping[str, Any] | None = None,
    *,
    compile: Compile,  # noqa: A002  # it is what the argument does; the builtin is not used here
    control: Mapping[str, int],
    max_tokens: int | None = None,
) -> None:
    """Raise where some tool's arguments, or the output, can never be sampled.

    Args:
        dialect: How calls are written.
        tools: The armed tools.
        output_schema: Of the final text.
        compile: The engine's ``GrammarCompiler.compile``.
        control: The ids of the tags that are single tokens.
        max_tokens: How many tokens a turn may have; a schema that needs more is refused.

    Raises:
        SchemaError: With the offending tool in the message and a pointer into its parameters (or the output schema).
        UsageError: For two tools of one name.
    """
    chosen(tools, "auto")
    for tool in tools:
        function = tool["function"]
        where = f"tool {function['name']!r}"
        text = dialect.grammar([tool], tool_choice="required", control=control)
        _check(text, parameters_of(function), where, compile, max_tokens)
    if output_schema is not None:
        text = dialect.grammar([], output_schema=output_schema, control=control)
        _check(text, output_schema, "the output schema", compile, max_tokens)


def _check(text: str | None, schema: Any, where: str, compile: Compile, limit: int | None) -> None:  # noqa: A002  # as above
    if text is None:
        return
    fault = _fault(text, compile, limit)
    if fault is None:
        return

    def faulty(part: Any) -> str | None:
        rules = Rules({})
        try:
            rules.add("start", rules.value(part, where))
        except SchemaError as error:
            return error.message
        return _fault(rules.text(), compile, limit)

    pointer = _located(schema, faulty)
    raise SchemaError(f"{where}: `{pointer}`: {fault}" if pointer else f"{where}: {fault}", pointer=pointer)


def _fault(text: str, compile: Compile, limit: int | None) -> str | None:  # noqa: A002  # as above
    """Why this grammar cannot be served, or None."""
    try:
        needed = compile(text).minimum
    except SchemaError as error:
        return error.message
    if needed is None:
        return "no value was found that fulfils it within the bounds of the grammar"
    if limit is not None and needed > limit:
        return f"it needs at least {needed} tokens, max_tokens is {limit}"
    return None


def _located(schema: Any, faulty: Callable[[Any], str | None]) -> str:
    """The pointer of the smallest part that is at fault when it stands alone, down to its keyword."""
    if faulty(schema) is None:
        return ""
    until = time.monotonic() + SEARCH
    shared = {key: schema[key] for key in ("$defs", "definitions") if key in schema}
    node, pointer, found = schema, "", True
    while found and time.monotonic() < until:
        found = False
        parts = sorted(children(node), key=lambda part: not part[0].startswith(("/$defs", "/definitions")))
        for step, child in parts:  # what is shared first: a reference to a bad part is bad as well
            if isinstance(child, Mapping) and time.monotonic() < until and faulty({**shared, **child}) is not None:
                node, pointer, found = child, pointer + step, True
                break
    if not isinstance(node, Mapping):
        return pointer
    for key in sorted(node, key=lambda name: name == "type"):
        if time.monotonic() > until:
            break
        if key not in ("properties", "$defs", "definitions") and _mended({**shared, **node}, key, faulty):
            return f"{pointer}/{escape(key)}"
    return pointer


def _mended(node: Mapping[str, Any], key: str, faulty: Callable[[Any], str | None]) -> bool:
    return faulty({name: value for name, value in node.items() if name != key}) is None
