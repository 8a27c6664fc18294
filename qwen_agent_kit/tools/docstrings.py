"""What a docstring says about a function and its parameters: Google, NumPy, Sphinx and Epydoc style."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Documented", "read_docstring"]

_CHOICES = re.compile(r"\s*\(choices:\s*(\[.*?\])\s*\)\s*$", re.DOTALL)
"""``(choices: ["a", "b"])`` at the end of a description, as transformers' chat-template tools write an enum."""


@dataclass(frozen=True, slots=True)
class Documented:
    """A docstring, read.

    Args:
        description: The summary and what follows it up to the first section; empty where there is none.
        parameters: Name to description, without the stars of ``*args`` and ``**kwargs``.
        choices: Name to the allowed values, where a description ends in ``(choices: [...])``.
    """

    description: str = ""
    parameters: Mapping[str, str] = field(default_factory=dict)
    choices: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)


def read_docstring(text: str | None) -> Documented:
    """Read a docstring of any of the usual styles; one that no style fits is all description."""
    if not text or not text.strip():
        return Documented()
    import docstring_parser

    text = inspect.cleandoc(text)
    try:
        parsed = docstring_parser.parse(text)
    except (docstring_parser.ParseError, IndexError):  # the latter is its reader of Sphinx's style at a line ": :"
        return Documented(text)
    parameters: dict[str, str] = {}
    choices: dict[str, tuple[Any, ...]] = {}
    for parameter in parsed.params:
        description = (parameter.description or "").strip()
        description, allowed = _split_choices(description)
        for name in parameter.arg_name.split(","):
            plain = name.strip().lstrip("*\\")
            if description:
                parameters[plain] = description
            if allowed:
                choices[plain] = allowed
    return Documented(_description(parsed), parameters, choices)


def _description(parsed: Any) -> str:
    paragraphs = (parsed.short_description, parsed.long_description)
    gap = "\n\n" if parsed.blank_after_short_description else "\n"
    return gap.join(paragraph.strip() for paragraph in paragraphs if paragraph and paragraph.strip())


def _split_choices(description: str) -> tuple[str, tuple[Any, ...]]:
    match = _CHOICES.search(description)
    if match is None:
        return description, ()
    try:
        values = json.loads(match[1])
    except ValueError:
        return description, ()
    if not all(isinstance(value, str | int | float | bool) for value in values):
        return description, ()
    return description[: match.start()].strip(), tuple(values)
