"""``qak sessions``: the conversations that are kept."""

from __future__ import annotations

import sys
import time

import click

from qwen_agent_kit.backends import Backend
from qwen_agent_kit.cli.approval import call_line
from qwen_agent_kit.cli.output import json_option, note, plain, print_json, print_table
from qwen_agent_kit.errors import UsageError
from qwen_agent_kit.messages import Media
from qwen_agent_kit.plugins import call_list, load
from qwen_agent_kit.store import Store

__all__ = ["sessions_command"]


@click.group("sessions", invoke_without_command=True)
@json_option
@click.pass_context
def sessions_command(ctx: click.Context, as_json: bool) -> None:
    """List the conversations, the latest first."""
    if ctx.invoked_subcommand is not None:
        return
    _list(as_json)


@sessions_command.command("list")
@json_option
def list_command(as_json: bool) -> None:
    """List the conversations, the latest first."""
    _list(as_json)


def _list(as_json: bool) -> None:
    infos = Store().list()
    if as_json:
        print_json({"sessions": [info.to_dict() for info in infos]})
        return
    if not infos:
        note("no conversation is kept; `qak run --session NAME` keeps one")
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
        print_json(store.export(name, _part_types(store, name)))
        return
    stored = store.load(name, _part_types(store, name))
    if not stored.messages:
        raise UsageError(f"there is no session {name!r}", hint="`qak sessions` lists them")
    clean = plain if sys.stdout.isatty() else str
    for message in stored.messages:
        text = message.tool_result.text if message.tool_result else message.text
        media = "".join(f" [{part.kind}]" for part in message.media)
        calls = "".join(f"\n-> {call_line(call)}" for call in message.tool_calls)
        click.echo(clean(f"{message.role}: {text}{media}{calls}"), color=True)
    if stored.pending is not None:
        note(f"waits for approval: {', '.join(stored.pending.waiting)}")


@sessions_command.command("export")
@click.argument("name")
def export_command(name: str) -> None:
    """Print a conversation as JSON, media as base64."""
    store = Store()
    print_json(store.export(name, _part_types(store, name)))


@sessions_command.command("delete")
@click.argument("names", nargs=-1, required=True)
@json_option
def delete_command(names: tuple[str, ...], as_json: bool) -> None:
    """Delete conversations, and the media that no other one holds."""
    store = Store()
    for name in names:
        store.position(name)  # a name that could be none is refused before anything is deleted
    for name in names:
        store.delete(name)
        note(f"deleted {name}")
    if as_json:
        print_json({"deleted": list(names)})


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


def _part_types(store: Store, name: str) -> tuple[type[Media], ...]:
    """The part types that installed backends bring; a name without a conversation needs none."""
    if not store.position(name).count:
        return ()
    backends = call_list(load("backends"), "register_backends", Backend, strict=False)
    return tuple(part for backend in backends for part in backend.parts)


def _when(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))
