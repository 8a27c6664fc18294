"""The command line, ``qak``: data on stdout, talk on stderr, exit codes 0 (done), 1 (failed) and 2 (asked wrongly).

Commands are imported when they are run; ``qak --help`` knows their names and one-line helps from the table below, and
those of plugins from their metadata.
"""

from __future__ import annotations

import importlib
import io
import os
import sys
from collections.abc import Sequence

import click

from qwen_agent_kit.cli import process
from qwen_agent_kit.errors import QakError, UsageError

__all__ = ["CORE_COMMANDS", "cli", "main"]

_CORE = {
    "run": ("qwen_agent_kit.cli.run:run_command", "Answer one prompt."),
    "pipeline": ("qwen_agent_kit.cli.pipeline:pipeline_command", "Run many items, into a file that goes on."),
    "chat": ("qwen_agent_kit.cli.chat:chat_command", "Talk in the terminal."),
    "plan": ("qwen_agent_kit.cli.plan:plan_command", "Show what a model needs and where it goes, nothing loaded."),
    "recommend": ("qwen_agent_kit.cli.recommend:recommend_command", "Rank the models that fit for a task."),
    "models": ("qwen_agent_kit.cli.models:models_command", "List models, compare them, fetch one."),
    "plugins": ("qwen_agent_kit.cli.plugins:plugins_command", "List plugins, their hooks and their faults."),
    "sessions": ("qwen_agent_kit.cli.sessions:sessions_command", "List, show, export, delete conversations."),
    "doctor": ("qwen_agent_kit.cli.doctor:doctor_command", "Check this installation."),
    "bench": ("qwen_agent_kit.cli.bench:bench_command", "Measure."),
    "new-plugin": ("qwen_agent_kit.cli.new_plugin:new_plugin_command", "Write a plugin to start from."),
}


CORE_COMMANDS = frozenset(_CORE)


class _Lazy(click.Group):
    """Imports a command when it is run, not when it is listed."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        del ctx
        return [*_CORE, *sorted(set(_plugin_commands()) - set(_CORE))]

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        del ctx
        if name in _CORE:
            module, _, attribute = _CORE[name][0].partition(":")
            command = getattr(importlib.import_module(module), attribute)
            assert isinstance(command, click.Command), "the table above names commands"
            return command
        from qwen_agent_kit.plugins import command

        found: click.Command | None = command(name)
        return found

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        rows = [(name, help_line) for name, (_, help_line) in _CORE.items()]
        theirs = _plugin_commands()
        rows += [(name, f"(from {theirs[name]})") for name in self.list_commands(ctx) if name not in _CORE]
        with formatter.section("Commands"):
            formatter.write_dl(rows)


def _plugin_commands() -> dict[str, str]:
    from qwen_agent_kit.plugins import command_names

    return command_names()


@click.group(cls=_Lazy, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="qwen-agent-kit", prog_name="qak")
def cli() -> None:
    """Agents on Qwen models: text, vision, audio, code and math, on your own machine."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run ``qak`` and exit."""
    process.begin()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a character that the terminal cannot show ends no answer
    try:
        code = cli.main(args=arguments, prog_name="qak", standalone_mode=False)
        if sys.stdout is not None:
            sys.stdout.flush()
    except (click.exceptions.Abort, KeyboardInterrupt):
        code = _tell("stopped")
    except click.ClickException as error:
        code = _misused(error)
    except UsageError as error:
        code = _tell(f"error: {error}", 2)
    except QakError as error:
        code = _tell(f"error: {error}", 2 if error.code == "model_not_found" else 1)  # a path that is not there
    except OSError as error:
        code = _system(error)
    except Exception as error:  # noqa: BLE001  # a fault of ours or of a plugin: named by place, its text may be private
        code = _fault(error)
    sys.exit(code if isinstance(code, int) else 0)


def _misused(error: click.ClickException) -> int:
    context = error.ctx if isinstance(error, click.UsageError) else None
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        error.show()
        return 2
    hint = f"\nhint: `{context.command_path} --help` shows what it takes" if context is not None else ""
    return _tell(f"error: {error.format_message()}{hint}", 2)


def _tell(text: str, code: int = 1) -> int:
    from qwen_agent_kit.cli.output import note

    note(text)
    return code


def _system(error: OSError) -> int:
    """The system refused something; where that was stdout, nothing more can be said there, not even at exit."""
    if error.filename is None and sys.stdout is not None:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if isinstance(error, BrokenPipeError):
        return 1
    what = f"cannot use `{error.filename}`" if error.filename is not None else "cannot read or write"
    return _tell(f"error: {what}: {error.strerror or type(error).__name__}")


def _fault(error: Exception) -> int:
    if os.environ.get("QAK_TRACEBACK"):
        raise error
    from qwen_agent_kit.cli.output import fault

    return _tell(fault(error))
