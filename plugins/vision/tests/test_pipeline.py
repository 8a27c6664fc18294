"""A pipeline over pictures on the real miniature: killed and resumed, every item once, in bounded memory."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

WINDOW = 8
CHILD = """
import os, sys
from qwen_agent_kit import Agent, Host, hookimpl, run_pipeline

folder, sink, log = sys.argv[1:]
computed = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

class Watch:
    count = 0

    @hookimpl
    def on_step(self, step):
        Watch.count += 1
        pages = int(open("/proc/self/statm").read().split()[1])
        os.write(computed, f"{Watch.count} {pages * os.sysconf('SC_PAGE_SIZE')}\\n".encode())

with Host(prefixes=False) as host:
    agent = Agent("miniature-vl", host=host, plugins=[Watch()])
    report = run_pipeline(folder, agent, prompt="Which colour is the square?", sink=sink, concurrency=8)
print(report.seen, report.before, report.done, report.failed)
"""


def _pictures(folder: Path, count: int) -> Path:
    """Distinct ones, of mixed size: a square of some colour on white, and three pixels that number it."""
    folder.mkdir()
    draw = np.random.default_rng(5)
    for number in range(count):
        height, width = draw.integers(60, 500, 2)
        picture = np.full((height, width, 3), 255, dtype=np.uint8)
        picture[height // 4 : height // 2, width // 4 : width // 2] = draw.integers(0, 256, 3)
        picture[0, 0] = (number % 256, number // 256, 7)
        Image.fromarray(picture).save(folder / f"{number:05}.png")
    return folder


def _start(folder: Path, sink: Path, log: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", CHILD, str(folder), str(sink), str(log)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


@pytest.mark.parametrize("count", [40, pytest.param(1000, marks=pytest.mark.full)])
def test_a_kill_loses_and_repeats_nothing(count: int, tmp_path: Path) -> None:
    """Killed at a random moment and resumed: a result for each picture, none computed twice but those in flight."""
    folder, sink = _pictures(tmp_path / "pictures", count), tmp_path / "out.jsonl"
    first, second = tmp_path / "first", tmp_path / "second"
    process = _start(folder, sink, first)
    wanted = random.Random(count).randrange(count // 4, 3 * count // 4)
    end = time.monotonic() + 600
    while process.poll() is None and time.monotonic() < end:
        if sink.exists() and sink.read_bytes().count(b"\n") >= wanted:
            break
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    written = sink.read_bytes().count(b"\n")
    assert wanted <= written < count, "it was killed on the way"
    done, _ = _start(folder, sink, second).communicate(timeout=1500)
    seen, before, finished, failed = map(int, done.split())
    assert (seen, before, before + finished, failed) == (count, written, count, 0)
    keys = Counter(json.loads(line)["key"] for line in sink.read_text(encoding="utf-8").splitlines())
    assert len(keys) == count
    assert set(keys.values()) == {1}
    computed = sum(len(log.read_text().splitlines()) for log in (first, second))
    assert count <= computed <= count + WINDOW + 1


@pytest.mark.full
@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="memory is read from /proc")
def test_memory_stays_where_it_is(tmp_path: Path) -> None:
    """From the 200th picture to the 1,000th it gains at most 50 MB, whatever their sizes."""
    log = tmp_path / "log"
    process = _start(_pictures(tmp_path / "pictures", 1000), tmp_path / "out.jsonl", log)
    done, _ = process.communicate(timeout=1500)
    assert done.split() == ["1000", "0", "1000", "0"]
    held = [int(line.split()[1]) for line in log.read_text().splitlines()]
    print(f"RSS at 200, 600, 1,000: {held[199] / 1e6:.0f}, {held[599] / 1e6:.0f}, {held[999] / 1e6:.0f} MB")
    assert held[999] - held[199] <= 50e6
