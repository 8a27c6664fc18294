"""How ``qak chat`` shows an answer while it is written: markdown, with thought and tool calls dimmed beside it."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from qwen_agent_kit.cli.approval import call_line
from qwen_agent_kit.cli.output import plain
from qwen_agent_kit.events import ReasoningDelta, StepDone, TextDelta, ToolCalled, ToolReturned

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult
    from rich.live import Live
    from rich.segment import Segment

    from qwen_agent_kit.events import Event

__all__ = ["View", "settled"]

_FENCE = re.compile(r" {0,3}(```+|~~~+)")
SHOWN = 300
"""Characters of a tool's result that are shown."""


class View:
    """Streams one answer. On a terminal it is markdown; elsewhere the text goes through as it comes.

    Paragraphs that are complete are printed for good, so that only the last one is drawn again while it grows; a
    terminal's scrollback then holds the answer once.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._tail = ""
        self._live: Live | None = None
        self._thinking = False
        self._blocks = 0

    def show(self, event: Event) -> None:
        """Show what an event says."""
        match event:
            case TextDelta(text):
                self._text(text)
            case ReasoningDelta(text):
                self._thought(text)
            case ToolCalled(call):
                self.close()
                self._dim(f"-> {call_line(call)}")
            case ToolReturned(_, result, ms):
                text = plain(result.text)
                mark = "x " if result.is_error else "<-"
                self._dim(f"{mark} {text[:SHOWN]}{'...' if len(text) > SHOWN else ''} ({ms:.0f} ms)")
            case StepDone(step):
                self.close()
                for line in step.notes:
                    self._dim(plain(line))
            case _:
                pass

    def close(self) -> None:
        """End the paragraph that is being written."""
        if self._thinking:
            self._console.print()
            self._thinking = False
        tail, self._tail = self._tail, ""
        if not self._console.is_terminal:
            if tail and not tail.endswith("\n"):
                self._console.print()
            return
        if self._live is not None:
            self._live.stop()
            self._live = None
        if tail.strip():
            self._block(tail)
        self._blocks = 0

    def _text(self, text: str) -> None:
        if self._thinking:
            self._console.print()
            self._thinking = False
        if not self._console.is_terminal:
            self._console.out(plain(text), end="", highlight=False)
            self._tail = text or self._tail
            return
        from rich.live import Live

        self._tail += text
        if cut := settled(self._tail):
            done, self._tail = self._tail[:cut], self._tail[cut:]
            if self._live is not None:
                self._live.stop()
                self._live = None
            self._block(done)
        if self._live is None and self._tail.strip():
            self._live = Live(console=self._console, refresh_per_second=12, transient=True, get_renderable=self._last)
            self._live.start()

    def _last(self) -> Any:
        return _Markdown(self._tail, gap=self._blocks > 0, newest=True)

    def _block(self, text: str) -> None:
        self._console.print(_Markdown(text, gap=self._blocks > 0))
        self._blocks += 1

    def _thought(self, text: str) -> None:
        if not self._thinking:
            self.close()
        self._thinking = True
        self._console.out(plain(text), end="", style="dim italic", highlight=False)

    def _dim(self, text: str) -> None:
        self._console.out(text, style="dim", highlight=False)


class _Markdown:
    """Markdown whose every character is harmless once it is rendered: entities such as ``&#27;`` are decoded late.

    Args:
        text: What the model wrote.
        gap: Whether an empty line comes first.
        newest: Cut to the last lines that fit the terminal.
    """

    def __init__(self, text: str, *, gap: bool = False, newest: bool = False) -> None:
        self._text = text
        self._gap = gap
        self._newest = newest

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        from rich.markdown import Markdown
        from rich.segment import Segment

        lines = console.render_lines(Markdown(plain(self._text), hyperlinks=False), options, pad=False)
        while lines and _blank(lines[-1]):
            lines.pop()
        while lines and _blank(lines[0]):
            lines.pop(0)
        if self._gap:
            lines.insert(0, [])
        if self._newest:
            lines = lines[-max(1, console.height - 1) :]
        for line in lines:
            yield from (Segment(plain(segment.text), segment.style) for segment in line if not segment.control)
            yield Segment.line()


def _blank(line: list[Segment]) -> bool:
    return not any(segment.text.strip() for segment in line)


def settled(text: str) -> int:
    """Up to where markdown will not change any more: behind the last empty line that a new block follows.

    An empty line inside a fence, or before an indented line (it goes on with a list's item), ends nothing.
    """
    cut = position = 0
    fence = ""
    empty = False
    for line in text.splitlines(keepends=True):
        mark = _FENCE.match(line)
        if empty and not fence and line.strip() and not line[0].isspace():
            cut = position
        if mark and not fence:
            fence = mark[1]
        elif fence and mark and mark[1].startswith(fence) and not line.strip().strip(fence[0]):
            fence = ""
        empty = not line.strip()
        position += len(line)
    return cut
