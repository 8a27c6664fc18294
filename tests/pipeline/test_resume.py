"""A process that is killed at any moment: no result is lost, none is computed twice but those that were in flight."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from pictures import folder_of

WINDOW = 8
CHILD = """
import hashlib, os, sys, time
from qwen_agent_kit import Agent, run_pipeline
from qwen_agent_kit.backends import Capabilities
from qwen_agent_kit.testing import ScriptedModel

folder, sink, log, ordered, pause = sys.argv[1:]
computed = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

def turn(request):
    message = request.messages[-1]
    os.write(computed, f"{message.text}\\n".encode())  # counted where the model begins
    time.sleep(float(pause))
    return hashlib.sha256(message.media[0].source).hexdigest()

agent = Agent(ScriptedModel(turn, caps=Capabilities(kinds=frozenset({"text", "image"}))))
report = run_pipeline(folder, agent, prompt="{path}", sink=sink, concurrency=8, ordered=ordered == "1")
print(report.seen, report.before, report.done, report.failed)
"""


def _start(folder: Path, sink: Path, log: Path, ordered: bool, pause: float) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", CHILD, str(folder), str(sink), str(log), str(int(ordered)), str(pause)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def _whole_keys(journal: Path) -> list[str]:
    with contextlib.suppress(FileNotFoundError):
        return [
            json.loads(line)["key"] for line in journal.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")
        ]
    return []


def _killed_and_resumed(tmp_path: Path, count: int, kills: int, sink: str, ordered: bool) -> None:
    folder = folder_of(tmp_path / "pictures", count)
    out = tmp_path / sink
    journal = tmp_path / f"{sink}.journal" if sink.endswith(".parquet") else out
    computed: Counter[str] = Counter()
    for number in range(kills):
        log = tmp_path / f"computed{number}"
        done = _whole_keys(journal)
        child = _start(folder, out, log, ordered, 0.01)
        # Each kill leaves enough for the later ones: a run of few items may end before it is seen.
        moment = len(done) + random.randint(1, (count - len(done)) // (kills - number + 1))
        while len(_whole_keys(journal)) < moment and child.poll() is None:
            time.sleep(0.001)
        child.send_signal(signal.SIGKILL)
        child.communicate()
        assert child.returncode == -signal.SIGKILL, "it was killed while it ran"
        begun = log.read_text().splitlines()
        assert not set(begun) & set(done), "what had a result was computed again"
        computed.update(begun)
    done = _whole_keys(journal)
    log = tmp_path / "computed-last"
    child = _start(folder, out, log, ordered, 0)
    told, _ = child.communicate(timeout=300)
    assert child.returncode == 0
    begun = log.read_text().splitlines()
    assert not set(begun) & set(done)
    computed.update(begun)
    assert told.split() == [str(count), str(len(done)), str(count - len(done)), "0"]
    keys = _whole_keys(journal)
    assert len(keys) == len(set(keys)) == count
    assert set(computed) == set(keys)
    held = WINDOW + (8 if ordered else 0)  # in order, finished results may wait for one that is slow
    assert sum(computed.values()) - count <= kills * held
    digests = [json.loads(line)["output"] for line in journal.read_bytes().splitlines()]
    assert len(set(digests)) == count, "every picture is another"


@pytest.mark.parametrize(("sink", "ordered"), [("out.jsonl", False), ("out.jsonl", True), ("out.parquet", False)])
def test_a_killed_run_goes_on(sink: str, ordered: bool, tmp_path: Path) -> None:
    """300 distinct pictures, killed at two random moments: exactly 300 results, none twice but those in flight."""
    _killed_and_resumed(tmp_path, 300, 2, sink, ordered)
    if sink.endswith(".parquet"):
        import pyarrow.parquet

        assert pyarrow.parquet.read_table(tmp_path / sink).num_rows == 300


@pytest.mark.full
@pytest.mark.parametrize(("sink", "ordered"), [("out.jsonl", False), ("out.jsonl", True), ("out.parquet", False)])
def test_a_run_that_is_killed_often_goes_on(sink: str, ordered: bool, tmp_path: Path) -> None:
    """1,000 distinct pictures of mixed size, killed at ten random moments."""
    _killed_and_resumed(tmp_path, 1000, 10, sink, ordered)


@pytest.mark.full
def test_memory_does_not_grow(tmp_path: Path) -> None:
    """1,000 items of 1 to 4 MB each: at item 1,000 the process is at most 50 MB larger than at item 200."""
    code = (
        "import os, sys\nfrom qwen_agent_kit import Agent, Image, run_pipeline\n"
        "from qwen_agent_kit.backends import Capabilities\nfrom qwen_agent_kit.testing import ScriptedModel\n"
        "class Model(ScriptedModel):\n"
        "    def stream(self, request):\n"
        "        yield from super().stream(request)\n"
        "        self.requests.clear()\n"
        "def rss():\n"
        "    return int(open('/proc/self/statm').read().split()[1]) * os.sysconf('SC_PAGE_SIZE')\n"
        "seen = {}\n"
        "def progress(report):\n"
        "    for mark in (200, 1000):\n"
        "        if report.done >= mark:\n"
        "            seen.setdefault(mark, rss())\n"
        "items = ({'id': i, 'image': Image(os.urandom(2**20) * (1 + i % 4))} for i in range(1000))\n"
        "agent = Agent(Model(lambda request: 'x' * 500, caps=Capabilities(kinds=frozenset({'text', 'image'}))))\n"
        "run_pipeline(items, agent, prompt='{id}', sink=sys.argv[1], key='id', progress=progress)\n"
        "print(seen[1000] - seen[200])\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "out.jsonl")]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=dict(os.environ))
    assert int(done.stdout) <= 50 * 2**20
