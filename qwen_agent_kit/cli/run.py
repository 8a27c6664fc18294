"""``qak run``: one prompt, one answer."""

from __future__ import annotations

import contextlib
import json
import os
import select
import stat
import sys
from collections.abc import Callable, Generator, Mapping
from contextlib import AbstractContextManager
from typing import IO, TYPE_CHECKING, Any

import click

from qwen_agent_kit.cli.approval import ask_person, call_line, decisions, person_there
from qwen_agent_kit.cli.options import agent_options, media_parts, open_agent, read_schema
from qwen_agent_kit.cli.output import json_option, note, plain, print_json, talk_only, waiting
from qwen_agent_kit.errors import OutputError, UsageError
from qwen_agent_kit.events import ReasoningDelta, RunDone, TextDelta, ToolCalled, ToolReturned

if TYPE_CHECKING:
    from qwen_agent_kit.agent import Agent, Chat
    from qwen_agent_kit.events import Event, RunResult
    from qwen_agent_kit.messages import Media, ToolCall

__all__ = ["run_command", "usage_line"]

MAX_STDIN = 16 * 2**20


@click.command("run")
@click.argument("prompt", required=False)
@agent_options
@click.option("--image", "images", multiple=True, metavar="PATH", help="A picture; repeatable.")
@click.option("--audio", multiple=True, metavar="PATH", help="A clip; repeatable.")
@click.option("--video", multiple=True, metavar="PATH", help="A video; repeatable.")
@click.option("--output-schema", metavar="SCHEMA", help="A JSON schema, or its file: the answer is such JSON.")
@click.option("--resume", is_flag=True, help="Go on where --session stopped; a person is asked about waiting calls.")
@click.option("--approve", multiple=True, metavar="ID", help="Resume, and run this waiting call; `all` for every one.")
@click.option("--refuse", multiple=True, metavar="ID[=WHY]", help="Resume, and refuse this waiting call; `all` too.")
@click.option("--quiet", "-q", is_flag=True, help="Only the answer; no tool calls, no usage.")
@json_option
def run_command(prompt: str | None, quiet: bool, as_json: bool, **options: Any) -> int:
    """Answer PROMPT (and what is piped in) and print the answer as it is written.

    \b
    --json prints one object: output, stop_reason, steps, usage, messages,
    pending (the calls that wait for approval) and schema_version.

    A call of a tool with side effects is put to you where stdin is a terminal. Elsewhere the run stops with
    stop_reason "approval" and exit code 1; with --session it can be resumed later, by another process too:

    \b
      qak run --session NAME --tool ... --approve CALL_ID
      qak run --session NAME --tool ... --refuse CALL_ID="not this file"

    Exit codes: 0 answered, 1 failed or stopped, 2 asked wrongly. A text that --max-tokens cut off is an answer, and
    stderr says so; with --output-schema it is none: half of a JSON value is not printed, and the exit code is 1.
    """  # noqa: D301  # click reads the control character itself: it keeps the lines that follow as they are
    resumed = bool(options["resume"] or options["approve"] or options["refuse"])
    media = media_parts(options["images"], options["audio"], options["video"])
    output = read_schema(options["output_schema"])
    text = None if resumed else _prompt(prompt)
    if resumed:
        _check_resume(prompt, media, options["session"])
    with waiting("waiting for the model") as here, talk_only() as out, _agent(options, output, here) as agent:
        chat = agent.chat(session=options["session"]) if options["session"] is not None else None
        printer = _Printer(out, stream=not as_json and output is None, talk=not quiet and not as_json)
        try:
            result = _drain(_events(agent, chat, text, media, options), printer, here)
        except OutputError as error:
            if as_json and error.result is not None:
                print_json(as_dict(error.result), out)
            raise
        if as_json:
            print_json(as_dict(result), out)
        else:
            printer.end(result, options["session"])
    if output is not None and result.stop_reason == "length":
        note("error: no JSON that fits --output-schema came: the answer was cut off\nhint: a larger --max-tokens")
        return 1
    return 0 if result.stop_reason in ("done", "length") else 1


def _events(
    agent: Agent, chat: Chat | None, text: str | None, media: list[Media], options: Mapping[str, Any]
) -> Generator[Event, None, None]:
    """The run's events; a resumed one where there is no text."""
    if text is not None:
        return (chat or agent).stream(text, parts=media)
    assert chat is not None, "only a conversation is resumed"
    if not chat.messages:
        hint = "`qak sessions` lists them"
        raise UsageError(f"there is no session {chat.session!r}", hint=hint, code="session_not_found")
    return chat.stream_resume(decisions(chat.pending, options, ask=person_there()) or None)


def _agent(options: dict[str, Any], output: Any, here: Callable[[], None]) -> AbstractContextManager[Agent]:
    left = False  # after Ctrl-C nothing more is asked: the run waits, to be resumed

    def ask(call: ToolCall) -> bool | str | None:
        nonlocal left
        here()
        try:
            return None if left else ask_person(call)
        except KeyboardInterrupt:
            left = True
            note("")
            return None

    return open_agent(options, output=output, ask=ask if person_there() else None)


