"""What a tool takes: its JSON schema, and the check of a call's arguments against it.

Two kinds, made on first use: from a function's signature (pydantic), and given by hand (``jsonschema``).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cached_property
from typing import Annotated, Any

from qwen_agent_kit.errors import SchemaError
from qwen_agent_kit.tools.annotations import adapter_of, described, is_media, ready, typed_dict
from qwen_agent_kit.tools.checking import problems_of_schema, schema_validator
from qwen_agent_kit.tools.docstrings import Documented, read_docstring
from qwen_agent_kit.tools.schema_check import check_schema
from qwen_agent_kit.tools.signature import Signature
from qwen_agent_kit.tools.validation import ArgumentsError, Problem, problems_of_pydantic

__all__ = ["GivenContract", "SignatureContract"]

MAX_DEFAULT = 500
"""Characters of JSON; a longer default is not shown to the model."""


class SignatureContract:
    """The contract that a function's type hints and docstring state."""

    def __init__(self, signature: Signature) -> None:
        self.signature = signature

    @cached_property
    def documented(self) -> Documented:
        """The docstring, read."""
        return read_docstring(self.signature.doc)

    @property
    def parameters(self) -> dict[str, Any]:
        """The JSON schema of the arguments."""
        return self._built[1]

    def validate(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments as the function takes them.

        Raises:
            ArgumentsError: Where they do not fit; where a validator of the user's own broke, that is its cause.
        """
        validator = self._validator
        try:
            return validator.validate_python(arguments)  # type: ignore[no-any-return]  # a dict: it is a TypedDict
        except self._mismatch as error:
            names = [parameter.name for parameter in self.signature.parameters]
            raise ArgumentsError(self.signature.tool, problems_of_pydantic(error, arguments, names)) from None
        except Exception as error:  # a validator of the user's own may raise anything
            allowed = f"values that the tool can check; its own check raised {type(error).__name__}"
            raise ArgumentsError(self.signature.tool, [Problem("", allowed, arguments)]) from error

    @cached_property
    def _validator(self) -> Any:
        return self._built[0].validator

    @cached_property
    def _mismatch(self) -> type[Exception]:
        from pydantic import ValidationError

        return ValidationError

    @cached_property
    def _built(self) -> tuple[Any, dict[str, Any]]:
        tool, hints = self.signature.tool, self.signature.hints()
        fields: dict[str, Any] = {}
        notes: dict[str, dict[str, Any]] = {}
        for parameter in self.signature.parameters:
            fields[parameter.name], notes[parameter.name] = self._field(parameter, hints[parameter.name])
        shape = typed_dict("arguments", fields)
        shape.__pydantic_config__ = {"extra": "forbid"}
        try:
            adapter, schema = adapter_of(shape, what=f"tool `{tool}`")
        except SchemaError as error:
            raise self._blamed(fields, error) from error
        return adapter, _arranged(schema, notes)

    def _field(self, parameter: Any, hint: Any) -> tuple[Any, dict[str, Any]]:
        """One parameter as a TypedDict field, and what its property in the schema says besides."""
        import typing_extensions
        from pydantic.fields import FieldInfo

        tool, name = self.signature.tool, parameter.name
        if getattr(parameter.default, "alias", None) or any(getattr(m, "alias", None) for m in _metadata(hint)):
            raise SchemaError(f"tool `{tool}`: parameter `{name}` has an alias", hint="give the parameter that name")
        if is_media(hint):
            raise SchemaError(
                f"tool `{tool}`: parameter `{name}` is a medium, and a model writes text",
                pointer=f"/properties/{name}",
                hint=f"take `{name}: str` and a ToolContext, and call `ctx.media({name})`",
            )
        annotation, text = described(ready(hint))
        choices = self.documented.choices.get(name)
        if choices and annotation in (str, int, float, bool, Any):
            annotation = typing_extensions.Literal[choices]
        notes: dict[str, Any] = {}
        description = self.documented.parameters.get(name) or text
        if description:
            notes["description"] = description
        required = parameter.default is parameter.empty
        if isinstance(parameter.default, FieldInfo):
            annotation, required = Annotated[annotation, parameter.default], parameter.default.is_required()
        elif not required:
            notes |= _shown_default(parameter.default)
        if any(isinstance(item, FieldInfo) and not item.is_required() for item in _metadata(annotation)):
            required = False
        wrap: Any = typing_extensions.Required if required else typing_extensions.NotRequired
        return wrap[annotation], notes

    def _blamed(self, fields: Mapping[str, Any], error: SchemaError) -> SchemaError:
        """The refusal of the first parameter whose type alone is refused, or that of them all."""
        for name, field in fields.items():
            try:
                adapter_of(field.__args__[0], what=f"tool `{self.signature.tool}`: parameter `{name}`")
            except SchemaError as guilty:
                guilty.pointer = f"/properties/{name}"
                return guilty
        return error


def _metadata(annotation: Any) -> tuple[Any, ...]:
    metadata: tuple[Any, ...] = getattr(annotation, "__metadata__", ())
    return metadata


def _shown_default(value: Any) -> dict[str, Any]:
    """``{"default": ...}`` where the value is small JSON data and says more than "may be left out"."""
    if value is None:
        return {}
    from pydantic_core import PydanticSerializationError, to_jsonable_python

    try:
        shown = to_jsonable_python(value)
        text = json.dumps(shown, allow_nan=False)
    except (PydanticSerializationError, TypeError, ValueError, RecursionError):
        return {}
    return {"default": shown} if len(text) <= MAX_DEFAULT else {}


def _arranged(schema: dict[str, Any], notes: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    properties = {name: {**schema["properties"][name], **said} for name, said in notes.items()}
    arranged: dict[str, Any] = {"type": "object", "properties": properties}
    if schema.get("required"):
        arranged["required"] = schema["required"]
    arranged["additionalProperties"] = False
    if "$defs" in schema:
        arranged["$defs"] = schema["$defs"]
    return arranged


class GivenContract:
    """The contract that a JSON schema states.

    Raises:
        SchemaError: Where the schema is refused (see ``check_schema``) or is not one of an object.
    """

    documented = Documented()

    def __init__(self, tool: str, parameters: Mapping[str, Any]) -> None:
        what = f"the parameters of tool `{tool}`"
        check_schema(parameters, what=what)
        if parameters.get("type") != "object":
            found = parameters.get("type")
            raise SchemaError(f"{what}: `/type` is {found!r}; allowed: 'object'", pointer="/type")
        self.tool = tool
        self.parameters: dict[str, Any] = json.loads(json.dumps(parameters))

    def validate(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments, unchanged.

        Raises:
            ArgumentsError: Where they do not fit.
        """
        own = dict(arguments)
        problems: list[Problem] = problems_of_schema(self._validator, own)
        if problems:
            raise ArgumentsError(self.tool, problems)
        return own

    @cached_property
    def _validator(self) -> Any:
        return schema_validator(self.parameters)
