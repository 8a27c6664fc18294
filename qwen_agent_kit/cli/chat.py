"""``qak chat``: a conversation in the terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from qwen_agent_kit.cli.options import agent_options, make_agent, media_parts
from qwen_agent_kit.cli.output import note
from qwen_agent_kit.cli.run import usage_line
from qwen_agent_kit.errors import QakError
from qwen_agent_kit.events import ReasoningDelta, RunDone, StepDone, TextDelta, ToolCalled, ToolReturned

if TYPE_CHECKING:
    from rich.console import Console

    from qwen_agent_kit.agent import Agent, Chat
    from qwen_agent_kit.events import Event, RunResult
    from qwen_agent_kit.messages import Media, ToolCall

__all__ = ["chat_command"]


@click.command("chat")
@agent_options
def chat_command(**options: Any) -> int:
    """Talk with a model. /help lists the commands; Ctrl-C stops the answer, Ctrl-D leaves."""
    from rich.console import Console

    console = Console()
    terminal = _Terminal(console, make_agent(options, approve=_approve(console)), options["session"])
    return terminal.loop()


def _approve(console: Console) -> Callable[[ToolCall], bool | str]:
    def ask(call: ToolCall) -> bool | str:
        console.print(f"[yellow]{_plain(call.name)}[/] wants to run with {_plain(dict(call.arguments))}")
        answer = console.input("run it? [y/N or a reason] ").strip()
        if answer.lower() in ("y", "yes"):
            return True
        return answer if len(answer) > 1 and answer.lower() != "no" else False

    return ask


class _Terminal:
    """Reads lines, runs commands, shows answers."""

    def __init__(self, console: Console, agent: Agent, session: str | None) -> None:
        self._console = console
        self._agent = agent
        self._chat: Chat = agent.chat(session=session)
        self._media: list[Media] = []
        self._last: RunResult | None = None
        self._commands: dict[str, tuple[str, Callable[[str], None]]] = {
            "help": ("list these commands", self._help),
            "image": ("PATH: add a picture to the next message", lambda path: self._attach("image", path)),
            "audio": ("PATH: add a clip to the next message", lambda path: self._attach("audio", path)),
            "history": ("show the conversation", self._history),
            "usage": ("what the last answer cost", self._usage),
            "tools": ("the tools that the model may call", self._tools),
            "plan": ("where the model is placed and why", lambda _: self._console.print(str(agent.explain()))),
            "fork": ("go on in a copy, the stored conversation stays as it is", self._fork),
            "clear": ("begin anew, nothing of this is kept", self._clear),
            "exit": ("leave", self._leave),
        }

    def loop(self) -> int:
        """Until the user leaves; the exit code."""
        import contextlib

        with contextlib.suppress(ImportError):
            import readline  # noqa: F401  # gives `input` line editing and history where the system has it
        if sys.stdin.isatty():
            note("/help lists the commands, Ctrl-C stops an answer, Ctrl-D leaves")
        while True:
            try:
                line = self._console.input("[bold cyan]you[/] ").strip()
            except (EOFError, click.exceptions.Exit):
                return 0
            except KeyboardInterrupt:
                self._console.print()
                continue
            try:
                if not self._line(line):
                    return 0
            except KeyboardInterrupt:
                self._console.print("\n[dim]stopped[/]")
            except QakError as error:
                note(f"error: {error}")

    def _line(self, line: str) -> bool:
        if not line:
            return True
        if not line.startswith("/"):
            self._answer(line)
            return True
        name, _, rest = line[1:].partition(" ")
        if name in ("exit", "quit"):
            return False
        if name not in self._commands:
            note(f"error: there is no command /{name}\nhint: /help lists them")
        else:
            self._commands[name][1](rest.strip())
        return True

    def _answer(self, line: str) -> None:
        media, self._media = self._media, []
        view = _View(self._console)
        stream = self._chat.stream(line, parts=media)
        try:
            for event in stream:
                view.show(event)
                if isinstance(event, RunDone):
                    self._last = event.result
        finally:
            stream.close()
            view.close()
        if self._last is not None and self._last.stop_reason not in ("done",):
            self._console.print(f"[dim]stopped: {self._last.stop_reason}[/]")

    def _help(self, _: str) -> None:
        for name, (text, _run) in self._commands.items():
            self._console.print(f"  [bold]/{name}[/] {_plain(text)}")

    def _attach(self, kind: str, path: str) -> None:
        if not path:
            note(f"error: which file?\nhint: /{kind} PATH")
            return
        self._media += media_parts((path,), (), ()) if kind == "image" else media_parts((), (path,), ())
        self._console.print(f"[dim]{kind} goes with your next message[/]")

    def _history(self, _: str) -> None:
        for message in self._chat.messages:
            text = message.text or (message.tool_result.text if message.tool_result else "")
            calls = "".join(f" -> {call.name}" for call in message.tool_calls)
            self._console.print(f"[bold]{message.role}[/] {_plain(text)}{_plain(calls)}")

    def _usage(self, _: str) -> None:
        self._console.print(usage_line(self._last) if self._last else "nothing yet")

    def _tools(self, _: str) -> None:
        for tool in self._agent.tools:
            asks = " (asks first)" if tool.side_effects else ""
            self._console.print(f"  [bold]{tool.name}[/] {_plain(tool.description.splitlines()[0])}{asks}")

    def _fork(self, _: str) -> None:
        self._chat = self._chat.fork()
        self._console.print("[dim]this is a copy now[/]")

    def _clear(self, _: str) -> None:
        self._chat = self._agent.chat()
        self._last = None

    def _leave(self, _: str) -> None:
        raise EOFError


class _View:
    """Streams an answer as markdown; thought and tool calls dimmed beside it."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._text = ""
        self._live: Any = None
        self._thinking = False

    def show(self, event: Event) -> None:
        match event:
            case TextDelta(text):
                self._markdown(text)
            case ReasoningDelta(text):
                self.close()
                self._console.print(_plain(text), end="", style="dim italic")
                self._thinking = True
            case ToolCalled(call):
                self.close()
                given = ", ".join(f"{key}={value!r}" for key, value in call.arguments.items())
                self._console.print(f"[dim]-> {_plain(call.name)}({_plain(given)})[/]")
            case ToolReturned(_, result, ms):
                mark = "[red]x[/]" if result.is_error else "<-"
                self._console.print(f"[dim]{mark} {_plain(result.text[:300])} ({ms:.0f} ms)[/]")
            case StepDone(_):
                self.close()
            case _:
                pass

    def _markdown(self, text: str) -> None:
        from rich.live import Live
        from rich.markdown import Markdown

        if self._thinking:
            self._console.print()
            self._thinking = False
        self._text += text
        if self._live is None:
            self._live = Live(console=self._console, refresh_per_second=12, vertical_overflow="visible")
            self._live.start()
        self._live.update(Markdown(self._text))

    def close(self) -> None:
        """End the paragraph that is being written."""
        if self._thinking:
            self._console.print()
            self._thinking = False
        if self._live is not None:
            self._live.stop()
            self._live = None
            self._text = ""


def _plain(value: Any) -> str:
    """Text without control characters or markup of its own: a model or a tool cannot drive the terminal."""
    from rich.markup import escape

    text = str(value)
    return escape("".join(c if c.isprintable() or c in "\n\t" else "\N{REPLACEMENT CHARACTER}" for c in text))