def _drain(stream: Generator[Event, None, None], printer: _Printer, here: Callable[[], None]) -> RunResult:
    """Show the events; on Ctrl-C or an error, model and tools are stopped before it goes on."""
    result: RunResult | None = None
    with contextlib.closing(stream):
        try:
            for event in stream:
                here()
                printer.show(event)
                if isinstance(event, RunDone):
                    result = event.result
        finally:
            printer.line()
    assert result is not None, "a run ends with RunDone"
    return result


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


# --- what is asked ----------------------------------------------------------------------------------------------------


def _prompt(prompt: str | None) -> str:
    if prompt is not None and not prompt.isascii():
        try:
            prompt.encode("utf-8")
        except UnicodeEncodeError as error:
            raise UsageError("the prompt is not UTF-8", hint="check the terminal's encoding") from error
    text = "\n\n".join(part for part in (prompt, _piped().strip("\n")) if part)
    if not text.strip():
        raise UsageError("there is no prompt", hint='qak run "..." or pipe a text in')
    return text


def _piped() -> str:
    """What was piped in; nothing is waited for where stdin is a terminal or closed."""
    if sys.stdin is None or sys.stdin.closed or sys.stdin.isatty():
        return ""
    try:
        if sys.platform != "win32" and stat.S_ISFIFO(os.fstat(sys.stdin.fileno()).st_mode):
            ready, _, _ = select.select([sys.stdin], [], [], 1.0)
            if not ready:
                note("reading stdin until it ends; `< /dev/null` gives none")
        data = sys.stdin.buffer.read(MAX_STDIN + 1)
    except OSError as error:
        raise UsageError(f"cannot read stdin: {error.strerror}", hint="`< /dev/null` gives none") from error
    if len(data) > MAX_STDIN:
        raise UsageError(f"stdin has more than {MAX_STDIN} bytes", hint="pass a shorter text")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        hint = "convert it, as in `iconv -f latin1 -t utf-8`; pictures and clips go with --image and --audio"
        raise UsageError(f"stdin is not UTF-8: byte {error.start} is {data[error.start]:#04x}", hint=hint) from error


def _check_resume(prompt: str | None, media: list[Media], session: str | None) -> None:
    if session is None:
        raise UsageError("resume what?", hint="qak run --session NAME --approve CALL_ID")
    if prompt is not None or media:
        raise UsageError("a resumed run takes no prompt and no media", hint="run again for the next message")


# --- what is shown ----------------------------------------------------------------------------------------------------


class _Printer:
    """Writes the answer to stdout as it comes, and what happens besides to stderr."""

    def __init__(self, out: IO[str], *, stream: bool, talk: bool) -> None:
        self._out = out
        self._clean = plain if out is not None and out.isatty() else str
        self._stream = stream
        self._talk = talk
        self._thoughts = talk and sys.stderr is not None and sys.stderr.isatty()
        self._open_line: IO[str] | None = None

    def show(self, event: Event) -> None:
        match event:
            case TextDelta(text) if self._stream:
                self._write(self._out, self._clean(text))
            case ReasoningDelta(text) if self._thoughts:
                self._write(sys.stderr, plain(text))
            case ToolCalled(call) if self._talk:
                self.line()
                note(f"-> {call_line(call)}")
            case ToolReturned(call, returned, _) if self._talk:
                self.line()
                mark = "failed: " if returned.is_error else ""
                note(f"<- {call.name}: {mark}{returned.text[:200]}{'...' if len(returned.text) > 200 else ''}")
            case _:
                pass

    def end(self, result: RunResult, session: str | None) -> None:
        """The answer where it was not streamed, why the run stopped, and what it cost."""
        if not self._stream and result.output is not None:
            output = as_dict(result)["output"]
            text = output if isinstance(output, str) else json.dumps(output, ensure_ascii=False, indent=2)
            click.echo(self._clean(text), file=self._out, color=True)
        if result.stop_reason == "approval":
            for call in result.pending:
                note(f"waits for approval: {call.id}: {call_line(call)}")
            note(_how_to_approve(result, session))
        elif result.stop_reason != "done":
            cut = "; the answer was cut off, --max-tokens N allows more" if result.stop_reason == "length" else ""
            note(f"stopped: {result.stop_reason}{cut if self._stream else ''}")
        if self._talk:
            note(usage_line(result))

    def _write(self, file: IO[str], text: str) -> None:
        if self._open_line not in (None, file):
            self.line()
        if text:  # noted first: Ctrl-C may come while it is written
            self._open_line = None if text.endswith("\n") else file
        click.echo(text, nl=False, file=file, color=True)  # data goes out as it is

    def line(self) -> None:
        """End the line that is being written."""
        file, self._open_line = self._open_line, None
        if file is not None:
            with contextlib.suppress(BrokenPipeError):
                click.echo(file=file)


def _how_to_approve(result: RunResult, session: str | None) -> str:
    if session is None:
        return "hint: --yes approves; with --session NAME the run can be resumed"
    return f"hint: qak run --session {session} --approve {result.pending[0].id}, with the same --model and --tool"


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
