"""``qak bench``: what the kit itself costs, measured here.

A measurement is a function that takes keyword arguments and returns rows; it becomes a command by a line in the table
below.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from qwen_agent_kit.cli.output import json_option, note, print_json, print_table

if TYPE_CHECKING:
    from qwen_agent_kit.bench.rows import Row

__all__ = ["bench_command"]

_STEPS = click.option(
    "--steps",
    type=click.IntRange(min=40),
    default=1000,
    show_default=True,
    metavar="N",
    help="How many steps the conversation grows to.",
)
_REPEATS = click.option(
    "--repeats",
    type=click.IntRange(min=1),
    default=3,
    show_default=True,
    metavar="N",
    help="How often each part runs; the best run counts.",
)

_TIMES = click.option(
    "--times",
    type=click.IntRange(min=1),
    default=15,
    show_default=True,
    metavar="N",
    help="How many fresh processes; the median counts.",
)

_BENCHES: dict[str, tuple[str, str, tuple[Callable[..., Any], ...]]] = {
    "loop": ("qwen_agent_kit.bench.loop:measure", "The agent's loop, the model's work left out.", (_STEPS, _REPEATS)),
    "start": ("qwen_agent_kit.bench.start:measure", "How soon importing, --help and a cold run are there.", (_TIMES,)),
}


@click.group("bench")
def bench_command() -> None:
    """Measure what the kit itself costs; exit code 1 where a promise is missed."""


def _add(name: str, place: str, help_line: str, options: tuple[Callable[..., Any], ...]) -> None:
    def run(as_json: bool, **given: Any) -> int:
        module, _, function = place.partition(":")
        note("measuring; a machine that is busy with something else gives larger numbers")
        return _show(getattr(importlib.import_module(module), function)(**given), as_json)

    run.__doc__ = help_line
    command = json_option(run)
    for option in reversed(options):
        command = option(command)
    bench_command.command(name)(command)


def _show(rows: list[Row], as_json: bool) -> int:
    if as_json:
        print_json({"rows": [{**asdict(row), "ok": row.ok} for row in rows]})
    else:
        print_table(
            ("what", "value", "unit", "promised", ""),
            [
                (row.name, f"{row.value:.4f}", row.unit, "" if row.limit is None else f"{row.limit:g}", _verdict(row))
                for row in rows
            ],
        )
    return 0 if all(row.ok for row in rows) else 1


def _verdict(row: Row) -> str:
    if row.limit is None:
        return ""
    return "ok" if row.ok else "missed"


for _name, (_place, _help, _options) in _BENCHES.items():
    _add(_name, _place, _help, _options)
