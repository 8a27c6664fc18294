"""A line on stderr per hook call, with the time it took: names and counts, never contents.

Switched on with ``QAK_TRACE=1``, or for one command with ``qak trace COMMAND...``.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Generator
from datetime import datetime
from typing import TYPE_CHECKING, Any

from qwen_agent_kit import hookimpl

if TYPE_CHECKING:
    from collections.abc import Sequence

    import click

    from qwen_agent_kit import Message, Tool, ToolCall, ToolResult
    from qwen_agent_kit.backends import Backend, ChatRequest, Choice
    from qwen_agent_kit.events import Step

QAK_API = 1
VARIABLE = "QAK_TRACE"


def _on() -> bool:
    return os.environ.get(VARIABLE, "").lower() not in ("", "0", "false", "no", "off")


def _write(hook: str, began: float, **facts: Any) -> None:
    """One line: wall clock, how long the call took, the hook, the facts."""
    if not _on():
        return
    took = (time.perf_counter() - began) * 1000
    shown = " ".join(f"{name}={_word(value)}" for name, value in facts.items() if value is not None)
    sys.stderr.write(f"trace {datetime.now().astimezone():%H:%M:%S.%f} {took:8.1f} ms  {hook:<14} {shown}\n")


def _word(value: Any) -> str:
    """A value as one printable word, so that a name can neither break the line nor move the cursor."""
    return "".join(c if c.isprintable() and not c.isspace() else "_" for c in str(value))[:64]


@hookimpl(wrapper=True, tryfirst=True)
def choose_backend(
    messages: Sequence[Message], backends: Sequence[Backend], current: str | None
) -> Generator[None, Choice | None, Choice | None]:
    """Show which backend was chosen, and how many there were to choose from."""
    began = time.perf_counter()
    choice = yield
    chosen = choice.backend if choice else "(left to the kit)"
    _write("choose_backend", began, messages=len(messages), backends=len(backends), current=current, chosen=chosen)
    return choice


@hookimpl(wrapper=True, tryfirst=True)
def run_tool(call: ToolCall, tool: Tool) -> Generator[None, ToolResult | None, ToolResult | None]:
    """Show which tool ran, and whether it went well."""
    began = time.perf_counter()
    result = yield
    outcome = "(left to the kit)" if result is None else "error" if result.is_error else "ok"
    _write("run_tool", began, tool=tool.name, call=call.id, outcome=outcome)
    return result


@hookimpl(wrapper=True, tryfirst=True)
def before_step(request: ChatRequest) -> Generator[None, list[None], list[None]]:
    """Show the size of what is about to be sent."""
    began = time.perf_counter()
    results = yield
    facts = {"messages": len(request.messages), "tools": len(request.tools), "tool_choice": request.tool_choice}
    _write("before_step", began, **facts)
    return results


@hookimpl(wrapper=True, tryfirst=True)
def on_step(step: Step) -> Generator[None, list[Any], list[Any]]:
    """Show how the step ended and what it cost."""
    began = time.perf_counter()
    results = yield
    usage = step.usage
    facts = {"step": step.index, "finish": step.finish, "calls": len(step.results), "prompt": usage.prompt_tokens}
    _write("on_step", began, **facts, cached=usage.cached_tokens, generated=usage.generated_tokens)
    return results


@hookimpl
def register_commands(cli: click.Group) -> None:
    """Add ``qak trace COMMAND...``: run another command with the trace on."""
    import click

    @cli.command("trace", context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
    @click.argument("arguments", nargs=-1, type=click.UNPROCESSED, required=True, metavar="COMMAND...")
    def trace(arguments: tuple[str, ...]) -> int:
        """Run another qak command with the trace of hook calls on."""
        command = [sys.executable, "-m", "qwen_agent_kit", *arguments]
        return subprocess.run(command, env={**os.environ, VARIABLE: "1"}, check=False).returncode  # noqa: S603  # ours
