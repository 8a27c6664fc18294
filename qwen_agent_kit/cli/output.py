"""How commands show data: a table for people, JSON with a schema version for programs."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import click

__all__ = ["SCHEMA_VERSION", "json_option", "note", "print_json", "print_table"]

SCHEMA_VERSION = 1

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def print_json(data: Mapping[str, Any]) -> None:
    """One object on stdout, with ``schema_version``."""
    text = json.dumps({**data, "schema_version": SCHEMA_VERSION}, ensure_ascii=False, indent=2, default=str)
    click.echo(text.encode("utf-8", errors="replace").decode("utf-8"))


def print_table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """A table on stdout."""
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*("" if cell is None else _escape(str(cell)) for cell in row))
    console = Console(file=sys.stdout, width=None if sys.stdout.isatty() else 160)
    console.print(table)


def note(text: str) -> None:
    """A line of talk, on stderr."""
    click.echo(text, err=True)


def _escape(text: str) -> str:
    from rich.markup import escape

    return escape("".join(c if c.isprintable() or c == "\n" else "\N{REPLACEMENT CHARACTER}" for c in text))
