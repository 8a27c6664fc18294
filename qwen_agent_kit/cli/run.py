"""``qak run``: one prompt, one answer."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

import click

from qwen_agent_kit.cli.options import agent_options, make_agent, media_parts, read_schema
from qwen_agent_kit.cli.output import json_option, note, print_json
from qwen_agent_kit.errors import UsageError
from qwen_agent_kit.events import RunDone, TextDelta, ToolCalled, ToolReturned

if TYPE_CHECKING:
    from qwen_agent_kit.events import Event, RunResult
    from qwen_agent_kit.messages import ToolCall

__all__ = ["run_command"]

MAX_STDIN = 16 * 2**20


@click.command("run")
@click.argument("prompt", required=False)
@agent_options
@click.option("--image", "images", multiple=True, type=click.Path(), help="A picture; repeatable.")
@click.option("--audio", multiple=True, type=click.Path(), help="A clip; repeatable.")
@click.option("--video", multiple=True, type=click.Path(), help="A video; repeatable.")
@click.option("--output-schema", metavar="SCHEMA", help="A JSON schema, or its file: the answer is such JSON.")
@click.option("--quiet", "-q", is_flag=True, help="Only the answer; no tool calls, no usage.")
@json_option
def run_command(
    prompt: str | None,
    images: tuple[str, ...],
    audio: tuple[str, ...],
    video: tuple[str, ...],
    output_schema: str | None,
    quiet: bool,
    as_json: bool,
    **options: Any,
) -> int:
    """Answer PROMPT (and what is piped in) and print the answer as it is written."""
    text = _prompt(prompt)
    output = read_schema(output_schema)
    agent = make_agent(options, output=output, approve=_ask if sys.stdin.isatty() else None)
    runner = agent.chat(session=options["session"]) if options["session"] else agent
    printer = _Printer(stream=not as_json and output is None, talk=not quiet and not as_json)
    result: RunResult | None = None
    for event in runner.stream(text, parts=media_parts(images, audio, video)):
        printer.show(event)
        if isinstance(event, RunDone):
            result = event.result
    assert result is not None, "a run ends with RunDone"
    if as_json:
        print_json(as_dict(result))
    else:
        printer.end(result)
    return 0 if result.stop_reason in ("done", "length") else 1


def as_dict(result: RunResult) -> dict[str, Any]:
    """The result as ``--json`` prints it."""
    from pydantic_core import to_jsonable_python

    return {
        "output": to_jsonable_python(result.output, fallback=str),
        "stop_reason": result.stop_reason,
        "steps": [step.to_dict() for step in result.steps],
        "usage": result.usage.to_dict(),
        "messages": [message.to_dict() for message in result.messages],
        "pending": [call.to_dict() for call in result.pending],
    }


def _prompt(prompt: str | None) -> str:
    piped = ""
    if not sys.stdin.isatty():
        piped = sys.stdin.buffer.read(MAX_STDIN + 1).decode("utf-8", errors="replace")
        if len(piped) > MAX_STDIN:
            raise UsageError(f"stdin has more than {MAX_STDIN} bytes", hint="pass a shorter text")
    text = "\n\n".join(part for part in (prompt, piped.strip("\n")) if part)
    if not text.strip():
        raise UsageError("there is no prompt", hint='qak run "..." or pipe a text in')
    return text


def _ask(call: ToolCall) -> bool:
    return click.confirm(f"run {call.name}({dict(call.arguments)})?", err=True)


class _Printer:
    """Writes the answer to stdout as it comes, and what happens besides to stderr."""

    def __init__(self, *, stream: bool, talk: bool) -> None:
        self._stream = stream
        self._talk = talk
        self._open_line = False

    def show(self, event: Event) -> None:
        match event:
            case TextDelta(text) if self._stream:
                click.echo(text, nl=False)
                self._open_line = not text.endswith("\n")
            case ToolCalled(call) if self._talk:
                self._line()
                note(f"-> {call.name}({', '.join(f'{k}={v!r}' for k, v in call.arguments.items())})")
            case ToolReturned(_, returned, _) if self._talk:
                note(f"<- {returned.text[:200]}{'...' if len(returned.text) > 200 else ''}")
            case _:
                pass

    def end(self, result: RunResult) -> None:
        if not self._stream:
            output = as_dict(result)["output"]
            click.echo(output if isinstance(output, str) else json.dumps(output, ensure_ascii=False, indent=2))
        self._line()
        if result.stop_reason == "approval":
            names = ", ".join(call.name for call in result.pending)
            note(f"stopped: {names} waits for approval")
            note("hint: --yes approves; with --session NAME the conversation can be resumed")
        elif result.stop_reason != "done":
            note(f"stopped: {result.stop_reason}")
        if self._talk:
            note(usage_line(result))

    def _line(self) -> None:
        if self._open_line:
            click.echo()
            self._open_line = False


def usage_line(result: RunResult) -> str:
    """What the run cost, in one line."""
    usage = result.usage
    parts = [f"{len(result.steps)} step{'s' if len(result.steps) != 1 else ''}"]
    if usage.prompt_tokens is not None:
        parts.append(f"prompt {usage.prompt_tokens} (cached {usage.cached_tokens})")
    if usage.generated_tokens is not None:
        forced = f", {usage.forced_tokens} forced" if usage.forced_tokens else ""
        parts.append(f"generated {usage.generated_tokens}{forced}")
    if usage.first_token_ms is not None:
        parts.append(f"first token {usage.first_token_ms:.0f} ms")
    if usage.decode_ms and usage.generated_tokens:
        parts.append(f"{usage.generated_tokens / usage.decode_ms * 1000:.0f} tokens/s")
    return " · ".join(parts)
