"""Nothing of what was said or passed gets into logs or exceptions."""

from __future__ import annotations

import asyncio
import contextlib
import logging

import pytest

from qwen_agent_kit import Agent, Limits, ToolCall, tool
from qwen_agent_kit.backends import Finish
from qwen_agent_kit.errors import EngineError, QakError
from qwen_agent_kit.messages import Message
from qwen_agent_kit.store import Position, Store
from qwen_agent_kit.testing import ScriptedModel

CANARY = "CANARY-7f3a"


def fail(text: str) -> str:
    """Fail."""
    raise RuntimeError(f"cannot do {text}")


def echo(text: str) -> str:
    """Echo."""
    return text


@tool(side_effects=True)
def send(text: str) -> str:
    """Send."""
    return text


def arguments(name: str, **extra: object) -> ToolCall:
    return ToolCall("", name, {"text": CANARY, **extra})


SCRIPTS = {
    "plain": [CANARY],
    "tool": [arguments("echo"), CANARY],
    "failing tool": [arguments("fail"), "ok"],
    "wrong arguments": [arguments("echo", more=CANARY), "ok"],
    "unknown tool": [arguments("nothing"), "ok"],
    "malformed": [ToolCall("", "echo", {}, error=f"bad {CANARY}"), "ok"],
    "approval": [arguments("send")],
    "cut off": [[CANARY, Finish("length", truncated=CANARY)]],
    "engine": [[CANARY, EngineError("the engine broke")]],
    "mistakes": [arguments("nothing", n=n) for n in range(3)],
    "same call": [arguments("echo")] * 3,
    "contract": [[Finish("stop"), Finish("stop")]],
    "output": [f'{{"a": "{CANARY}"}}'] * 3,
    "script": [],
}


@pytest.mark.parametrize("name", SCRIPTS)
@pytest.mark.parametrize("asynchronous", [False, True])
def test_f53_canaries_stay_out_of_logs_and_exceptions(
    name: str, asynchronous: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """Prompt, system message, arguments, results and answers, through every way a run can end."""
    caplog.set_level(logging.INFO)
    model = ScriptedModel(SCRIPTS[name])
    agent = Agent(model, tools=[echo, fail, send], system=CANARY, limits=Limits(steps=9))
    chat = agent.chat("talk")
    output = {"type": "object", "properties": {"a": {"type": "integer"}}} if name == "output" else None
    texts = []
    try:
        if asynchronous:
            asyncio.run(chat.arun(CANARY, output=output))
        else:
            chat.run(CANARY, output=output)
    except (QakError, AssertionError) as error:
        texts = [str(error), repr(error)]
    assert bool(texts) == (name in ("engine", "output", "script"))
    assert CANARY not in "\n".join([*texts, caplog.text, repr(agent), repr(chat)])


def test_f53_canaries_stay_out_of_what_the_store_raises(tmp_path, caplog: pytest.LogCaptureFixture) -> None:
    """Conflict, damage and data that JSON cannot hold: none tells content."""
    caplog.set_level(logging.INFO)
    store = Store(tmp_path / "s.sqlite3")
    message = Message("user", CANARY)
    store.append("a", [message], Position())
    texts = []
    odd = Message("assistant", (ToolCall("c", "echo", {"text": {CANARY}}),))  # type: ignore[arg-type]
    for messages, position in (([message], Position()), ([odd], store.position("a"))):
        with pytest.raises(QakError) as error:
            store.append("a", messages, position)
        texts.append(str(error.value))
    store._run(lambda db: db.execute("UPDATE messages SET body = ?", (f'{{"role": "{CANARY}", "parts": [1]}}',)))
    with pytest.raises(QakError) as error:
        store.load("a")
    texts.append(str(error.value))
    assert CANARY not in "\n".join([*texts, caplog.text])
    with contextlib.closing(store):
        pass
