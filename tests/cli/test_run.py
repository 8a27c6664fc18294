"""``qak run``: data on stdout, talk on stderr, exit codes, and runs that wait for a person."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from distributions import HEAD, install
from scripted_cli import environment_of, run_qak, scripted

KEYS = {"output", "stop_reason", "steps", "usage", "messages", "pending", "schema_version"}


def test_the_answer_is_all_of_stdout(site: Path) -> None:
    """stdout holds the answer and nothing else, also where a tool prints; calls and usage are on stderr."""
    turns = "turns = [[ToolCall('', 'add', {'a': 1, 'b': 2})], 'It is 3.']\n"
    done = run_qak("run", "1 + 2?", "-m", scripted(site, turns), "--tool", "tools.py:add", site=site)
    assert (done.returncode, done.stdout) == (0, "It is 3.\n")
    assert "-> add(a=1, b=2)" in done.stderr
    assert "<- add: 3" in done.stderr
    assert "a tool may print" in done.stderr
    assert "2 steps" in done.stderr
    quiet = run_qak("run", "1 + 2?", "-q", "-m", scripted(site, turns), "--tool", "tools.py:add", site=site)
    assert (quiet.stdout, quiet.stderr) == ("It is 3.\n", "a tool may print\n")


def test_json_is_one_object(site: Path) -> None:
    """`--json` prints one object with exactly the promised keys, beside a tool that prints."""
    turns = "turns = [[ToolCall('', 'add', {'a': 1, 'b': 2})], 'It is 3.']\n"
    done = run_qak("run", "1 + 2?", "--json", "-m", scripted(site, turns), "--tool", "tools:add", site=site)
    assert done.returncode == 0
    data = json.loads(done.stdout)
    assert set(data) == KEYS
    assert (data["output"], data["stop_reason"], data["schema_version"]) == ("It is 3.", "done", 1)
    assert [message["role"] for message in data["messages"]] == ["user", "assistant", "tool", "assistant"]
    assert len(data["steps"]) == 2
    assert data["pending"] == []


def test_stdin_is_read_where_it_is_piped(site: Path) -> None:
    """What is piped in follows the prompt; alone it is the prompt; a byte order mark is dropped."""
    spec = scripted(site, "def turns(request):\n    return ascii(request.messages[-1].text)\n")
    both = run_qak("run", "Sum up:", "-m", spec, site=site, stdin="\ufeffcaf\u00e9\n".encode())
    assert both.stdout == ascii("Sum up:\n\ncaf\u00e9") + "\n"
    alone = run_qak("run", "-m", spec, site=site, stdin=b"what is piped")
    assert alone.stdout == "'what is piped'\n"


def test_closed_stdin_is_not_waited_for(site: Path) -> None:
    """With stdin closed the prompt alone is answered."""
    spec = scripted(site, "turns = ['answered']\n")
    line = f"exec {sys.executable} -m qwen_agent_kit run hi -m {spec} <&-"
    done = subprocess.run(
        ["bash", "-c", line],
        cwd=site,
        env=environment_of(site),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "answered\n"), done.stderr


def test_a_pipe_that_stays_open_is_told(site: Path) -> None:
    """Where stdin is a pipe that nobody ends, stderr says what is waited for."""
    spec = scripted(site, "turns = ['answered']\n")
    child = _start("run", "hi", "-m", spec, site=site, stdin=subprocess.PIPE)
    assert child.stderr is not None
    assert child.stdin is not None
    assert b"reading stdin" in child.stderr.readline()
    out, _ = child.communicate(b"", timeout=120)
    assert (child.returncode, out) == (0, b"answered\n")


def test_structured_output(site: Path, tmp_path: Path) -> None:
    """`--output-schema`, as text or file: the answer is such JSON; one that never fits is exit code 1 with the run."""
    schema = '{"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}'
    (tmp_path / "schema.json").write_text(schema)
    for given in (schema, str(tmp_path / "schema.json")):
        spec = scripted(site, "turns = ['{\"n\": 3}']\n")
        done = run_qak("run", "hi", "-m", spec, "--output-schema", given, site=site)
        assert (done.returncode, json.loads(done.stdout)) == (0, {"n": 3}), done.stderr
    never = scripted(site, "def turns(request):\n    return 'no'\n")
    done = run_qak("run", "hi", "-m", never, "--output-schema", schema, "--json", site=site)
    assert done.returncode == 1
    data = json.loads(done.stdout)
    assert set(data) == KEYS
    assert (data["output"], data["stop_reason"]) == (None, "error")
    assert "no answer that fits" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(("flag", "seen"), [("on", "True"), ("off", "False"), ("64", "64"), (None, "None")])
def test_options_reach_the_model(site: Path, flag: str | None, seen: str) -> None:
    """What the options say is in the request."""
    turns = (
        "def turns(request):\n    s = request.sampling\n    return repr((request.thinking, request.tool_choice,\n"
        "        [t.name for t in request.tools], s.temperature, s.seed, s.max_tokens, request.messages[0].text))\n"
    )
    options = ["--tool", "tools.py:add", "--tool-choice", "none", "--temperature", "0.5", "--seed", "7"]
    options += ["--max-tokens", "9", "--system", "Be brief.", *(["--thinking", flag] if flag else [])]
    done = run_qak("run", "hi", "-m", scripted(site, turns), *options, site=site)
    assert done.stdout.strip() == f"({seen}, 'none', ['add'], 0.5, 7, 9, 'Be brief.')"


def test_limits_end_a_run(site: Path) -> None:
    """`--max-steps` and `--max-seconds` stop a run, with the reason and exit code 1."""
    turns = "def turns(request):\n    return [ToolCall('', 'add', {'a': len(request.messages), 'b': 2})]\n"
    done = run_qak("run", "hi", "-m", scripted(site, turns), "--tool", "tools.py:add", "--max-steps", "2", site=site)
    assert (done.returncode, done.stdout) == (1, "")
    assert "stopped: limit:steps" in done.stderr
    slow = "import time\ndef turns(request):\n    while True:\n        time.sleep(0.05)\n        yield Text('x')\n"
    done = run_qak("run", "hi", "-m", scripted(site, slow), "--max-seconds", "0.5", "--json", site=site)
    assert done.returncode == 1
    assert json.loads(done.stdout)["stop_reason"] == "limit:seconds"


# --- approval --------------------------------------------------------------------------------------------------------

ASKS = "turns = [[ToolCall('', 'delete', {'path': 'a'}), ToolCall('', 'delete', {'path': 'b'})]]\n"


@pytest.fixture
def suspended(site: Path) -> str:
    """A model that says what the tools returned; session `s` waits for the approval of two calls."""
    done = run_qak(
        "run", "clean up", "-m", scripted(site, ASKS), "-t", "tools.py:delete", "--session", "s", "--json", site=site
    )
    assert done.returncode == 1
    data = json.loads(done.stdout)
    assert data["stop_reason"] == "approval"
    assert [call["id"] for call in data["pending"]] == ["call_1", "call_2"]
    return scripted(
        site, "def turns(request):\n    return ' / '.join(m.tool_result.text for m in request.messages[-2:])\n"
    )


def test_a_run_without_a_person_waits(site: Path) -> None:
    """stderr names the calls that wait and how to go on; the tool did not run."""
    done = run_qak("run", "clean up", "-m", scripted(site, ASKS), "-t", "tools.py:delete", "--session", "s", site=site)
    assert (done.returncode, done.stdout) == (1, "")
    assert "call_1: delete(path='a')" in done.stderr
    assert "qak run --session s --approve call_1" in done.stderr


def test_waiting_calls_are_decided_in_another_process(site: Path, suspended: str) -> None:
    """Approved calls run, refused ones tell the model why, and the run goes on to its answer."""
    options = ("--approve", "call_1", "--refuse", "call_2=keep that one")
    done = run_qak("run", "--session", "s", "-m", suspended, "-t", "tools.py:delete", *options, site=site)
    assert (done.returncode, done.stdout) == (0, "deleted a / refused by the user: keep that one\n"), done.stderr


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--approve", "all"), "deleted a / deleted b\n"),
        (("--refuse", "all"), "refused by the user / refused by the user\n"),
        (("--resume", "--yes"), "deleted a / deleted b\n"),
    ],
)
def test_all_waiting_calls_at_once(site: Path, suspended: str, options: tuple[str, ...], said: str) -> None:
    """`all` and `--yes` decide every waiting call."""
    done = run_qak("run", "--session", "s", "-m", suspended, "-t", "tools.py:delete", *options, site=site)
    assert (done.returncode, done.stdout) == (0, said), done.stderr


def test_what_is_left_out_goes_on_waiting(site: Path, suspended: str) -> None:
    """One call decided: the other one waits still, and a new prompt is refused until it is decided."""
    rest = ("--session", "s", "-m", suspended, "-t", "tools.py:delete")
    done = run_qak("run", *rest, "--approve", "call_1", site=site)
    assert done.returncode == 1
    assert "call_2: delete(path='b')" in done.stderr
    refused = run_qak("run", "something else", *rest, site=site)
    assert refused.returncode == 2
    assert "call_2" in refused.stderr
    asked = run_qak("run", *rest, "--resume", site=site)
    assert asked.returncode == 2
    assert "--approve" in asked.stderr


def test_yes_approves_and_harmless_tools_are_not_asked_about(site: Path) -> None:
    """`--yes` runs a tool with side effects; one without runs in any case."""
    turns = "turns = [[ToolCall('', 'delete', {'path': 'a'}), ToolCall('', 'add', {'a': 1, 'b': 2})], 'done']\n"
    tools = ("-t", "tools.py:delete", "-t", "tools.py:add")
    done = run_qak("run", "hi", "-m", scripted(site, turns), *tools, "--yes", site=site)
    assert (done.returncode, done.stdout) == (0, "done\n")
    waits = run_qak("run", "hi", "-m", scripted(site, turns), *tools, "--json", site=site)
    data = json.loads(waits.stdout)
    assert [call["name"] for call in data["pending"]] == ["delete"]
    assert [result["name"] for result in data["steps"][0]["results"]] == ["add"]


# --- the ends of the process -----------------------------------------------------------------------------------------

ENDLESS = """
import atexit, threading, time
ended = []

