"""What reading the inside of one tool call needs, whatever its format."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

__all__ = ["Body", "BodyReader", "echo", "held", "leading", "strict_json"]

MAX_ECHO = 80
"""Characters of what the model wrote that an error line repeats to it."""


@dataclass(frozen=True, slots=True)
class Body:
    """What one call says; ``error`` is a line for the model where it says nothing that could be run."""

    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    error: str | None = None


class BodyReader(Protocol):
    """Reads the text between the tags of one call, in chunks cut anywhere.

    Attributes:
        name: The tool's name, "" until it is known.
    """

    name: str

    @property
    def in_value(self) -> bool:
        """Whether a tag at this place would be part of a value."""

    @property
    def complete(self) -> bool:
        """Whether the call lacks nothing but its closing tag."""

    def feed(self, text: str) -> tuple[str | None, str]:
        """Read on. Where a text tag ends the call: that tag and what follows it; else None and ""."""

    def literal(self, text: str) -> None:
        """Read text in which no tag counts: that of a control token inside a value."""

    def take(self) -> str:
        """The argument text that became known since the last time."""

    def result(self) -> Body:
        """What the call says, now that it ended. Argument text may become known by this."""


def held(text: str, tags: Sequence[str]) -> int:
    """How many characters at the end of ``text`` may be the beginning of a tag that is not whole yet."""
    longest = max(map(len, tags), default=1) - 1
    for length in range(min(longest, len(text)), 0, -1):
        end = text[-length:]
        if any(tag.startswith(end) for tag in tags):
            return length
    return 0


def leading(text: str, tags: Sequence[str]) -> str | None:
    """The tag that ``text`` starts with."""
    return next((tag for tag in tags if text.startswith(tag)), None)


def echo(text: str) -> str:
    """The beginning of what the model wrote, quoted, at most ``MAX_ECHO`` characters."""
    quoted = repr(text.strip()[:MAX_ECHO])
    return quoted if len(quoted) <= MAX_ECHO else f"{quoted[: MAX_ECHO - 3]}..."


def strict_json(text: str) -> Any:
    """The value of a JSON text, for which no two readers could differ.

    Raises:
        ValueError: For what is no JSON, NaN and infinities, a key given twice, and nesting too deep to read.
    """
    try:
        return json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {echo(twice)} is given twice")
    return found


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON value")
