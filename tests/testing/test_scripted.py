"""The scripted double."""

from __future__ import annotations

import itertools
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen_agent_kit.backends import CallDelta, CallDone, ChatModel, ChatRequest, Finish, Usage
from qwen_agent_kit.errors import EngineError
from qwen_agent_kit.events import ReasoningDelta, TextDelta
from qwen_agent_kit.messages import Message, Reasoning, Text, ToolCall
from qwen_agent_kit.testing import ScriptedModel, check_engine

REQUEST = ChatRequest((Message("user", "hi"),))


@given(st.text(min_size=1), st.integers(1, 9))
def test_text_comes_in_pieces_that_join(text: str, chunk: int) -> None:
    """No piece is longer than `chunk`, none is empty, and nothing is lost."""
    deltas = list(ScriptedModel([text], chunk=chunk).stream(REQUEST))
    pieces = [delta.text for delta in deltas[:-1]]
    assert "".join(pieces) == text
    assert all(0 < len(piece) <= chunk for piece in pieces)
    assert deltas[-1] == Finish("stop")


def test_every_form_of_a_turn() -> None:
    """Text, Reasoning, calls, deltas, lists, callables of the request, and what callables return."""
    call = ToolCall("", "f", {"a": 1})
    model = ScriptedModel(
        [
            Text("t"),
            [Reasoning("r"), "t"],
            call,
            [call, call],
            lambda request: [request.messages[0].text.upper(), lambda _: "!"],
            [TextDelta("raw"), Finish("length", Usage(generated_tokens=1))],
            iter(["a", "b"]),
        ]
    )
    said = [list(model.stream(REQUEST)) for _ in range(7)]
    assert said[0] == [TextDelta("t"), Finish("stop")]
    assert said[1] == [ReasoningDelta("r"), TextDelta("t"), Finish("stop")]
    done = ToolCall("call_1", "f", {"a": 1})
    assert said[2] == [CallDelta(0, "f"), CallDelta(0, None, '{"a": 1}'), CallDone(0, done), Finish("tool_calls")]
    assert [d.call.id for d in said[3] if isinstance(d, CallDone)] == ["call_2", "call_3"]
    assert [d.index for d in said[3] if isinstance(d, CallDone)] == [0, 1]
    assert "".join(d.text for d in said[4][:-1]) == "HI!"
    assert said[5][-1] == Finish("length", Usage(generated_tokens=1))
    assert said[6] == [TextDelta("a"), TextDelta("b"), Finish("stop")]
    model.assert_complete()
    assert len(model.requests) == 7


@pytest.mark.parametrize("error", [EngineError("x"), ZeroDivisionError, KeyError("y")])
def test_exceptions_are_raised(error: object) -> None:
    """An instance or a class, from the iterator."""
    with pytest.raises(type(error) if isinstance(error, Exception) else error):
        list(ScriptedModel([error]).stream(REQUEST))


def test_a_script_that_is_too_short_or_too_long_says_so() -> None:
    """Both are failures of the test, with the numbers."""
    model = ScriptedModel(["a"])
    with pytest.raises(AssertionError, match="1 turns"):
        model.assert_complete()
    list(model.stream(REQUEST))
    with pytest.raises(AssertionError, match="request 2"):
        list(model.stream(REQUEST))
    ScriptedModel(itertools.repeat("x"))  # an endless script is fine
    with pytest.raises(AssertionError, match="1000 turns"):
        ScriptedModel(itertools.repeat("x")).assert_complete()
    with pytest.raises(AssertionError, match="int"):
        list(ScriptedModel([5]).stream(REQUEST))


def test_one_callable_answers_everything() -> None:
    """In place of a list."""
    model = ScriptedModel(lambda request: str(len(request.messages)))
    assert [d.text for _ in range(3) for d in model.stream(REQUEST) if isinstance(d, TextDelta)] == ["1"] * 3
    model.assert_complete()


def test_closing_is_counted() -> None:
    """A stream that was closed early is cancelled; one that ended is not."""
    model = ScriptedModel(["abc", "abc", "abc"], chunk=1)
    list(model.stream(REQUEST))
    stream = model.stream(REQUEST)
    next(stream)
    stream.close()
    stream = model.stream(REQUEST)
    for delta in stream:
        if isinstance(delta, Finish):
            break
    stream.close()
    assert model.cancelled == 1


def test_each_thread_gets_a_turn_of_its_own() -> None:
    """No turn is given twice, none is lost."""
    model = ScriptedModel([str(n) for n in range(200)], chunk=100)
    got: list[str] = []

    def work() -> None:
        for _ in range(20):
            got.extend(d.text for d in model.stream(REQUEST) if isinstance(d, TextDelta))

    threads = [threading.Thread(target=work) for _ in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(got, key=int) == [str(n) for n in range(200)]
    model.assert_complete()


def test_it_is_a_chat_model() -> None:
    """By protocol, and by our own check."""
    model = ScriptedModel(lambda request: [ToolCall("", "lookup", {"key": "a"})] if request.tools else "hello there")
    assert isinstance(model, ChatModel)
    check_engine(model)
