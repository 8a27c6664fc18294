"""Conversations."""

from __future__ import annotations

import subprocess
import sys
import threading
import time

import pytest

from qwen_agent_kit import Agent, Image, Message, ToolCall
from qwen_agent_kit.backends import Capabilities
from qwen_agent_kit.errors import EngineError, StoreError, UsageError
from qwen_agent_kit.events import StepDone
from qwen_agent_kit.store import Store
from qwen_agent_kit.testing import ScriptedModel


def add(a: int, b: int) -> int:
    """Add."""
    return a + b


CALL = ToolCall("", "add", {"a": 1, "b": 2})


def test_each_turn_sees_the_turns_before() -> None:
    """History grows by whole turns, the system message first and once."""
    model = ScriptedModel(["one", [CALL], "two"])
    chat = Agent(model, tools=[add], system="s").chat()
    chat.run("a")
    chat.run("b")
    assert [m.role for m in model.requests[2].messages] == ["system", "user", "assistant", "user", "assistant", "tool"]
    assert chat.messages[-1].text == "two"
    assert len(chat.messages) == 7


def test_a_failed_turn_keeps_its_complete_steps() -> None:
    """After an exception in the second step the first step is there, and the turn can be resumed."""
    model = ScriptedModel([[CALL], EngineError("boom"), "after all"])
    chat = Agent(model, tools=[add]).chat()
    with pytest.raises(EngineError):
        chat.run("q")
    assert [m.role for m in chat.messages] == ["user", "assistant", "tool"]
    assert chat.resume().output == "after all"
    assert [m.role for m in chat.messages] == ["user", "assistant", "tool", "assistant"]


def test_a_turn_that_fails_at_once_leaves_nothing() -> None:
    """So that asking again does not ask twice."""
    model = ScriptedModel([EngineError("boom"), "fine"])
    chat = Agent(model).chat()
    with pytest.raises(EngineError):
        chat.run("q")
    assert chat.messages == ()
    assert chat.run("q").output == "fine"
    assert len(chat.messages) == 2


def test_a_closed_turn_keeps_its_complete_steps_and_frees_the_chat() -> None:
    """Closing the stream after a step: the step stays, the next turn may begin."""
    model = ScriptedModel([[CALL], "x" * 100, "next"])
    chat = Agent(model, tools=[add]).chat()
    stream = chat.stream("q")
    for event in stream:
        if isinstance(event, StepDone):
            break
    stream.close()
    assert [m.role for m in chat.messages] == ["user", "assistant", "tool"]
    assert chat.run("again").output.startswith("x")


def test_two_threads_are_not_mixed() -> None:
    """The second turn is refused while the first goes on, and says what to do."""
    inside, go = threading.Event(), threading.Event()

    def turn(_request):
        inside.set()
        go.wait(10)
        return "slow"

    chat = Agent(ScriptedModel([turn, "next"])).chat()
    outcome: list[str] = []
    thread = threading.Thread(target=lambda: outcome.append(chat.run("a").output))
    thread.start()
    inside.wait(10)
    with pytest.raises(UsageError, match="busy") as error:
        chat.run("b")
    assert "fork" in error.value.hint
    go.set()
    thread.join()
    assert outcome == ["slow"]
    assert chat.run("b").output == "next"
    assert [m.text for m in chat.messages] == ["a", "slow", "b", "next"]


def test_a_fork_goes_its_own_way() -> None:
    """Both share what was, neither sees what the other adds; the messages are the same objects."""
    model = ScriptedModel(["one", "left", "right"])
    chat = Agent(model).chat()
    chat.run("a")
    fork = chat.fork()
    chat.run("l")
    fork.run("r")
    assert [m.text for m in chat.messages] == ["a", "one", "l", "left"]
    assert [m.text for m in fork.messages] == ["a", "one", "r", "right"]
    assert fork.messages[0] is chat.messages[0]


def test_a_fork_is_cheap() -> None:
    """A thousand turns are not copied, only listed: well under a millisecond."""
    chat = Agent(ScriptedModel([])).chat()
    chat._messages = [Message("user", "x" * 1000) for _ in range(2000)]
    took = min(_timed(chat.fork) for _ in range(20))
    assert took < 0.001


