"""``qak plugins``: what is installed, what it does, and what is wrong with it."""

from __future__ import annotations

from typing import Any

import click

from qwen_agent_kit.cli.output import json_option, note, print_json, print_table, talk_only
from qwen_agent_kit.errors import UsageError

__all__ = ["plugins_command"]


@click.command("plugins")
@click.option("--hook", metavar="NAME", help="Only the plugins that implement this hook.")
@json_option
def plugins_command(hook: str | None, as_json: bool) -> None:
    """List the installed plugins, their hooks, and what is wrong with them.

    Imports every plugin that QAK_PLUGINS and QAK_PLUGINS_OFF allow.
    """
    from qwen_agent_kit.cli import CORE_COMMANDS
    from qwen_agent_kit.plugins import HOOKS, inventory

    if hook is not None and hook not in HOOKS:
        raise UsageError(f"no hook is named {hook!r}; hooks: {', '.join(sorted(HOOKS))}")
    with talk_only():  # what a plugin prints when imported is talk, not data
        rows = inventory(core_commands=CORE_COMMANDS)
    shown = [row for row in rows if hook is None or hook in row.hooks]
    if as_json:
        print_json({"plugins": [row.to_dict() for row in shown]})
        return
    _print(shown)
    if wrong := [row.distribution for row in rows if not row.ok]:
        note(f"{len(wrong)} of {len(rows)} need attention: {', '.join(wrong)}")


def _print(rows: list[Any]) -> None:
    if not rows:
        note("no plugin is installed")
        note("hint: from a checkout, `make wheels`, then pip install --find-links dist qwen-agent-kit-text")
        return
    print_table(
        ("plugin", "version", "kinds", "hooks", "state"),
        [(row.distribution, row.version, " ".join(row.kinds), " ".join(row.hooks), row.state) for row in rows],
    )
    for row in rows:
        if row.error:
            click.echo(f"\n{row.distribution}: {row.error}")
            if row.cure:
                click.echo(f"hint: {row.cure}")
