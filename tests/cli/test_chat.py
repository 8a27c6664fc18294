"""``qak chat`` on a pseudo-terminal: what a person types, and what the terminal gets."""

from __future__ import annotations

import contextlib
import os
import pty
import re
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from scripted_cli import environment_of, run_qak, scripted

SEQUENCE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
# Moving the cursor, erasing, hiding it, styles, bracketed paste: what rich and readline write themselves.
OURS = re.compile(r"\x1b\[[0-9;]*[ABCDGHJKm]|\x1b\[\?25[hl]|\x1b\[\?2004[hl]")


class Terminal:
    """A child on a pseudo-terminal of 80 columns."""

    def __init__(self, site: Path, *arguments: str, **environment: str) -> None:
        self._master, slave = pty.openpty()
        os.set_blocking(self._master, False)
        env = environment_of(site, TERM="xterm", COLUMNS="80", LINES="24", **environment)
        env.pop("NO_COLOR")
        env.update({key: value for key, value in environment.items() if key == "NO_COLOR"})
        command = [sys.executable, "-m", "qwen_agent_kit", *arguments]
        self._child = subprocess.Popen(
            command, stdin=slave, stdout=slave, stderr=slave, env=env, cwd=site, preexec_fn=_own_terminal
        )
        os.close(slave)
        self.raw = ""
        self._seen = 0

    def expect(self, text: str, seconds: float = 120) -> str:
        """Wait until ``text`` is shown; what came since the last call, sequences left out."""
        until = time.monotonic() + seconds
        while text not in self.shown[self._seen :]:
            assert time.monotonic() < until, f"{text!r} did not come; got {self.shown[self._seen :]!r}"
            assert self._read(0.1) or self._child.poll() is None, f"left before {text!r}: {self.shown[self._seen :]!r}"
        end = self.shown.index(text, self._seen) + len(text)
        part, self._seen = self.shown[self._seen : end], end
        return part

    @property
    def shown(self) -> str:
        """What was written so far, without the sequences that rich and readline write."""
        return SEQUENCE.sub("", self.raw).replace("\r", "")

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    def line(self, text: str) -> None:
        """Type a line at the prompt."""
        self.expect("you> ")
        self.type(text + "\n")

    def interrupt(self) -> None:
        """Press Ctrl-C at the prompt, again where it had no effect: readline loses one that comes between two waits."""
        for _ in range(10):
            self.type("\x03")
            with contextlib.suppress(AssertionError):
                self.expect("you> ", seconds=3)
                return
        raise AssertionError(f"ten times Ctrl-C and no prompt: {self.shown[self._seen :]!r}")

    def leaves(self, code: int = 0) -> None:
        """Wait for the end."""
        until = time.monotonic() + 120
        while self._child.poll() is None and time.monotonic() < until:
            self._read(0.1)
        while self._read(0.0):
            pass
        assert self._child.poll() == code, self.shown[-500:]

    def _read(self, seconds: float) -> bool:
        ready, _, _ = select.select([self._master], [], [], seconds)
        try:
            data = os.read(self._master, 65536) if ready else b""
        except OSError:  # the child is gone
            return False
        self.raw += data.decode("utf-8", errors="replace")
        return bool(data)

    def close(self) -> None:
        if self._child.poll() is None:
            self._child.kill()
        self._child.wait()
        os.close(self._master)


def _own_terminal() -> None:
    import fcntl
    import termios

    os.setsid()
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


@pytest.fixture
def chat(site: Path) -> Iterator[object]:
    """Starts ``qak chat`` with the given turns; closed afterwards."""
    open_ones: list[Terminal] = []

    def start(turns: str, *arguments: str, **environment: str) -> Terminal:
        tools = [part for name in ("add", "delete", "colour") for part in ("--tool", f"tools.py:{name}")]
        command = ("chat", "-m", scripted(site, turns), *tools, *arguments)
        open_ones.append(Terminal(site, *command, **environment))
        return open_ones[-1]

    yield start
    for terminal in open_ones:
        terminal.close()


