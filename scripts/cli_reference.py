"""Write docs/reference/cli.md from the commands' own ``--help``: ``python scripts/cli_reference.py``."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import click
from click.testing import CliRunner

from qwen_agent_kit.cli import CORE_COMMANDS, cli

PAGE = Path(__file__).resolve().parents[1] / "docs" / "reference" / "cli.md"
PLUGINS = re.compile(r"\(from [\w-]+\)$")

INTRODUCTION = """\
# Command line

`qak`, also `python -m qwen_agent_kit`. Data goes to stdout and talk to stderr; `--json` prints one object with a
`schema_version`. Exit codes: 0 done, 1 failed or stopped, 2 asked wrongly. `NO_COLOR` is respected. Installed plugins
may add commands; `qak --help` lists them.

This page is written by `python scripts/cli_reference.py`.

## Calls that wait for approval

A tool that is marked with `side_effects=True` runs only after somebody said so. `qak chat`, and `qak run` on a
terminal, ask: `y` runs the call, `n` or Enter refuses it, anything else refuses it with that as the reason, which the
model reads. `--yes` approves every call. Where nobody can be asked, the run stops with exit code 1 and `stop_reason`
`approval`. With `--session` it goes on later, in another process too:

```bash
qak run "Clean up." --session tidy --tool files.py:delete              # stops; stderr names call_1
qak run --session tidy --tool files.py:delete --approve call_1         # or --approve all
qak run --session tidy --tool files.py:delete --refuse call_1="keep it"
```

`--resume` asks about the waiting calls on the terminal, and goes on where a process died in the middle of a turn.

## `qak run --json`

| key | what it holds |
|---|---|
| `output` | the answer's text, or the JSON that `--output-schema` asked for; null where there is none |
| `stop_reason` | `done`, `length`, `limit:<name>`, `repeated_call`, `approval`, `cancelled` or `error` |
| `steps` | one object per turn of the model: its message, the tools' results, usage, notes |
| `usage` | the sum over the steps; null is what the engine cannot know |
| `messages` | the whole conversation |
| `pending` | the calls that wait for approval |
| `schema_version` | 1 |

"""


def page() -> str:
    """The whole page."""
    text = [INTRODUCTION]
    for path in _paths():
        # What installed plugins add differs from machine to machine.
        lines = [line.rstrip() for line in _help(path).splitlines() if not PLUGINS.search(line)]
        text.append(f"## `{' '.join(('qak', *path))}`\n\n```text\n" + "\n".join(lines) + "\n```\n\n")
    return "".join(text).rstrip() + "\n"


def _paths() -> Iterator[tuple[str, ...]]:
    """The command line itself, the core's commands and theirs."""
    context = click.Context(cli)
    yield ()
    for name in cli.list_commands(context):
        if name in CORE_COMMANDS:
            yield (name,)
            yield from ((name, inner) for inner in sorted(getattr(cli.get_command(context, name), "commands", {})))


def _help(path: tuple[str, ...]) -> str:
    done = CliRunner().invoke(cli, [*path, "--help"], prog_name="qak", terminal_width=100, max_content_width=100)
    assert done.exit_code == 0, done.output
    return done.output


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
