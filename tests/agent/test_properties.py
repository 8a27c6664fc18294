"""What holds for every script."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from qwen_agent_kit import Agent, Limits, Reasoning, ToolCall, tool
from qwen_agent_kit.backends import Finish
from qwen_agent_kit.events import Event, ReasoningDelta, RunDone, StepDone, TextDelta, ToolCalled, ToolReturned
from qwen_agent_kit.testing import ScriptedModel


@tool
def good(n: int) -> str:
    """Good."""
    return f"good {n}"


@tool
def bad(n: int) -> str:
    """Bad."""
    raise RuntimeError(str(n))


@tool(side_effects=True)
def risky(n: int) -> str:
    """Risky."""
    return f"risky {n}"


calls = st.builds(
    ToolCall,
    st.sampled_from(["", "a", "b", "c"]),
    st.sampled_from(["good", "bad", "risky", "unknown"]),
    st.fixed_dictionaries({"n": st.integers(0, 2) | st.just("x")}),
    st.sampled_from([None, None, None, "malformed"]),
)
items = st.text(max_size=20) | st.builds(Reasoning, st.text(max_size=20)) | calls
turns = st.lists(
    st.lists(items, max_size=5).flatmap(
        lambda said: st.sampled_from([said, said, said, [*said, Finish("length", truncated="<tool_call>{")]])
    ),
    min_size=1,
    max_size=6,
)


def check_events(events: list[Event]) -> None:
    """Deltas, calls, returns, StepDone, again; RunDone last; each call told of returns once."""
    open_calls: list[str] = []
    phase = 0  # 0: deltas, 1: calls, 2: returns
    for event in events[:-1]:
        match event:
            case TextDelta() | ReasoningDelta():
                assert phase == 0
            case ToolCalled(call):
                assert phase <= 1
                phase = 1
                open_calls.append(call.id)
            case ToolReturned(call, result, ms):
                phase = 2
                open_calls.remove(call.id)
                assert result.call_id == call.id
                assert ms >= 0
            case StepDone():
                assert not open_calls
                phase = 0
            case other:
                raise AssertionError(other)
    assert not open_calls
    assert isinstance(events[-1], RunDone)


@settings(max_examples=150, deadline=None)
@given(turns, st.sampled_from([None, True, False, "no"]), st.integers(1, 8))
def test_events_and_messages_are_well_formed(turns: list, answer: object, chunk: int) -> None:
    """Whatever the model does: the events have their order, every call has one result in its place, ids are unique,
    the text of the deltas is the text of the messages, and the run ends for a reason that is known.
    """
    model = ScriptedModel([*turns, *["end"] * 8], chunk=chunk)
    approve = None if answer is None else lambda call: answer
    agent = Agent(model, tools=[good, bad, risky], approve=approve, limits=Limits(steps=8, tool_calls=9))
    events = list(agent.stream("go"))
    check_events(events)
    result = events[-1].result
    known = ("done", "length", "repeated_call", "approval", "limit:steps", "limit:tool_calls", "limit:mistakes")
    assert result.stop_reason in known
    assert (result.stop_reason == "approval") == bool(result.pending)
    asked: list[str] = []
    expected: list[str] = []
    for message in result.messages:
        if message.role == "tool":
            assert message.tool_result.call_id == expected.pop(0)
            continue
        assert not expected
        expected = [call.id for call in message.tool_calls]
        asked += expected
    assert bool(expected) == (result.stop_reason == "approval")
    assert len(set(asked)) == len(asked)
    said = "".join(event.text for event in events if isinstance(event, TextDelta))
    kept = "".join(m.text.removesuffix("<tool_call>{") for m in result.messages if m.role == "assistant")
    assert said == kept
    thought = "".join(event.text for event in events if isinstance(event, ReasoningDelta))
    assert thought == "".join(message.reasoning for message in result.messages)
    ran = [r for step in result.steps for r in step.results if not r.is_error]
    assert answer is True or not any(r.text.startswith("risky") for r in ran)


@settings(max_examples=60, deadline=None)
@given(turns, st.lists(st.sampled_from([True, False, "no"]), min_size=20, max_size=20))
def test_suspending_changes_nothing(turns: list, answers: list) -> None:
    """Deciding each risky call later gives the conversation that deciding it at once gives."""
    at_once, later = iter(answers), iter(answers)

    def decide(call: ToolCall) -> object:
        return next(at_once) if call.name == "risky" else True

    limits = Limits(steps=None, tool_calls=None, same_call=None, mistakes=None)
    script = [*turns, "end"]
    whole = Agent(ScriptedModel(script), tools=[good, bad, risky], approve=decide, limits=limits).run("go")
    chat = Agent(ScriptedModel(script), tools=[good, bad, risky], limits=limits).chat()
    result = chat.run("go")
    while result.stop_reason == "approval":
        result = chat.resume({call.id: next(later) for call in chat.pending})
    assert result.stop_reason == whole.stop_reason
    assert chat.messages == whole.messages
