"""What sources yield, before it has a key: a row of fields, or the fault that took its place."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from qwen_agent_kit.errors import QakError

__all__ = ["Row", "Source", "fault"]


@dataclass(frozen=True, slots=True)
class Row:
    """One item of a source.

    Args:
        where: For messages and, where there is nothing better, for the key: ``line 7``, ``cats/1.png``.
        fields: What the template may name.
        name: A key that the source itself gives (a path relative to its folder).
        file: A file that belongs to the item, to be read later; it is the field ``file``.
        raw: The bytes of a row that cannot be read, for its key.
        error: Why it cannot be read.
    """

    where: str
    fields: Mapping[str, Any] = field(default_factory=dict)
    name: str | None = None
    file: Path | None = None
    raw: bytes = b""
    error: QakError | None = None


class Source(Protocol):
    """Where items come from, read lazily.

    Attributes:
        root: What paths inside rows are relative to and may not leave; None where the rows are the caller's own code.
    """

    root: Path | None

    def columns(self) -> tuple[str, ...] | None:
        """The fields of the items, found before the first runs; None where there is no item to find them in."""

    def rows(self) -> Iterator[Row]:
        """From the beginning; one that cannot be read is a row with its error."""

    def reads(self, path: Path) -> bool:
        """Whether a file is the source or would be one of its items."""

    def total(self) -> int | None:
        """How many rows there are, counted; None where that cannot be known."""


def fault(where: str, problem: str, raw: bytes = b"", *, hint: str | None = None, code: str = "invalid_row") -> Row:
    """A row that cannot be read; ``problem`` names places and kinds, never what the row holds."""
    return Row(where, raw=raw, error=QakError(f"{where}: {problem}", hint=hint, code=code))
