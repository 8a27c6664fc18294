"""``qak models``: what can be opened, and how the models compare."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import click

from qwen_agent_kit.catalog import ModelEntry
from qwen_agent_kit.cli.output import json_option, note, print_json, print_table, talk_only
from qwen_agent_kit.errors import UsageError
from qwen_agent_kit.placement.fetch import fetch_model, parse_reference
from qwen_agent_kit.settings import load_settings

__all__ = ["models_command"]


@click.group("models", invoke_without_command=True)
@click.option("--task", metavar="TASK", help="Only models good at chat, code, math, vision, audio or agents.")
@click.option("--kind", metavar="KIND", help="Only models that take text, image, audio or video.")
@click.option("--family", metavar="NAME", help="Only this family, as in qwen3.")
@click.option("--language", metavar="CODE", help="Only models that know it, as in de.")
@click.option("--licence", metavar="SPDX", help="Only models under it, as in Apache-2.0.")
@click.option("--largest", type=float, metavar="B", help="At most so many billion parameters.")
@click.option("--here", is_flag=True, help="Only models whose files are on this machine.")
@click.option("--matrix", is_flag=True, help="Compare: tasks, kinds and properties as columns.")
@json_option
@click.pass_context
def models_command(
    ctx: click.Context,
    task: str | None,
    kind: str | None,
    family: str | None,
    language: str | None,
    licence: str | None,
    largest: float | None,
    here: bool,
    matrix: bool,
    as_json: bool,
) -> None:
    """List the models that plugins offer by name and those that were released; filter and compare them."""
    if ctx.invoked_subcommand is not None:
        return
    with talk_only():
        rows = [entry.to_dict() for entry in _catalogue()]
    tests: tuple[tuple[Any, Callable[[dict[str, Any]], bool]], ...] = (
        (task, lambda row: task in row["tasks"]),
        (kind, lambda row: kind in row["kinds"]),
        (family, lambda row: row["family"] == family),
        (language, lambda row: language in row["languages"]),
        (licence, lambda row: row["licence"].casefold() == (licence or "").casefold()),
        (largest, lambda row: (row["parameters"] or 0) <= (largest or 0) * 1e9),
        (here or None, lambda row: row["here"]),
    )
    for asked, fits in tests:
        if asked is not None:
            rows = [row for row in rows if fits(row)]
    if as_json:
        print_json({"models": rows})
        return
    if matrix:
        _print_matrix(rows)
    else:
        _print_list(rows)
    note("`*`: sizes not verified against a public source. Directories, .gguf files and hub ids can be opened too")


def _print_list(rows: Sequence[Mapping[str, Any]]) -> None:
    print_table(
        ("model", "family", "kinds", "parameters", "context", "licence", "here", "how to get it"),
        [
            (
                row["name"] + _star(row),
                row["family"],
                " ".join(row["kinds"]),
                f"{row['parameters']:,}" if row["parameters"] else "",
                _context(row),
                row["licence"],
                "yes" if row["here"] else "no",
                row["hint"],
            )
            for row in rows
        ],
    )


def _print_matrix(rows: Sequence[Mapping[str, Any]]) -> None:
    tasks, kinds = ("chat", "code", "math", "vision", "audio", "agents"), ("image", "audio", "video")
    print_table(
        ("model", "B", "active B", "context", *tasks, *kinds, "thinks", "tools", "languages", "releases"),
        [
            (
                row["name"].partition("/")[2] + _star(row),
                f"{(row['parameters'] or 0) / 1e9:.3g}",
                f"{row['active'] / 1e9:.3g}" if row["active"] else "",
                _context(row),
                *("x" if name in row["tasks"] else "" for name in tasks),
                *("x" if name in row["kinds"] else "" for name in kinds),
                row["thinking"],
                row["dialect"],
                len(row["languages"]) or "",
                " ".join(row["releases"]),
            )
            for row in rows
        ],
    )


def _star(row: Mapping[str, Any]) -> str:
    return "" if row["verified"] else "*"


def _context(row: Mapping[str, Any]) -> str:
    reach = f" (to {row['extended']:,})" if row["extended"] > row["context"] else ""
    return f"{row['context']:,}{reach}" if row["context"] else ""


def _catalogue() -> tuple[ModelEntry, ...]:
    """What plugins offer, then what was released under other names."""
    from qwen_agent_kit.catalog.released import released

    offered = _entries()
    return (*offered, *(entry for entry in released() if not any(own.answers_to(entry.name) for own in offered)))


@models_command.command("fetch")
@click.argument("name")
@json_option
def fetch_command(name: str, as_json: bool) -> None:
    """Bring a model's files to this machine.

    NAME is one that `qak models` lists, or a model of a hub: [hf:|modelscope:]owner/name[:file][@revision], where file
    chooses one GGUF file. What was cut off is taken up again; what is here already is only checked for a newer commit.
    """
    with talk_only():
        path = _fetch(name)
    if as_json:
        print_json({"name": path[0], "path": path[1]})
    else:
        click.echo(path[1])


def _fetch(name: str) -> tuple[str, str]:
    """The model's own name, and where its files are now."""
    entries = _entries()
    entry = next((entry for entry in entries if entry.answers_to(name)), None)
    if entry is None and (reference := parse_reference(name)) is not None:
        return str(reference), str(fetch_model(reference, token=load_settings().hub_token, renew=True))
    if entry is None:
        known = ", ".join(repr(entry.name) for entry in entries) or "none"
        raise UsageError(f"no model is named {name!r}; installed: {known}", hint="`qak models` lists them")
    path = entry.locate() if entry.locate is not None else None
    if path is None:
        if entry.fetch is None:
            raise UsageError(f"`{entry.name}` cannot be fetched", hint=entry.hint or None)
        path = entry.fetch(note)
    return entry.name, str(path)


def _entries() -> tuple[ModelEntry, ...]:
    from qwen_agent_kit.host import Host

    return Host().entries