def turns(request):
    try:
        while True:
            time.sleep(0.01)
            yield Text("word ")
    finally:
        open("ended", "w").write("closed")
"""


def test_ctrl_c_stops_the_run(site: Path) -> None:
    """SIGINT in the middle of an answer: the model's stream is closed, stderr says `stopped`, exit code 1."""
    child = _start("run", "hi", "-m", scripted(site, ENDLESS), site=site)
    assert child.stdout is not None
    assert child.stdout.read(5) == b"word "
    began = time.monotonic()
    child.send_signal(signal.SIGINT)
    out, err = child.communicate(timeout=120)
    assert child.returncode == 1
    assert err.decode().splitlines()[-1] == "stopped"
    assert b"Traceback" not in err
    assert out.endswith(b"\n")
    assert time.monotonic() - began < 60
    assert (site / "ended").read_text() == "closed"


def test_ctrl_c_while_a_tool_hangs(site: Path) -> None:
    """A tool that never ends does not hold the process after SIGINT."""
    tools = "import time\ndef hang() -> str:\n    '''Hang.'''\n    open('hangs', 'w').close()\n    time.sleep(600)\n"
    spec = scripted(site, "turns = [[ToolCall('', 'hang', {})]]\n", tools=tools)
    child = _start("run", "hi", "-m", spec, "-t", "tools.py:hang", site=site)
    until = time.monotonic() + 120
    while not (site / "hangs").exists() and time.monotonic() < until:
        time.sleep(0.05)
    child.send_signal(signal.SIGINT)
    _, err = child.communicate(timeout=120)
    assert child.returncode == 1
    assert err.decode().splitlines()[-1] == "stopped"


