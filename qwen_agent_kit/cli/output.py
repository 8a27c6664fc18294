"""How commands show data: a table for people, JSON with a schema version for programs; talk goes to stderr."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import IO, Any

import click

__all__ = [
    "Keys",
    "SCHEMA_VERSION",
    "fault",
    "json_option",
    "note",
    "plain",
    "print_json",
    "print_table",
    "talk_only",
    "waiting",
]

SCHEMA_VERSION = 1

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")

# Control characters, lone surrogates, and the marks that change the direction of what follows.
_DRIVING = (
    *(code for code in range(0x20) if chr(code) not in "\n\t"),
    *range(0x7F, 0xA0),
    *(0x061C, 0x200E, 0x200F),
    *range(0x202A, 0x202F),
    *range(0x2066, 0x206A),
    *range(0xD800, 0xE000),
)
_HARMLESS = dict.fromkeys(_DRIVING, "\N{REPLACEMENT CHARACTER}")


def plain(value: Any) -> str:
    """Text that cannot drive a terminal, whoever wrote it; emoji with their joiners stay whole."""
    return str(value).replace("\r\n", "\n").translate(_HARMLESS)


def print_json(data: Mapping[str, Any], file: IO[str] | None = None) -> None:
    """One object on stdout, with ``schema_version``."""
    text = json.dumps({**data, "schema_version": SCHEMA_VERSION}, ensure_ascii=False, indent=2, default=str)
    click.echo(text, file=file)


def print_table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """A table on stdout."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(Text("" if cell is None else plain(cell)) for cell in row))
    console = Console(file=sys.stdout, width=None if sys.stdout.isatty() else 160)
    console.print(table)


def note(text: str) -> None:
    """A line of talk, on stderr."""
    click.echo(plain(text), err=True)


def fault(error: Exception) -> str:
    """A fault of ours or of a plugin, named by its place: what the exception says may hold parts of a conversation."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    place = f"error: unexpected {type(error).__name__} at {frame.filename}:{frame.lineno}"
    return f"{place}\nhint: QAK_TRACEBACK=1 shows the way there; its text may hold parts of the conversation"


@contextlib.contextmanager
def talk_only(*, descriptor: bool = True) -> Iterator[IO[str]]:
    """Send what tools and plugins print to stderr; gives the true stdout, which is for data.

    Args:
        descriptor: Whether file descriptor 1 is turned as well, so that what C code and child processes write is talk,
            too. Without it ``sys.stdout`` as it was before goes on to work inside the block.
    """
    with contextlib.ExitStack() as stack:
        turn = descriptor and _is(sys.stdout, 1)
        out = stack.enter_context(_data_apart(sys.stdout)) if turn else sys.stdout
        stack.enter_context(contextlib.redirect_stdout(_talk()))
        yield out


@contextlib.contextmanager
def _data_apart(stdout: Any) -> Iterator[IO[str]]:
    """A descriptor of its own for data, while descriptor 1 is stderr, or nothing where that is closed."""
    stdout.flush()
    data = os.fdopen(os.dup(1), "w", encoding=stdout.encoding, errors=stdout.errors)
    data.reconfigure(line_buffering=stdout.line_buffering)
    talk = os.dup(2) if _is(sys.stderr, 2) else os.open(os.devnull, os.O_WRONLY)
    os.dup2(talk, 1)
    os.close(talk)
    try:
        yield data
    finally:
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
        os.dup2(data.fileno(), 1)
        data.close()


def _talk() -> Any:
    """Where prints go: a stream of its own on stderr, so that whoever closes it does not close ours."""
    if not _is(sys.stderr, 2):
        return sys.stderr
    return os.fdopen(2, "w", buffering=1, encoding=sys.stderr.encoding, errors="replace", closefd=False)


def _is(stream: Any, descriptor: int) -> bool:
    try:
        return stream is not None and not stream.closed and stream.fileno() == descriptor
    except (OSError, ValueError):
        return False  # a test or a notebook put something else there


@contextlib.contextmanager
def waiting(what: str) -> Iterator[Callable[[], None]]:
    """Count the seconds on stderr where a person watches.

    Yields:
        What ends the counting before the block does; may be called again.
    """
    if sys.stderr is None or not sys.stderr.isatty() or os.environ.get("TERM") == "dumb":
        yield lambda: None
        return
    over = threading.Event()
    thread = threading.Thread(target=_count, args=(what, over), name="qak-waiting", daemon=True)
    thread.start()

    def stop() -> None:
        over.set()
        thread.join()

    try:
        yield stop
    finally:
        stop()


class Keys:
    """Keys typed on the terminal are kept but not echoed, so that they cannot tear what is being drawn."""

    def __init__(self) -> None:
        self._saved: list[Any] | None = None

    def hush(self) -> None:
        """Echo nothing from now on; nothing happens where stdin is no terminal."""
        if self._saved is not None or sys.platform == "win32" or sys.stdin is None or not sys.stdin.isatty():
            return
        import termios

        self._saved = termios.tcgetattr(sys.stdin)
        quiet = list(self._saved)
        quiet[3] &= ~termios.ECHO  # the local modes, termios(3)
        termios.tcsetattr(sys.stdin, termios.TCSANOW, quiet)

    def restore(self) -> None:
        """Echo as before."""
        saved, self._saved = self._saved, None
        if saved is not None:
            import termios

            termios.tcsetattr(sys.stdin, termios.TCSANOW, saved)


def _count(what: str, over: threading.Event) -> None:
    shown = ""
    second = 0
    while not over.wait(1.0):
        second += 1
        shown = f"{what} ({second} s)"
        sys.stderr.write(f"\r{shown}")
        sys.stderr.flush()
    if shown:
        sys.stderr.write(f"\r{' ' * len(shown)}\r")
        sys.stderr.flush()