SLOW = """
import time
def words(n, wait=0.02):
    for i in range(n):
        time.sleep(wait)
        yield Text(f"word{i} ")
"""


def test_a_conversation(chat) -> None:
    """Markdown is drawn, the prompt comes back, Ctrl-D leaves with exit code 0."""
    terminal = chat("turns = ['# Head\\n\\nSome **bold** text.\\n\\n- one\\n- two\\n', 'second answer']\n")
    terminal.line("hello")
    terminal.expect("two")
    terminal.line("again")
    terminal.expect("second answer")
    terminal.expect("you> ")
    terminal.type("\x04")
    terminal.leaves(0)
    screen = _screen(terminal.raw)
    assert "Head" in screen
    assert "Some bold text." in screen
    assert " • two" in screen
    assert "\x1b[1mbold" in terminal.raw


def test_ctrl_c_stops_the_answer_and_not_the_program(chat) -> None:
    """After Ctrl-C the prompt comes back, the next answer is whole, and the turn that was stopped is not kept."""
    terminal = chat(SLOW + "turns = [words(10**6), 'the next answer']\n")
    terminal.line("go on for ever")
    terminal.expect("word3")
    terminal.type("\x03")
    part = terminal.expect("stopped; this turn is not kept")
    assert "^C" not in part
    terminal.line("next")
    terminal.expect("the next answer")
    terminal.line("/history")
    history = terminal.expect("the next answer")
    assert "go on for ever" not in history
    terminal.expect("you> ")
    terminal.type("half a line")
    terminal.expect("half a line")
    terminal.interrupt()
    terminal.type("/exit\n")
    terminal.leaves(0)
    assert "Traceback" not in terminal.shown


def test_a_long_answer_is_in_the_scrollback_once(chat) -> None:
    """Complete paragraphs are written for good: none of forty is left out, and none is left on the screen twice."""
    turns = """
import time
def turns(request):
    for i in range(40):
        yield Text(f"paragraph {i}.\\n\\n")
        time.sleep(0.01)
"""
    terminal = chat(turns)
    terminal.line("hello")
    terminal.expect("paragraph 39.")
    terminal.line("/exit")
    terminal.leaves(0)
    screen = _screen(terminal.raw)
    for i in range(40):
        assert screen.count(f"paragraph {i}.") == 1, i


def test_keys_do_not_tear_the_answer(chat) -> None:
    """What is typed while an answer is written is not echoed into it, and is there at the next prompt."""
    terminal = chat(SLOW + "turns = [words(60), 'the second answer']\n")
    terminal.line("hello")
    terminal.expect("word5 ")
    before = len(terminal.raw)
    terminal.type("typed ahead\n")
    terminal.expect("word40 ")
    assert "typed" not in terminal.raw[before:]
    terminal.expect("you> ")
    terminal.expect("typed ahead")
    terminal.expect("the second answer")
    terminal.line("/exit")
    terminal.leaves(0)


def test_approval_is_asked_in_the_chat(chat) -> None:
    """A call with side effects is shown and asked about: y runs it, a reason goes to the model; others run unasked."""
    turns = (
        "say = lambda request: ' / '.join(m.tool_result.text for m in request.messages if m.tool_result)\n"
        "turns = [[ToolCall('', 'delete', {'path': 'a'}), ToolCall('', 'add', {'a': 1, 'b': 2})], say,\n"
        "         [ToolCall('', 'delete', {'path': 'b'})], say]\n"
    )
    terminal = chat(turns)
    terminal.line("clean up")
    terminal.expect("delete(path='a') wants to run")
    terminal.expect("why not] ")
    terminal.type("y\n")
    terminal.expect("-> delete(path='a')")
    terminal.expect("-> add(a=1, b=2)")
    terminal.expect("deleted a / 3")
    terminal.line("and b")
    terminal.expect("why not] ")
    terminal.type("I need b\n")
    terminal.expect("refused by the user: I need b")
    terminal.line("/exit")
    terminal.leaves(0)