def test_a_reader_that_leaves_ends_the_run(site: Path) -> None:
    """Where stdout's reader goes away (`qak run ... | head -1`), the run ends quietly with exit code 1."""
    child = _start("run", "hi", "-m", scripted(site, ENDLESS), site=site)
    assert child.stdout is not None
    assert child.stderr is not None
    child.stdout.read(5)
    child.stdout.close()
    with child.stderr:
        err = child.stderr.read()
    assert child.wait(timeout=120) == 1
    assert b"Traceback" not in err
    assert b"Exception ignored" not in err
    assert (site / "ended").read_text() == "closed"


def test_the_answer_is_streamed(site: Path) -> None:
    """The first words are on stdout before the answer is complete."""
    turns = "import os, time\ndef turns(request):\n    yield Text('first ' * 2)\n    time.sleep(600)\n"
    child = _start("run", "hi", "-m", scripted(site, turns), site=site)
    try:
        assert child.stdout is not None
        ready, _, _ = select.select([child.stdout], [], [], 30)
        assert ready
        assert os.read(child.stdout.fileno(), 100).startswith(b"first ")
    finally:
        child.kill()
        child.communicate()


def test_a_terminal_encoding_without_the_character(site: Path) -> None:
    """A character that stdout cannot encode becomes `?`, and the run is answered."""
    spec = scripted(site, "turns = ['caf\u00e9 \U0001f600 \\udce9']\n")
    done = run_qak("run", "hi", "-m", spec, site=site, PYTHONIOENCODING="ascii")
    assert (done.returncode, done.stdout) == (0, "caf? ? ?\n"), done.stderr


