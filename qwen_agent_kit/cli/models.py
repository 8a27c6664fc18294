"""``qak models`` and ``qak plan``: what can be opened, and what it needs."""

from __future__ import annotations

import click

from qwen_agent_kit.catalog import ModelEntry
from qwen_agent_kit.cli.options import quant_option
from qwen_agent_kit.cli.output import json_option, note, print_json, print_table, talk_only
from qwen_agent_kit.errors import UsageError

__all__ = ["models_command", "plan_command"]


@click.group("models", invoke_without_command=True)
@json_option
@click.pass_context
def models_command(ctx: click.Context, as_json: bool) -> None:
    """List the models that installed plugins offer by name."""
    if ctx.invoked_subcommand is not None:
        return
    with talk_only():
        rows = [entry.to_dict() for entry in _entries()]
    if as_json:
        print_json({"models": rows})
        return
    print_table(
        ("model", "family", "kinds", "parameters", "context", "licence", "here", "how to get it"),
        [
            (
                row["name"],
                row["family"],
                " ".join(row["kinds"]),
                f"{row['parameters']:,}" if row["parameters"] else "",
                row["context"],
                row["licence"],
                "yes" if row["here"] else "no",
                row["hint"],
            )
            for row in rows
        ],
    )
    note("a directory, a .gguf file and a hub id (owner/name) can be opened as well")


@models_command.command("fetch")
@click.argument("name")
@json_option
def fetch_command(name: str, as_json: bool) -> None:
    """Bring a model's files to this machine."""
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
    if entry is None:
        known = ", ".join(repr(entry.name) for entry in entries) or "none"
        raise UsageError(f"no model is named {name!r}; installed: {known}", hint="`qak models` lists them")
    path = entry.locate() if entry.locate is not None else None
    if path is None:
        if entry.fetch is None:
            raise UsageError(f"`{entry.name}` cannot be fetched", hint=entry.hint or None)
        path = entry.fetch(note)
    return entry.name, str(path)


@click.command("plan")
@click.argument("model", required=False)
@click.option("--context", type=int, metavar="N", help="Positions per conversation.")
@quant_option
@json_option
def plan_command(model: str | None, context: int | None, quant: str | None, as_json: bool) -> int:
    """Show what MODEL needs on this machine, nothing loaded."""
    from qwen_agent_kit.host import Host

    with talk_only():
        made = Host(quant=quant).plan(model, context=context)
    if as_json:
        print_json(made.to_dict())
    else:
        click.echo(str(made))
    return 0 if made.feasible else 1


def _entries() -> tuple[ModelEntry, ...]:
    from qwen_agent_kit.host import Host

    return Host().entries
