"""Real processes: killed at random moments, and two on one conversation."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from qwen_agent_kit import Agent
from qwen_agent_kit.errors import StoreError
from qwen_agent_kit.messages import Message
from qwen_agent_kit.store import Position, Store
from qwen_agent_kit.testing import ScriptedModel

TALK = """
import sys
from qwen_agent_kit import Agent, ToolCall
from qwen_agent_kit.testing import ScriptedModel

def count(n: int) -> str:
    'Count.'
    return f'result {n} ' + 'x' * 2000

turns = (t for n in range(10**9) for t in ([f'step {n}', ToolCall('', 'count', {'n': n})],))
from qwen_agent_kit import Limits
agent = Agent(ScriptedModel(turns), tools=[count], limits=Limits(steps=None, tool_calls=None, output_tokens=None))
from qwen_agent_kit.events import StepDone
print('ready', flush=True)
for event in agent.chat('talk').stream('go'):
    if isinstance(event, StepDone):
        print(event.step.index, flush=True)
"""


def killed(seconds: float) -> int:
    """Run the talk, kill it after ``seconds``; how many steps it reported as done."""
    process = subprocess.Popen([sys.executable, "-c", TALK], stdout=subprocess.PIPE, text=True, env=dict(os.environ))
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    time.sleep(seconds)
    process.send_signal(signal.SIGKILL)
    said = process.stdout.read().split()
    process.wait()
    process.stdout.close()
    return len(said)


def kill_again_and_again(times: int, seed: int) -> None:
    moments = random.Random(seed)
    for _ in range(times):
        said = killed(moments.uniform(0.0, 0.25))
        with Store() as store:
            stored = store.load("talk").messages
            assert store._run(lambda db: db.execute("PRAGMA integrity_check").fetchone()) == ("ok",)
            steps = (len(stored) - 1) // 2
            assert len(stored) == (1 + 2 * steps if stored else 0)
            # A step is stored before it is told; the last line may be lost in the pipe, so one more may be stored.
            assert said <= max(steps, 0) <= said + 1
            for n in range(steps):
                assistant, tool = stored[1 + 2 * n], stored[2 + 2 * n]
                assert assistant.text == f"step {n}"
                assert tool.tool_result is not None
                assert tool.tool_result.text.startswith(f"result {n} ")
            if stored:
                chat = Agent(ScriptedModel(["went on"])).chat("talk")
                assert chat.resume().output == "went on"
                store.delete("talk")


def test_f51_kill_9_loses_at_most_the_unfinished_step() -> None:
    """Whatever the moment: every step that was told is there, whole, and the conversation goes on."""
    kill_again_and_again(5, seed=1)


@pytest.mark.full
def test_f51_kill_9_a_hundred_times() -> None:
    """The same, a hundred moments."""
    kill_again_and_again(100, seed=2)


WRITER = """
import sys
from qwen_agent_kit import Agent
from qwen_agent_kit.errors import StoreError
from qwen_agent_kit.testing import ScriptedModel

name, wanted = sys.argv[1], int(sys.argv[2])
agent = Agent(ScriptedModel(lambda request: 'answer to ' + request.messages[-1].text))
won = lost = 0
print('ready', flush=True)
sys.stdin.readline()
chat = agent.chat('shared')
while won < wanted:
    try:
        chat.run(f'{name} {won}')
        won += 1
    except StoreError as error:
        assert error.code == 'conflict', error
        lost += 1
        chat = agent.chat('shared')
print(lost)
"""


def compete(writers: int, turns: int) -> int:
    """Let processes talk in one conversation; how often one of them lost a race."""
    running = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, f"w{n}", str(turns)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=dict(os.environ),
        )
        for n in range(writers)
    ]  # fmt: skip
    lost = 0
    try:
        for process in running:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        for process in running:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        for process in running:
            out, _ = process.communicate(timeout=120)
            assert process.returncode == 0
            lost += int(out)
    finally:
        for process in running:
            process.kill()
            process.communicate()
    return lost


def check_whole(writers: int, turns: int) -> None:
    with Store() as store:
        stored = [message.text for message in store.load("shared").messages]
    pairs = list(zip(stored[::2], stored[1::2], strict=True))
    assert all(answer == f"answer to {question}" for question, answer in pairs)
    for n in range(writers):
        mine = [question for question, _ in pairs if question.startswith(f"w{n} ")]
        assert mine == [f"w{n} {i}" for i in range(turns)]


def test_f52_two_processes_on_one_conversation_never_mix() -> None:
    """Each turn is whole, none is lost or doubled, and each writer's are in order; the loser was told."""
    lost = compete(2, 25)
    check_whole(2, 25)
    assert lost >= 1, "the two never met, so the test shows nothing"


@pytest.mark.full
def test_f52_six_processes() -> None:
    """The same with more of them."""
    compete(6, 60)
    check_whole(6, 60)


def test_f52_the_loser_keeps_what_it_had() -> None:
    """A process that lost says so with a cure, and its own copy is as before."""
    chat = Agent(ScriptedModel(["mine"])).chat("shared")
    compete(1, 1)
    with pytest.raises(StoreError, match="changed by another process") as error:
        chat.run("q")
    assert "fork" in (error.value.hint or "")
    assert chat.messages == ()


def test_a_second_store_in_one_process_keeps_the_locks_of_the_first(tmp_path: Path) -> None:
    """Opening the file again and closing it (which drops POSIX locks) must not make another process think that it is
    the last: it would remove the journal that the first one still writes to.
    """
    path = tmp_path / "s.sqlite3"
    append = f"""
from qwen_agent_kit.messages import Message
from qwen_agent_kit.store import Store
with Store({str(path)!r}) as store:
    store.append('a', [Message('user', 'theirs')], store.position('a'))
"""
    with Store(path) as first, Store(path) as second:
        position = first.append("a", [Message("user", "mine")], Position())
        second.position("a")
        subprocess.run([sys.executable, "-c", append], check=True)
        assert Path(f"{path}-wal").exists()
        assert first.position("a").count == position.count + 1
        first.append("a", [Message("user", "mine again")], first.position("a"))
    with Store(path) as again:
        assert [m.text for m in again.load("a").messages] == ["mine", "theirs", "mine again"]


def test_a_new_store_waits_for_who_is_making_it(tmp_path: Path) -> None:
    """Switching a file to its write-ahead log fails at once while somebody writes; a second process waits instead."""
    path = tmp_path / "s.sqlite3"
    maker = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    maker.execute("CREATE TABLE made (by)")
    maker.execute("BEGIN IMMEDIATE")
    maker.execute("SELECT * FROM made").fetchall()
    done = threading.Timer(0.2, maker.execute, ["COMMIT"])
    done.start()
    with Store(path) as late:
        assert late.append("a", [Message("user", "there")], Position()).count == 1
    done.join()
    maker.close()


def test_a_locked_store_says_so(tmp_path: Path) -> None:
    """A writer that waits longer than its timeout gets an error with a cure, not a hang."""
    path = tmp_path / "s.sqlite3"
    with Store(path) as holder, Store(path, timeout=0.1) as waiter:
        holder._run(lambda db: db.execute("BEGIN IMMEDIATE"))
        with pytest.raises(StoreError, match="locked") as error:
            waiter.delete("a")
        assert "another process" in (error.value.hint or "")
        holder._run(lambda db: db.execute("ROLLBACK"))
