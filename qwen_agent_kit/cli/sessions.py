"""``qak sessions``: the conversations that are kept."""

from __future__ import annotations

import time

import click

from qwen_agent_kit.cli.output import json_option, note, print_json, print_table
from qwen_agent_kit.errors import UsageError
from qwen_agent_kit.store import Store

__all__ = ["sessions_command"]


@click.group("sessions", invoke_without_command=True)
@json_option
@click.pass_context
def sessions_command(ctx: click.Context, as_json: bool) -> None:
    """List the conversations, the latest first."""
    if ctx.invoked_subcommand is not None:
        return
    infos = Store().list()
    if as_json:
        print_json({"sessions": [info.to_dict() for info in infos]})
        return
    print_table(
        ("session", "messages", "waiting", "last used"),
        [(info.name, info.messages, info.waiting or "", _when(info.updated)) for info in infos],
    )


@sessions_command.command("show")
@click.argument("name")
@json_option
def show_command(name: str, as_json: bool) -> None:
    """Print a conversation."""
    store = Store()
    if as_json:
        print_json(store.export(name))
        return
    stored = store.load(name)
    if not stored.messages:
        raise UsageError(f"there is no session {name!r}", hint="`qak sessions` lists them")
    for message in stored.messages:
        text = message.tool_result.text if message.tool_result else message.text
        calls = "".join(f"\n-> {call.name}({dict(call.arguments)})" for call in message.tool_calls)
        click.echo(f"{message.role}: {text}{calls}")


@sessions_command.command("export")
@click.argument("name")
def export_command(name: str) -> None:
    """Print a conversation as JSON, media as base64."""
    print_json(Store().export(name))


@sessions_command.command("delete")
@click.argument("names", nargs=-1, required=True)
def delete_command(names: tuple[str, ...]) -> None:
    """Delete conversations."""
    store = Store()
    for name in names:
        store.delete(name)
        note(f"deleted {name}")


@sessions_command.command("purge")
@click.option("--older-than", type=float, metavar="DAYS", help="Only those not used for so many days.")
@click.option("--keep", type=click.IntRange(min=0), metavar="N", help="Keep the latest N.")
@click.option("--all", "everything", is_flag=True, help="All of them.")
@json_option
def purge_command(older_than: float | None, keep: int | None, everything: bool, as_json: bool) -> None:
    """Delete many conversations and give the space back."""
    if everything and (older_than is not None or keep is not None):
        raise UsageError("`--all` goes alone; found another filter beside it")
    if not everything and older_than is None and keep is None:
        raise UsageError("which conversations?", hint="--older-than DAYS, --keep N or --all")
    seconds = None if older_than is None else older_than * 86400
    gone = Store().purge(older_than=seconds, keep=0 if everything else keep)
    if as_json:
        print_json({"deleted": list(gone)})
    else:
        note(f"deleted {len(gone)}")


def _when(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))
