"""A prompt with places for an item's fields: ``{name}``, and nothing else between the braces."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Collection, Mapping
from typing import Any

from qwen_agent_kit.errors import UsageError
from qwen_agent_kit.messages import Media, Part, Text

__all__ = ["Template"]

_PIECE = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]")
_EXPRESSION = re.compile(r"[.\[\]!:()]")
LISTED = 20


class Template:
    """The parsed prompt. A field is looked up by its whole name, and what it holds is never parsed again.

    Args:
        text: ``{{`` and ``}}`` are plain braces.

    Raises:
        UsageError: For a brace without its partner, and for an empty name.
    """

    def __init__(self, text: str) -> None:
        if not isinstance(text, str):
            raise UsageError(f"`prompt` is a {type(text).__name__}; allowed: a string with `{{field}}` in it")
        self.text = text
        self._pieces: list[tuple[str, bool]] = []
        end = 0
        for found in _PIECE.finditer(text):
            self._pieces.append((text[end : found.start()], False))
            end = found.end()
            if found[0] in ("{{", "}}"):
                self._pieces.append((found[0][0], False))
            elif found[1]:
                self._pieces.append((found[1], True))
            else:
                raise UsageError(
                    f"the prompt has {found[0]!r} at character {found.start()}; allowed: `{{field}}`",
                    hint="write {{ and }} for plain braces",
                )
        self._pieces.append((text[end:], False))

    @property
    def fields(self) -> tuple[str, ...]:
        """The names that are used, in order, each once."""
        return tuple(dict.fromkeys(piece for piece, is_field in self._pieces if is_field))

    def check(self, columns: Collection[str]) -> None:
        """Refuse a template that asks for what items do not have.

        Raises:
            UsageError: Names the field and the columns that were found.
        """
        for name in self.fields:
            if name not in columns:
                raise _unknown(name, columns)

    def fill(self, values: Mapping[str, Any], media: Mapping[str, tuple[Part, ...]]) -> list[Part]:
        """The prompt of one item; media that no place names come after the text, in their order.

        Args:
            values: By field; text as it is, None as nothing, numbers and data as JSON.
            media: By field.

        Raises:
            UsageError: Where the item lacks a field, or has neither text nor media.
        """
        parts: list[Part] = []
        for piece, is_field in self._pieces:
            if is_field and piece in media:
                parts += media[piece]
            elif piece:
                parts.append(Text(_text(piece, values) if is_field else piece))
        named = self.fields
        parts += [part for name, several in media.items() if name not in named for part in several]
        joined = _joined(parts)
        if not joined:
            raise UsageError("the prompt of this item is empty", code="empty_prompt")
        return joined


def _text(name: str, values: Mapping[str, Any]) -> str:
    if name not in values:
        raise _unknown(name, values)
    value = values[name]
    if isinstance(value, str):
        return value
    if value is None:
        return ""
    if isinstance(value, os.PathLike):
        return str(os.fspath(value))
    if isinstance(value, bytes | Media):
        hint = "name its column with images=, audio= or video="
        raise UsageError(
            f"the field {name!r} holds a {type(value).__name__}; allowed in a text: text or data", hint=hint
        )
    try:
        return json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise UsageError(f"the field {name!r} holds a {type(value).__name__}; allowed: text or JSON data") from error


def _unknown(name: str, columns: Collection[str]) -> UsageError:
    shown = ", ".join(repr(str(column)[:80]) for column in list(columns)[:LISTED])
    more = f" and {len(columns) - LISTED} more" if len(columns) > LISTED else ""
    hint = None
    if _EXPRESSION.search(name):
        hint = "a field is named whole: no attributes, indices, conversions or format specs"
    return UsageError(
        f"the prompt asks for the field {name[:80]!r}; columns found: {shown or 'none'}{more}",
        hint=hint,
        code="unknown_field",
    )


def _joined(parts: list[Part]) -> list[Part]:
    """Neighbouring texts as one; empty ones gone."""
    joined: list[Part] = []
    for part in parts:
        if isinstance(part, Text) and joined and isinstance(joined[-1], Text):
            joined[-1] = Text(joined[-1].text + part.text)
        elif not isinstance(part, Text) or part.text:
            joined.append(part)
    return joined
