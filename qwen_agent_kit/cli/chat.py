"""``qak chat``: a conversation in the terminal."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, Any

import click

from qwen_agent_kit.cli.approval import ask_person
from qwen_agent_kit.cli.options import agent_options, media_parts, open_agent
from qwen_agent_kit.cli.output import Keys, fault, note, plain, talk_only, waiting
from qwen_agent_kit.cli.run import usage_line
from qwen_agent_kit.cli.view import View
from qwen_agent_kit.errors import QakError
from qwen_agent_kit.events import RunDone

if TYPE_CHECKING:
    from types import ModuleType

    from rich.console import Console

    from qwen_agent_kit.agent import Agent, Chat
    from qwen_agent_kit.events import Event, RunResult
    from qwen_agent_kit.messages import Media, ToolCall

__all__ = ["chat_command"]

PROMPT = "you> "
_BOLD_CYAN, _PLAIN = "\001\033[1;36m\002", "\001\033[0m\002"  # \001 and \002 tell readline what takes no room


@click.command("chat")
@agent_options
def chat_command(**options: Any) -> int:
    """Talk with a model. /help lists the commands; Ctrl-C stops the answer, Ctrl-D leaves."""
    from rich.console import Console

    console = Console(file=sys.stdout, highlight=False)
    pause = _Pause()
    with open_agent(options, ask=pause.ask) as agent:
        assert agent.host is not None, "the command line gives its own"
        with talk_only(descriptor=False):
            agent.host.target(options["model"])  # a name that means nothing is told now, not after the first message
        return _Terminal(console, agent, options["session"], pause).loop()


class _Pause:
    """Asks a person about a call, after what is being drawn was put away."""

    def __init__(self) -> None:
        self.before: Callable[[], None] = lambda: None
        self.keys = Keys()

    def ask(self, call: ToolCall) -> bool | str | None:
        self.before()
        self.keys.restore()
        try:
            return ask_person(call)
        finally:
            self.keys.hush()


class _Terminal:
    """Reads lines, runs commands, shows answers."""

    def __init__(self, console: Console, agent: Agent, session: str | None, pause: _Pause) -> None:
        self._console = console
        self._agent = agent
        self._chat: Chat = agent.chat(session=session)
        self._media: list[Media] = []
        self._last: RunResult | None = None
        self._pause = pause
        self._commands: dict[str, tuple[str, str, Callable[[str], None]]] = {
            "help": ("", "list these commands", self._help),
            "image": ("PATH", "add a picture to the next message", lambda path: self._attach("image", path)),
            "audio": ("PATH", "add a clip to the next message", lambda path: self._attach("audio", path)),
            "video": ("PATH", "add a video to the next message", lambda path: self._attach("video", path)),
            "resume": ("", "go on where the last turn stopped", self._resume),
            "history": ("", "show the conversation", self._history),
            "usage": ("", "what the last answer cost", self._usage),
            "tools": ("", "the tools that the model may call", self._tools),
            "plan": ("", "where the model is placed and why", lambda _: self._console.print(plain(agent.explain()))),
            "fork": ("[NAME]", "go on in a copy, stored only under a name; what is stored stays as it is", self._fork),
            "clear": ("", "begin anew, in memory only; a stored conversation stays as it is", self._clear),
            "exit": ("", "leave, as Ctrl-D does", lambda _: None),
        }

    def loop(self) -> int:
        """Until the user leaves; the exit code."""
        readline = _readline(tuple(self._commands))
        self._greet()
        while True:
            try:
                line = self._read(readline)
                if line in ("/exit", "/quit"):
                    return 0
                self._line(line)
                if sys.stdin.isatty() and line:
                    self._console.print()
            except EOFError:
                if sys.stdin.isatty():
                    self._console.print()
                return 0
            except KeyboardInterrupt:
                self._dim("\nstopped")
            except UnicodeDecodeError:
                note("error: this line is not UTF-8; it was left out")
            except QakError as error:
                note(f"error: {error}")
            except Exception as error:  # a fault of an engine ends its turn, not the conversation
                if os.environ.get("QAK_TRACEBACK"):
                    raise
                note(fault(error))

    def _greet(self) -> None:
        if sys.stdin.isatty():
            self._dim("/help lists the commands, Ctrl-C stops an answer, Ctrl-D leaves")
        if count := len(self._chat.messages):
            self._dim(f"{count} messages so far; /history shows them")
        if self._chat.pending:
            self._dim(f"{len(self._chat.pending)} calls wait for approval; /resume asks about them")
        elif count and self._chat.messages[-1].role in ("user", "tool"):
            self._dim("the last turn did not end; /resume goes on with it")

    def _read(self, readline: ModuleType | None) -> str:
        """One line; a backslash at its end goes on with the next."""
        colour = readline is not None and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
        prompt = PROMPT if sys.stdin.isatty() else ""
        lines = []
        try:
            line = input(f"{_BOLD_CYAN}{prompt}{_PLAIN}" if colour else prompt)
            while line.endswith("\\"):
                lines.append(line[:-1])
                line = input("...> " if prompt else "")
        except KeyboardInterrupt:
            self._console.print()
            return ""
        return "\n".join([*lines, line]).strip()

    def _line(self, line: str) -> None:
        if not line:
            return
        if not line.startswith("/") or line.startswith("//"):
            self._answer(self._say, line[1:] if line.startswith("//") else line)
            return
        name, _, rest = line[1:].partition(" ")
        if name not in self._commands:
            note(f"error: there is no command /{name[:40]}\nhint: /help lists them; //{name[:40]} says it to the model")
        else:
            self._commands[name][2](rest.strip())

    # --- answers ---------------------------------------------------------------------------------------------------

    def _say(self, line: str) -> Generator[Event, None, None]:
        stream = self._chat.stream(line, parts=self._media)
        self._media = []
        return stream

    def _go_on(self, decisions: Any) -> Generator[Event, None, None]:
        return self._chat.stream_resume(decisions)

    def _answer(self, begin: Callable[[Any], Generator[Event, None, None]], what: Any) -> None:
        """Show an answer as it comes; Ctrl-C or an error stops model and tools, and the conversation is whole."""
        view = View(self._console)
        result: RunResult | None = None
        before = len(self._chat.messages)
        with contextlib.ExitStack() as stack:
            stack.callback(self._pause.keys.restore)
            stack.callback(view.close)
            self._pause.keys.hush()
            here = stack.enter_context(waiting("..."))
            stack.enter_context(talk_only(descriptor=False))  # the console draws on sys.stdout
            stream = stack.enter_context(contextlib.closing(begin(what)))

            def put_away() -> None:
                here()
                view.close()

            self._pause.before = put_away
            try:
                for event in stream:
                    here()
                    view.show(event)
                    if isinstance(event, RunDone):
                        result = event.result
            except KeyboardInterrupt:
                put_away()
                kept = "" if len(self._chat.messages) > before else "; this turn is not kept"
                self._dim(f"stopped{kept}")
                return
        if result is None:
            return
        self._last = result
        if result.stop_reason == "approval":
            self._dim(f"{len(result.pending)} calls wait for approval; /resume asks about them")
        elif result.stop_reason != "done":
            self._dim(f"stopped: {result.stop_reason}")

    # --- commands --------------------------------------------------------------------------------------------------

    def _help(self, _: str) -> None:
        for name, (arguments, text, _run) in self._commands.items():
            self._console.out(f"  {f'/{name} {arguments}':<16} {text}", highlight=False)
        self._dim("  a backslash at the end of a line goes on with the next one; //text says /text to the model")

    def _attach(self, kind: str, path: str) -> None:
        if not path:
            note(f"error: which file?\nhint: /{kind} PATH")
            return
        path = path.strip("'\"")
        one = (path,)
        self._media += media_parts(
            one if kind == "image" else (), one if kind == "audio" else (), one if kind == "video" else ()
        )
        self._dim(f"{len(self._media)} go with your next message: {', '.join(part.kind for part in self._media)}")

    def _resume(self, _: str) -> None:
        decisions = {call.id: ask_person(call) for call in self._chat.pending}
        decided = {ident: answer for ident, answer in decisions.items() if answer is not None}
        if decisions and not decided:
            return
        self._answer(self._go_on, decided or None)

    def _history(self, _: str) -> None:
        for message in self._chat.messages:
            text = message.tool_result.text if message.tool_result else message.text
            media = "".join(f" [{part.kind}]" for part in message.media)
            calls = "".join(f" -> {call.name}" for call in message.tool_calls)
            self._console.out(message.role, style="bold", end=" ", highlight=False)
            self._console.out(plain(f"{text}{media}{calls}"), highlight=False)

    def _usage(self, _: str) -> None:
        self._dim(usage_line(self._last) if self._last else "nothing yet")

    def _tools(self, _: str) -> None:
        for tool in self._agent.tools:
            first = (tool.description or "").partition("\n")[0]
            asks = " (asks first)" if tool.side_effects else ""
            self._console.out(f"  {tool.name:<16} {plain(first)}{asks}", highlight=False)
        if not self._agent.tools:
            self._dim("none; `qak chat --tool file.py:function` arms one")

    def _fork(self, name: str) -> None:
        self._chat = self._chat.fork(name or None)
        self._dim(f"this is a copy now, {'stored as ' + name if name else 'in memory only'}")

    def _clear(self, _: str) -> None:
        self._chat = self._agent.chat()
        self._last = None
        self._media = []
        self._dim("a new conversation, in memory only")

    def _dim(self, text: str) -> None:
        self._console.out(text, style="dim", highlight=False)


def _readline(commands: tuple[str, ...]) -> ModuleType | None:
    """Line editing, history and completion of commands, where the system has them and a person types."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        return None
    try:
        import readline
    except ImportError:
        return None

    def complete(text: str, state: int) -> str | None:
        fitting = [f"/{name}" for name in commands if f"/{name}".startswith(text)]
        return fitting[state] if text.startswith("/") and state < len(fitting) else None

    readline.set_completer(complete)
    readline.set_completer_delims(" \t\n")
    readline.parse_and_bind("tab: complete")
    return readline
