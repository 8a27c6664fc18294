"""JSON schemas of Python types, made small and plain, and what a model is asked to answer with."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qwen_agent_kit.errors import OutputError, UsageError
from qwen_agent_kit.tools.checking import problems_of_schema, schema_validator
from qwen_agent_kit.tools.schema_check import LISTS, MAPS, ONES, check_schema
from qwen_agent_kit.tools.validation import Problem, listing, problems_of_pydantic, shorten

__all__ = ["OutputType", "output_type", "plain_schema"]

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
        if key in MAPS and isinstance(value, dict):
            plain[key] = {name: plain_schema(inner) for name, inner in value.items()}
        elif key in LISTS and isinstance(value, list):
            plain[key] = [plain_schema(inner) for inner in value]
        elif key in ONES:
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
