"""Calls that wait for a person: asked about on the terminal, or decided by options."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from qwen_agent_kit.cli.output import note, plain
from qwen_agent_kit.errors import UsageError

if TYPE_CHECKING:
    from qwen_agent_kit.messages import ToolCall

__all__ = ["ask_person", "call_line", "decisions", "person_there"]

ALL = "all"


def person_there() -> bool:
    """Whether somebody can be asked."""
    return sys.stdin is not None and not sys.stdin.closed and sys.stdin.isatty()


def ask_person(call: ToolCall) -> bool | str | None:
    """Ask on the terminal: yes, no or a reason; None, which suspends the run, where the terminal is at its end."""
    note(f"{call_line(call)} wants to run")
    try:
        click.echo("run it? [y/N, or why not] ", nl=False, err=True)
        answer = sys.stdin.readline()
    except (OSError, UnicodeError):
        return None
    if not answer:
        note("")
        return None
    answer = answer.strip()
    if answer.lower() in ("y", "yes"):
        return True
    return False if answer.lower() in ("", "n", "no") else answer


def call_line(call: ToolCall) -> str:
    """A call as Python would write it."""
    return plain(f"{call.name}({', '.join(f'{key}={value!r}' for key, value in call.arguments.items())})")


def decisions(pending: tuple[ToolCall, ...], options: Mapping[str, Any], *, ask: bool) -> dict[str, bool | str]:
    """What was decided about the waiting calls, by id."""
    waiting_ids = [call.id for call in pending]
    decided: dict[str, bool | str] = {}
    for given in options["approve"]:
        decided.update(dict.fromkeys(waiting_ids if given == ALL else [given], True))
    for given in options["refuse"]:
        name, equals, why = (given, "", "") if given in waiting_ids else given.partition("=")
        del equals
        for ident in waiting_ids if name == ALL else [name]:
            if ident in decided:
                raise UsageError(f"call {ident!r} is both approved and refused")
            decided[ident] = why or False
    if unknown := sorted(set(decided) - set(waiting_ids)):
        known = ", ".join(map(repr, waiting_ids)) or "none"
        raise UsageError(f"no call {unknown[0]!r} waits for approval; waiting: {known}")
    if options["resume"]:
        for call in pending:
            if call.id in decided:
                continue
            answer = True if options["yes"] else ask_person(call) if ask else None
            if answer is not None:
                decided[call.id] = answer
    if pending and not decided:
        raise UsageError(
            f"calls wait for approval: {', '.join(waiting_ids)}", hint="--approve ID, --refuse ID or --yes"
        )
    return decided
