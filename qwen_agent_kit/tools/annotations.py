"""From Python annotations to pydantic validators and plain JSON schemas."""

from __future__ import annotations

import sys
import types
import typing
from collections.abc import Mapping
from typing import Annotated, Any

from qwen_agent_kit.errors import SchemaError
from qwen_agent_kit.messages import Media
from qwen_agent_kit.tools.validation import shorten

__all__ = ["adapter_of", "described", "is_media", "members", "ready", "typed_dict"]


def adapter_of(annotation: Any, *, what: str) -> tuple[Any, dict[str, Any]]:
    """A pydantic ``TypeAdapter`` for an annotation, and its JSON schema, plain.

    Raises:
        SchemaError: Where the annotation has no schema.
    """
    from pydantic import TypeAdapter
    from pydantic.json_schema import GenerateJsonSchema

    from qwen_agent_kit.tools.schema import plain_schema

    class Quiet(GenerateJsonSchema):
        """What compilers of grammars do not know, and pydantic checks anyway, is said otherwise or left out."""

        ignored_warning_kinds = {"skipped-choice", "non-serializable-default"}  # noqa: RUF012  # pydantic's own shape

        def set_schema(self, schema: Any) -> dict[str, Any]:
            return _without(super().set_schema(schema), "uniqueItems")

        def frozenset_schema(self, schema: Any) -> dict[str, Any]:
            return _without(super().frozenset_schema(schema), "uniqueItems")

        def dict_schema(self, schema: Any) -> dict[str, Any]:
            return _with_names(super().dict_schema(schema), schema.get("keys_schema", {}))

    try:
        adapter: Any = TypeAdapter(ready(annotation))
        schema = plain_schema(adapter.json_schema(schema_generator=Quiet))
    except Exception as error:  # whatever a user's type raises while pydantic reads it is about that type
        raise SchemaError(
            f"{what} has no JSON schema: {shorten(str(error), 200)}",
            hint="use plain types, Literal, Enum, dataclasses, TypedDict or pydantic models",
        ) from error
    return adapter, schema


def _without(schema: dict[str, Any], key: str) -> dict[str, Any]:
    return {name: value for name, value in schema.items() if name != key}


def _with_names(schema: dict[str, Any], keys: Mapping[str, Any]) -> dict[str, Any]:
    """An object whose keys are an Enum or Literal, as the properties that it may have."""
    named = {"enum": [member.value for member in keys.get("members", ())], "literal": keys.get("expected", ())}
    names = named.get(str(keys.get("type")), ())
    plain = _without(schema, "propertyNames")
    if not names or not all(isinstance(name, str) for name in names):
        return plain
    values = plain.get("additionalProperties", {})
    return {**plain, "properties": dict.fromkeys(names, values), "additionalProperties": False}


def ready(annotation: Any) -> Any:
    """The annotation as pydantic takes it on every Python.

    Before Python 3.12 pydantic refuses ``typing.TypedDict``; it becomes the same of ``typing_extensions``.
    """
    if sys.version_info >= (3, 12):
        return annotation
    return _modern(annotation, ())


def _modern(annotation: Any, inside: tuple[Any, ...]) -> Any:
    if typing.is_typeddict(annotation) and type(annotation).__module__ == "typing":
        if annotation in inside:
            raise TypeError(f"{annotation.__name__} holds itself; take TypedDict from typing_extensions")
        return _modern_dict(annotation, (*inside, annotation))
    arguments = typing.get_args(annotation)
    origin = typing.get_origin(annotation)
    if origin is None or origin is typing.Literal or not arguments:
        return annotation
    if origin is Annotated:
        return Annotated[(_modern(arguments[0], inside), *annotation.__metadata__)]
    new = tuple(_modern(argument, inside) if not isinstance(argument, list) else argument for argument in arguments)
    if new == arguments:
        return annotation
    if origin in (typing.Union, types.UnionType):
        return typing.Union[new]  # noqa: UP007  # made from a tuple of members
    return annotation.copy_with(new) if hasattr(annotation, "copy_with") else origin[new]


def _modern_dict(annotation: Any, inside: tuple[Any, ...]) -> Any:
    import typing_extensions

    fields: dict[str, Any] = {}
    for name, hint in typing.get_type_hints(annotation, include_extras=True).items():
        bare = typing.get_args(hint)[0] if typing.get_origin(hint) in (typing.Required, typing.NotRequired) else hint
        wrap: Any = (
            typing_extensions.Required if name in annotation.__required_keys__ else typing_extensions.NotRequired
        )
        fields[name] = wrap[_modern(bare, inside)]
    new = typed_dict(annotation.__name__, fields)
    new.__doc__ = annotation.__doc__
    return new


def typed_dict(name: str, fields: dict[str, Any]) -> Any:
    """A TypedDict that pydantic takes on every Python."""
    import typing_extensions

    make: Any = typing_extensions.TypedDict
    return make(name, fields)


def described(annotation: Any) -> tuple[Any, str | None]:
    """An annotation without the plain strings in its ``Annotated``, and the last of those strings."""
    if typing.get_origin(annotation) is not Annotated:
        return annotation, None
    text = None
    kept: list[Any] = []
    for item in annotation.__metadata__:
        said = item if isinstance(item, str) else getattr(item, "documentation", None)  # typing_extensions.Doc
        if isinstance(said, str):
            text = said
        else:
            kept.append(item)
    bare = typing.get_args(annotation)[0]
    return (Annotated[(bare, *kept)] if kept else bare), text


def members(annotation: Any) -> tuple[Any, ...]:
    """The members of a union, ``Annotated`` taken off; else the annotation alone."""
    origin = typing.get_origin(annotation)
    if origin is Annotated:
        return members(typing.get_args(annotation)[0])
    if origin in (typing.Union, types.UnionType):
        return tuple(inner for member in typing.get_args(annotation) for inner in members(member))
    return (annotation,)


def is_media(annotation: Any) -> bool:
    """Whether a value of this annotation could be a ``Media``."""
    return any(isinstance(member, type) and issubclass(member, Media) for member in members(annotation))
