"""Tools in a process of their own: the part of F45 that kills itself, and what is left behind (nothing)."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import isolated_tools
import pytest

from qwen_agent_kit.errors import UsageError
from qwen_agent_kit.messages import Image, ToolCall, ToolResult
from qwen_agent_kit.tools import ToolContext, run_call, tool


def _run(name: str, arguments: dict[str, Any] | None = None, context: ToolContext | None = None) -> ToolResult:
    return run_call(getattr(isolated_tools, name), ToolCall("c1", name, arguments or {}), context)


def _gone(pid: int) -> bool:
    for _ in range(100):
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except FileNotFoundError:
            return True
        if state == "Z":
            return True
        time.sleep(0.02)
    return False


def _children() -> list[str]:
    return Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()


@tool(isolate=True)
def here(a: int) -> int:
    """Found by this file, which no import name leads to."""
    return a + 1


def test_an_isolated_tool_runs_elsewhere() -> None:
    """Arguments are coerced, the result comes back, the process is another, and what it prints is no part of it."""
    result = _run("add", {"a": "3"})
    data = json.loads(result.text)
    assert data["sum"] == 5
    assert data["pid"] != os.getpid()
    assert (result.call_id, result.name, result.is_error) == ("c1", "add", False)
    assert _gone(data["pid"])


def test_other_kinds_of_isolated_tools() -> None:
    """Coroutines, pictures and tools of files without a module name work; pictures by path come back untrusted."""
    assert _run("later", {"a": 4}).text == "4"
    parts = _run("picture").parts
    assert isinstance(parts[1], Image)
    assert parts[1].source == b"\x89PNG"
    assert isinstance(parts[2], Image)
    assert (parts[2].source, parts[2].trust) == ("/etc/passwd", "found")
    assert run_call(here, ToolCall("c", "here", {"a": 1})).text == "2"
    assert _run("with_thread").text == "back"


def test_a_child_inherits_the_environment_and_no_descriptor(monkeypatch: pytest.MonkeyPatch) -> None:
    """The child has the parent's environment, an empty standard input, a session of its own, and none of its files."""
    monkeypatch.setenv("QAK_TEST_VARIABLE", "seen")
    reading, writing = os.pipe()
    high = os.dup2(writing, 77)
    os.set_inheritable(high, True)
    try:
        data = json.loads(_run("surroundings", {"fd": high}).text)
    finally:
        for fd in (reading, writing, high):
            os.close(fd)
    assert data == {"variable": "seen", "fd": False, "stdin": "", "leader": True}


@pytest.mark.parametrize(
    ("name", "arguments", "text"),
    [
        ("leave", {"code": 0}, "exit code 0 before it returned"),
        ("leave", {"code": 7}, "exit code 7 before it returned"),
        ("die", {"number": int(signal.SIGKILL)}, "ended by SIGKILL"),
        ("die", {"number": int(signal.SIGSEGV)}, "ended by SIGSEGV"),
        ("quit_now", {}, "SystemExit: 3"),
        ("fail", {"text": "no such thing"}, "ValueError: no such thing"),
        ("glutton", {"megabytes": 4000}, "MemoryError"),
        ("big_picture", {"megabytes": 60}, "bytes; at most"),
        ("add", {"a": "x"}, '`a`: found "x"; allowed: an integer'),
    ],
)
def test_f45_what_kills_the_child_is_a_result(name: str, arguments: dict[str, Any], text: str) -> None:
    """A child that dies, in whatever way, is told to the model; this process and its descriptors are as before."""
    before, children = len(os.listdir("/proc/self/fd")), _children()
    result = _run(name, arguments)
    assert result.is_error
    assert text in result.text
    assert "Traceback" not in result.text
    assert len(os.listdir("/proc/self/fd")) == before
    assert _children() == children


def test_f45_a_hanging_child_is_killed_with_its_group(tmp_path: Path) -> None:
    """At the time limit the child is killed, and what it started with it, whatever signals they ignore."""
    note, children = tmp_path / "pids", _children()
    began = time.monotonic()
    result = _run("hang", {"path": str(note)})
    assert time.monotonic() - began < 60
    assert result.is_error
    assert "did not return in time and was killed" in result.text
    assert all(_gone(int(pid)) for pid in note.read_text().split())
    assert _children() == children


def test_f46_cancel_kills_the_child(tmp_path: Path) -> None:
    """Once the run is cancelled the child is killed, without a time limit."""
    note, cancel = tmp_path / "pid", threading.Event()

    def cancel_once_it_runs() -> None:
        while not note.exists() or not note.read_text():
            time.sleep(0.02)
        cancel.set()

    threading.Thread(target=cancel_once_it_runs, daemon=True).start()
    result = _run("patient", {"path": str(note)}, ToolContext(cancel=cancel))
    assert result.is_error
    assert "was killed: the run was cancelled" in result.text
    assert _gone(int(note.read_text()))


def test_f45_long_results_of_a_child_are_cut() -> None:
    """What comes back is bounded, and says how much is missing."""
    result = _run("long_text", {"megabytes": 200})
    assert not result.is_error
    assert len(result.text) < 20_200
    assert result.text.endswith(f"[cut: {(200 << 20) - 20_000:,} more characters are missing]")


def test_f57_a_child_does_not_outlive_its_parent(tmp_path: Path) -> None:
    """Where the parent is killed without warning, the child goes too."""
    note = tmp_path / "pid"
    code = (
        "import isolated_tools\n"
        "from qwen_agent_kit.messages import ToolCall\n"
        "from qwen_agent_kit.tools import run_call\n"
        f"run_call(isolated_tools.patient, ToolCall('c', 'patient', {{'path': {str(note)!r}}}))\n"
    )
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    parent = subprocess.Popen([sys.executable, "-c", code], env=env)
    try:
        while not note.exists() or not note.read_text():
            assert parent.poll() is None
            time.sleep(0.02)
    finally:
        parent.kill()
        parent.wait()
    assert _gone(int(note.read_text()))


def test_tools_of_a_script_are_found(tmp_path: Path) -> None:
    """A script that is run as the main program has isolated tools of its own; its main part does not run again."""
    script = tmp_path / "my script.py"
    script.write_text(
        "from qwen_agent_kit.messages import ToolCall\n"
        "from qwen_agent_kit.tools import run_call, tool\n"
        "@tool(isolate=True)\n"
        "def twice(a: int) -> int:\n"
        "    return 2 * a\n"
        "if __name__ == '__main__':\n"
        "    print('main', run_call(twice, ToolCall('c', 'twice', {'a': 21})).text)\n"
    )
    ran = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=True)
    assert ran.stdout == "main 42\n"


class Holder:
    def method(self, a: int) -> int:
        return a


def test_what_a_fresh_interpreter_cannot_find_is_refused() -> None:
    """Nested functions, lambdas, bound methods, given schemas and ToolContext are refused when the tool is made."""

    def nested(a: int) -> int:
        return a

    def context(a: int, ctx: ToolContext) -> int:
        return a

    for function in (nested, Holder().method, context, Holder.method):
        with pytest.raises(UsageError) as caught:
            tool(isolate=True)(function)
        assert caught.value.hint
    scope: dict[str, Any] = {"__name__": "nowhere"}
    exec(compile("def typed(a: int) -> int: return a", "<prompt>", "exec"), scope)
    with pytest.raises(UsageError, match="needs the function's file"):
        tool(isolate=True)(scope["typed"])
