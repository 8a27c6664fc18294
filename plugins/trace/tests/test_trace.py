"""The trace writes one line per hook call, and no contents."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
import qwen_agent_kit_trace as plugin
from distributions import qak

from qwen_agent_kit import Backend, Message, Text, ToolCall, ToolResult, hookimpl, tool
from qwen_agent_kit.backends import ChatRequest, Choice, Usage
from qwen_agent_kit.events import Step
from qwen_agent_kit.plugins import load

CANARY = "the canary sings"
LINE = re.compile(r"trace \d\d:\d\d:\d\d\.\d{6} +\d+\.\d ms  \w+ +[^\n]*\n")


@tool
def lift(x: str) -> str:
    """Give x.

    Args:
        x: Any text.
    """
    return x


class Works:
    """Does what the hooks ask for."""

    @hookimpl
    def choose_backend(self):
        return Choice("text", CANARY)

    @hookimpl
    def run_tool(self, call):
        return ToolResult((Text(CANARY),), call.id, call.name)


def _call_every_hook() -> list[object]:
    hook = load("hooks", extra=[Works()]).manager.hook
    message = Message("user", CANARY)
    choice = hook.choose_backend(messages=(message,), backends=(Backend("text", frozenset({"text"})),), current=None)
    hook.before_step(request=ChatRequest(messages=(message,), tools=(lift,)))
    result = hook.run_tool(call=ToolCall("c1", "lift", {"x": CANARY}), tool=lift)
    hook.on_step(step=Step(0, Message("assistant", CANARY), (result,), Usage(prompt_tokens=7), "tool_calls"))
    return [choice, result]


def test_one_line_per_call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Each of the four hooks gives a line with its time and a few facts; results pass through unchanged."""
    monkeypatch.setenv("QAK_TRACE", "1")
    choice, result = _call_every_hook()
    assert choice == Choice("text", CANARY)
    assert result == ToolResult((Text(CANARY),), "c1", "lift")
    lines = capsys.readouterr().err.splitlines(keepends=True)
    assert all(LINE.fullmatch(line) for line in lines)
    assert [line.split(" ms  ")[1].split()[0] for line in lines] == [
        "choose_backend",
        "before_step",
        "run_tool",
        "on_step",
    ]
    assert "chosen=text" in lines[0]
    assert "tools=1" in lines[1]
    assert "tool=lift call=c1 outcome=ok" in lines[2]
    assert "finish=tool_calls calls=1 prompt=7" in lines[3]


def test_f53_no_contents(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Prompts, arguments, answers and reasons stay out of the trace."""
    monkeypatch.setenv("QAK_TRACE", "1")
    _call_every_hook()
    assert "canary" not in capsys.readouterr().err


@pytest.mark.parametrize("value", [None, "", "0", "false", "OFF"])
def test_it_is_silent_unless_asked(
    value: str | None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """Installed and not switched on, it writes nothing."""
    monkeypatch.delenv("QAK_TRACE", raising=False)
    if value is not None:
        monkeypatch.setenv("QAK_TRACE", value)
    _call_every_hook()
    assert capsys.readouterr().err == ""


def test_a_name_cannot_break_a_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """A call id that a model made up stays one printable word."""
    monkeypatch.setenv("QAK_TRACE", "1")
    load("hooks").manager.hook.run_tool(call=ToolCall("a\nb\x1b[2J c", "lift"), tool=lift)
    err = capsys.readouterr().err
    assert LINE.fullmatch(err)
    assert "call=a_b_[2J_c" in err
    assert "(left_to_the_kit)" in err


def test_its_rows_are_sound():
    """It implements four hooks and a command, and lists itself for both kinds."""
    (row,) = [row for row in load("hooks").rows if row.distribution == "qwen-agent-kit-trace"]
    assert (row.state, set(row.kinds)) == ("ok", {"hooks", "commands"})
    assert set(row.hooks) == {"before_step", "choose_backend", "on_step", "register_commands", "run_tool"}


def test_the_command_runs_another(tmp_path: Path):
    """`qak trace plugins --json` is `qak plugins --json` with the trace on, exit code included."""
    done = qak("trace", "plugins", "--hook", "run_tool", "--json", site=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "qwen-agent-kit-trace" in done.stdout
    assert qak("trace", "plugins", "--hook", "nothing", site=tmp_path).returncode == 2


def test_it_is_the_module_that_is_installed():
    """What is tested is what the entry point names."""
    assert sys.modules["qwen_agent_kit_trace"] is plugin