def test_a_session_goes_on(chat, site: Path) -> None:
    """What was said under --session is there the next time; a call left waiting is asked about by /resume."""
    first = chat("turns = ['nice to meet you', [ToolCall('', 'delete', {'path': 'a'})]]\n", "--session", "pals")
    first.line("I am Ann")
    first.expect("nice to meet you")
    first.line("delete a")
    first.expect("why not] ")
    first.type("\x04")
    first.expect("/resume")
    first.line("/exit")
    first.leaves(0)
    second = chat("def turns(request):\n    return f'{len(request.messages)} messages'\n", "--session", "pals")
    second.expect("4 messages so far")
    second.expect("1 calls wait")
    second.line("what now?")
    second.expect("wait for approval")
    second.line("/resume")
    second.expect("why not] ")
    second.type("yes\n")
    second.expect("5 messages")
    second.line("/exit")
    second.leaves(0)
    shown = run_qak("sessions", "show", "pals", site=site)
    assert "deleted a" in shown.stdout


EVIL = (
    r"esc \x1b[31mred \x1b]0;title\x07 \x1b[2J \x9b31m \r entity &#27;[31m &#x1b;]0;x &#8238; "
    r"\u202eflip \x08 `\x1b[31m`"
)


def test_nothing_in_an_answer_drives_the_terminal(chat) -> None:
    """Sequences in text, reasoning, calls, arguments, results and markdown entities are shown, not obeyed."""
    turns = f"""
evil = "{EVIL}"
turns = [[Reasoning(evil), Text(evil), ToolCall("", "colour", {{}}), ToolCall("", "x" + evil, {{evil: evil}}),
          ToolCall("", "add", {{"a": evil}})],
         "```\\n" + evil + "\\n```\\n\\n| a |\\n|---|\\n| " + evil + " |\\n\\n",
         "[x](http://a/" + evil + ") ![y](&#27;[1m)",
                  "end of it"]
"""
    terminal = chat(turns)
    terminal.line("hello")
    terminal.expect("you> ")
    terminal.type("/history\n")
    terminal.line("link")
    terminal.line("again")
    terminal.expect("end of it")
    terminal.line("/exit")
    terminal.leaves(0)
    left = OURS.sub("", terminal.raw)
    for character in left:
        assert character in "\n\r\t" or not (ord(character) < 32 or 127 <= ord(character) < 160), repr(left)
    assert not set("\u202e\u2066\u202d") & set(terminal.raw)
    for sequence in ("\x1b[31mred", "\x1b[2J", "\x1b]0;"):
        assert sequence not in terminal.raw


def test_slash_commands(chat, site: Path) -> None:
    """Each command answers; one that is unknown, or wants a file that is not there, is told and the chat goes on."""
    terminal = chat("turns = ['an answer', 'to the model']\n")
    for line, said in (
        ("/help", "/history"),
        ("/tools", "delete"),
        ("/usage", "nothing yet"),
        ("/image none.png", "hint: check the path"),
        ("/image", "which file?"),
        ("/audio tools.py", "audio"),
        ("/plan", "placed by the engine"),
        ("/zoom", "there is no command /zoom"),
        ("/resume", "nothing to resume"),
        ("/clear", "a new conversation"),
        ("hello", "an answer"),
        ("/usage", "1 step"),
        ("/fork kept", "stored as kept"),
        ("/fork ../x", "session name"),
        ("one \\", "...> "),
    ):
        terminal.line(line)
        terminal.expect(said)
    terminal.type("two\n")
    terminal.expect("to the model")
    terminal.line("/quit")
    terminal.leaves(0)
    shown = run_qak("sessions", "show", "kept", site=site)
    assert "one \ntwo" in shown.stdout