def test_a_piped_answer_is_untouched(site: Path) -> None:
    """Where stdout is no terminal the answer goes out as it was written, sequences included."""
    spec = scripted(site, "turns = ['red \\x1b[31m\\r\\n\\ttab']\n")
    done = run_qak("run", "hi", "-m", spec, site=site)
    assert done.stdout == "red \x1b[31m\r\n\ttab\n"


def _start(*arguments: str, site: Path, stdin: int = subprocess.DEVNULL) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "qwen_agent_kit", *arguments],
        cwd=site,
        env=environment_of(site),
        stdin=stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


NOISY = """
import os, subprocess, sys

def add(a: int, b: int) -> int:
    'Add two numbers, loudly.'
    os.write(1, b"from below Python\\n")
    subprocess.run([sys.executable, "-c", "print('from a child')"], check=True)
    sys.stdout.close()
    return a + b
"""


@pytest.mark.parametrize("flag", [(), ("--json",)], ids=["text", "json"])
def test_stdout_is_for_data_below_python_too(site: Path, flag: tuple[str, ...]) -> None:
    """What a tool's C code and child processes write is talk; a tool that closes its stdout closes nobody else's."""
    turns = "turns = [[ToolCall('', 'add', {'a': 1, 'b': 2})], 'It is 3.']\n"
    spec = scripted(site, turns, tools=NOISY)
    done = run_qak("run", "1 + 2?", *flag, "-m", spec, "-t", "tools.py:add", site=site)
    assert done.returncode == 0, done.stderr
    assert (json.loads(done.stdout)["output"] if flag else done.stdout) == ("It is 3." if flag else "It is 3.\n")
    assert "from below Python" in done.stderr
    assert "from a child" in done.stderr
    assert "lost sys.stderr" not in done.stderr


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-"])
def test_streams_that_are_closed(site: Path, closed: str) -> None:
    """Where stdout or stderr is closed the run ends as it would."""
    spec = scripted(site, "turns = [[ToolCall('', 'add', {'a': 1, 'b': 2})], 'three']\n")
    line = f"exec {sys.executable} -m qwen_agent_kit run hi -m {spec} -t tools.py:add </dev/null {closed}"
    done = subprocess.run(
        ["bash", "-c", line], cwd=site, env=environment_of(site), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == ("three\n" if closed == "2>&-" else "")


def test_an_answer_that_was_cut_off(site: Path) -> None:
    """Half of a text is an answer, and stderr says that it is cut; half of a JSON value is none: exit code 1."""
    turns = "from qwen_agent_kit.backends import Finish\nturns = [['{\"a\": [1', Finish('length')]]\n"
    text = run_qak("run", "hi", "-m", scripted(site, turns), site=site)
    assert (text.returncode, text.stdout) == (0, '{"a": [1\n')
    assert "the answer was cut off" in text.stderr
    data = run_qak("run", "hi", "-m", scripted(site, turns), "--output-schema", "{}", site=site)
    assert (data.returncode, data.stdout) == (1, "")
    assert "error: no JSON that fits --output-schema came" in data.stderr
    assert "hint: a larger --max-tokens" in data.stderr


def test_a_tool_whose_plugin_is_broken(site: Path) -> None:
    """`--tool NAME` says why no plugin offers it: which could not be imported, the cause, and where the cure is."""
    install(site, "qak-weather", {"tools": "weather"}, HEAD + "import no_such_module_here\n")
    done = run_qak("run", "hi", "-m", scripted(site, "turns = ['x']\n"), "--tool", "weather", site=site)
    assert done.returncode == 2
    assert "offers the tool 'weather'" in done.stderr
    assert "qak-weather" in done.stderr
    assert "no_such_module_here" in done.stderr
    assert "hint: `qak plugins`" in done.stderr