def _timed(work) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def test_a_named_chat_goes_on_where_it_was() -> None:
    """A second Chat, and a second process, find every message of the first."""
    Agent(ScriptedModel(["one", [CALL], "three"]), tools=[add], system="s").chat("talk").run("a")
    again = Agent(ScriptedModel(["two"]), system="another").chat("talk")
    assert [m.text for m in again.messages] == ["s", "a", "one"]
    again.run("b")
    code = (
        "from qwen_agent_kit import Agent\n"
        "from qwen_agent_kit.testing import ScriptedModel\n"
        "print([m.text for m in Agent(ScriptedModel([])).chat('talk').messages])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['s', 'a', 'one', 'b', 'two']"


def test_a_stored_fork() -> None:
    """Under a name of its own, and not over one that is taken."""
    chat = Agent(ScriptedModel(["one", "two"])).chat("a")
    chat.run("x")
    fork = chat.fork("b")
    fork.run("y")
    assert [m.text for m in Store().load("b").messages] == ["x", "one", "y", "two"]
    assert len(Store().load("a").messages) == 2
    with pytest.raises(UsageError, match="'b' is there"):
        chat.fork("b")


def test_media_come_back_with_their_trust(tmp_path) -> None:
    """A picture of the user's is stored by its bytes, and is still there when the file is not."""
    path = tmp_path / "dog.png"
    path.write_bytes(b"\x89PNG dog")
    caps = Capabilities(kinds=frozenset({"text", "image"}))
    Agent(ScriptedModel(["a dog"], caps=caps)).chat("pets").run("what?", images=[str(path), Image(b"cat")])
    path.unlink()
    model = ScriptedModel(["yes"], caps=caps)
    chat = Agent(model).chat("pets")
    chat.run("sure?")
    media = model.requests[0].messages[0].media
    assert [part.source for part in media] == [b"\x89PNG dog", b"cat"]
    assert [part.trust for part in media] == ["configured", "configured"]


def test_f52_the_slower_of_two_writers_is_refused() -> None:
    """Two Chat objects on one session: the second to write fails before the model works, and nothing is mixed."""
    first = Agent(ScriptedModel(["one", "more"])).chat("talk")
    model = ScriptedModel(["never", "fine"])
    second = Agent(model).chat("talk")
    first.run("a")
    with pytest.raises(StoreError, match="changed by another process") as error:
        second.run("b")
    assert error.value.code == "conflict"
    assert "again" in error.value.hint
    assert not model.requests
    assert second.messages == ()
    assert [m.text for m in Store().load("talk").messages] == ["a", "one"]
    first.run("c")
    assert len(Store().load("talk").messages) == 4


def test_f52_a_writer_that_comes_between_two_steps() -> None:
    """The turn that lost keeps nothing of the step it could not store."""
    other = {}

    def meddle(_request):
        other["chat"].run("meanwhile")
        return "too late"

    chat = Agent(ScriptedModel([[CALL], meddle]), tools=[add]).chat("talk")
    stream = chat.stream("q")
    for event in stream:
        if isinstance(event, StepDone):
            other["chat"] = Agent(ScriptedModel(["mine"])).chat("talk")
            break
    with pytest.raises(StoreError, match="changed by another"):
        list(stream)
    assert [m.role for m in chat.messages] == ["user", "assistant", "tool"]
    stored = Store().load("talk").messages
    assert [m.role for m in stored] == ["user", "assistant", "tool", "user", "assistant"]
    assert stored[-1].text == "mine"


TRAVERSAL = [
    "..", "../x", "/etc/passwd", "a/b", "a\\b", "..\\x", "~", "~root", "", " ", "a\0b", ".hidden", "con", "x" * 101,
    "a\nb", "%2e%2e%2f",
]  # fmt: skip


def test_f50_session_names_cannot_leave_the_store(private_home) -> None:
    """Sixteen names: refused, and nothing is written anywhere."""
    assert len(TRAVERSAL) == 16
    agent = Agent(ScriptedModel(["x"] * 20))
    before = sorted(path for path in private_home.parent.rglob("*"))
    for name in TRAVERSAL:
        for use in (agent.chat, agent.chat().fork, Store().load, Store().delete, Store().export):
            with pytest.raises(UsageError) as error:
                use(name)
            assert error.value.code == "invalid_name"
    after = [path for path in private_home.parent.rglob("*") if path not in before]
    assert all(private_home / "data" in (path, *path.parents) for path in after)


def test_there_must_be_a_prompt() -> None:
    """An empty turn is refused before anything is opened."""
    with pytest.raises(UsageError, match="no prompt"):
        Agent(ScriptedModel([])).chat().run()


def test_chats_and_agents_keep_no_threads() -> None:
    """After a hundred turns there are as many threads as before."""
    chat = Agent(ScriptedModel(lambda request: "x")).chat()
    before = threading.active_count()
    for _ in range(100):
        chat.run("q")
    assert threading.active_count() <= before