def test_no_color(chat) -> None:
    """With NO_COLOR set no colour reaches the terminal."""
    terminal = chat("turns = ['```python\\nx = 1\\n```\\n\\n`code` [link](http://a/)']\n", NO_COLOR="1")
    terminal.line("hello")
    terminal.expect("http://a/")
    terminal.line("/exit")
    terminal.leaves(0)
    colours = [code for found in re.findall(r"\x1b\[([0-9;]*)m", terminal.raw) for code in found.split(";")]
    assert not [code for code in colours if code and 30 <= int(code) <= 107], colours


def test_an_error_does_not_end_the_chat(chat) -> None:
    """What the engine raises is told in a line, and the next turn is answered."""
    terminal = chat("turns = [RuntimeError('secret words'), 'fine again']\n")
    terminal.line("hello")
    terminal.expect("unexpected RuntimeError")
    terminal.line("again")
    terminal.expect("fine again")
    terminal.line("/exit")
    terminal.leaves(0)
    assert "Traceback" not in terminal.shown
    assert "secret words" not in terminal.shown


def test_run_on_a_terminal_is_harmless_too(site: Path) -> None:
    """`qak run` writes no sequence of a model to a terminal, and asks there about side effects."""
    call = f'ToolCall("", "delete", {{"path": "{EVIL}"}})'
    turns = f'turns = [[Reasoning("{EVIL}"), Text("{EVIL}"), {call}], "done now"]\n'
    terminal = Terminal(site, "run", "hello", "-m", scripted(site, turns), "-t", "tools.py:delete")
    try:
        terminal.expect("why not] ")
        terminal.type("y\n")
        terminal.expect("done now")
        terminal.leaves(0)
    finally:
        terminal.close()
    left = OURS.sub("", terminal.raw)
    assert all(character in "\n\r\t" or character.isprintable() for character in left), repr(left)


def test_ctrl_c_at_the_question_leaves_the_run_waiting(site: Path) -> None:
    """Nothing more is asked, nothing is lost: the session waits for approval, and another process goes on with it."""
    calls = "ToolCall('', 'delete', {'path': 'a'}), ToolCall('', 'delete', {'path': 'b'})"
    spec = scripted(site, f"turns = [[{calls}]]\n")
    terminal = Terminal(site, "run", "clean up", "-m", spec, "-t", "tools.py:delete", "--session", "s")
    try:
        terminal.expect("why not] ")
        terminal.type("\x03")
        terminal.expect("waits for approval: call_1")
        terminal.expect("--approve call_1")
        terminal.leaves(1)
    finally:
        terminal.close()
    assert terminal.shown.count("why not]") == 1
    spec = scripted(site, "def turns(request):\n    return request.messages[-1].tool_result.text\n")
    resume = ("run", "-m", spec, "-t", "tools.py:delete", "--session", "s")
    done = run_qak(*resume, "--approve", "all", site=site)
    assert (done.returncode, done.stdout) == (0, "deleted b\n"), done.stderr


def test_a_piped_chat(site: Path) -> None:
    """Lines from a pipe are answered one after the other, as plain text."""
    spec = scripted(site, "turns = ['**one**', 'two']\n")
    done = run_qak("chat", "-m", spec, site=site, stdin=b"hello\nagain\n")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "**one**\ntwo\n"


def _screen(raw: str) -> str:
    """What a terminal with endless scrollback shows: cursor up, erase and carriage return are obeyed."""
    lines = [""]
    row = column = 0
    for token in re.findall(r"\x1b\[[0-9;?]*[A-Za-z]|.|\n", raw, re.DOTALL):
        if token == "\n":
            row += 1
            if row == len(lines):
                lines.append("")
        elif token == "\r":
            column = 0
        elif token.startswith("\x1b["):
            number = int(token[2:-1] or 1) if token[2:-1].isdigit() or not token[2:-1] else 0
            if token[-1] == "A":
                row -= number
            elif token[-1] == "K":
                lines[row] = "" if token[2:-1] == "2" else lines[row][:column]
        else:
            lines[row] = lines[row][:column].ljust(column) + token + lines[row][column + 1 :]
            column += 1
    return "\n".join(lines)
