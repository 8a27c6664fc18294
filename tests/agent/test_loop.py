"""The loop, with a scripted model."""

from __future__ import annotations

import contextvars
import subprocess
import sys
import threading
import time

import pytest

from qwen_agent_kit import (
    Agent,
    Host,
    Image,
    Limits,
    Media,
    Message,
    Reasoning,
    Sampling,
    Text,
    ToolCall,
    ToolContext,
    tool,
)
from qwen_agent_kit.backends import Backend, CallDone, Capabilities, Choice, Finish, Usage
from qwen_agent_kit.errors import EngineError, UsageError
from qwen_agent_kit.events import ReasoningDelta, RunDone, StepDone, TextDelta, ToolReturned
from qwen_agent_kit.hookspecs import hookimpl
from qwen_agent_kit.messages import TokenLog, ToolResult
from qwen_agent_kit.testing import ScriptedModel


def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


def call(name: str = "add", ident: str = "", **arguments: object) -> ToolCall:
    return ToolCall(ident, name, arguments or {"a": 1, "b": 2})


def test_a_text_is_the_output() -> None:
    """Without tools the model's text is the output, in pieces first and whole at the end."""
    model = ScriptedModel(["Hello, world."], chunk=3)
    events = list(Agent(model).stream("hi"))
    assert "".join(event.text for event in events if isinstance(event, TextDelta)) == "Hello, world."
    assert [type(event) for event in events[-2:]] == [StepDone, RunDone]
    result = events[-1].result
    assert (result.output, result.stop_reason) == ("Hello, world.", "done")
    assert [message.role for message in result.messages] == ["user", "assistant"]
    model.assert_complete()


def test_events_of_a_step_come_in_order() -> None:
    """Deltas, then each call's ToolCalled and ToolReturned, then StepDone; RunDone once, last."""
    model = ScriptedModel([["let me see", call(), call(a=3, b=4)], "7"])
    events = list(Agent(model, tools=[add]).stream("1+2, 3+4?"))
    kinds = [type(event).__name__ for event in events]
    assert kinds == [
        "TextDelta", "TextDelta", "ToolCalled", "ToolCalled", "ToolReturned", "ToolReturned", "StepDone",
        "TextDelta", "StepDone", "RunDone",
    ]  # fmt: skip
    assert [event.step.index for event in events if isinstance(event, StepDone)] == [0, 1]


def test_the_model_reads_results_in_the_order_of_its_calls() -> None:
    """The first call is the slowest, and still its result comes first in the conversation and in the step."""

    def wait(seconds: float) -> str:
        """Wait."""
        time.sleep(seconds)
        return f"waited {seconds}"

    model = ScriptedModel([[call("wait", seconds=0.2), call("wait", seconds=0.0)], "ok"])
    events = list(Agent(model, tools=[wait]).stream("go"))
    returned = [event.result.text for event in events if isinstance(event, ToolReturned)]
    assert returned == ["waited 0.0", "waited 0.2"]
    texts = [message.tool_result.text for message in model.requests[1].messages if message.tool_result]
    assert texts == ["waited 0.2", "waited 0.0"]
    assert [result.text for result in events[-1].result.steps[0].results] == texts


def test_calls_of_a_step_run_side_by_side() -> None:
    """Four calls that each wait for the other three all return."""
    barrier = threading.Barrier(4)

    def meet() -> str:
        """Meet the others."""
        barrier.wait(timeout=10)
        return "met"

    model = ScriptedModel([[ToolCall("", "meet")] * 4, "ok"])
    result = Agent(model, tools=[meet]).run("go")
    assert [item.text for item in result.steps[0].results] == ["met"] * 4


def test_reasoning_is_apart_from_text() -> None:
    """Reasoning comes as ReasoningDelta, stays in the message as a part of its own, and is not in the output."""
    model = ScriptedModel([[Reasoning("hmm, thinking"), "the answer"]])
    events = list(Agent(model).stream("q"))
    assert "hmm" not in "".join(event.text for event in events if isinstance(event, TextDelta))
    assert "".join(event.text for event in events if isinstance(event, ReasoningDelta)) == "hmm, thinking"
    message = events[-1].result.messages[-1]
    assert message.parts == (Reasoning("hmm, thinking"), Text("the answer"))
    assert events[-1].result.output == "the answer"


def test_sampled_ids_stay_with_the_message() -> None:
    """The ids and the fingerprint of Finish become the message's token log."""
    finish = Finish("stop", Usage(generated_tokens=3), ids=(5, 6, 7), fingerprint="f")
    result = Agent(ScriptedModel([["abc", finish]])).run("q")
    assert result.messages[-1].log == TokenLog((5, 6, 7), "f")
    assert result.usage.generated_tokens == 3


def test_usage_is_summed_and_unknown_stays_unknown() -> None:
    """Sums over the steps; a figure that no step knows is None, and tool time is measured."""
    first = [call(), Finish("tool_calls", Usage(prompt_tokens=10, cached_tokens=0))]
    second = ["3", Finish("stop", Usage(prompt_tokens=20, cached_tokens=12))]
    usage = Agent(ScriptedModel([first, second]), tools=[add]).run("q").usage
    assert (usage.prompt_tokens, usage.cached_tokens, usage.decode_ms) == (30, 12, None)
    assert usage.tool_ms is not None
    assert usage.tool_ms > 0


def test_tool_choice_demands_a_call_in_the_first_step_only() -> None:
    """`required` and a name hold for the first request, then the model may answer."""
    for choice in ("required", "add"):
        model = ScriptedModel([call(), "3"])
        Agent(model, tools=[add], tool_choice=choice).run("q")
        assert [request.tool_choice for request in model.requests] == [choice, "auto"]


def test_a_turn_that_goes_on_after_results_demands_no_further_call() -> None:
    """A history that ends with a tool's result was begun before: `required` is fulfilled."""
    model = ScriptedModel(["3"])
    asked = [Message("user", "q"), Message("assistant", (call(ident="c"),)), Message("tool", (ToolResult((), "c"),))]
    Agent(model, tools=[add], tool_choice="required").run(messages=asked)
    assert model.requests[0].tool_choice == "auto"


def test_tool_choice_none_runs_no_tool() -> None:
    """A call that comes all the same is a mistake the model reads."""
    ran = []

    def note(a: int) -> int:
        """Note."""
        ran.append(a)
        return a

    model = ScriptedModel([call("note", a=1), "fine"])
    result = Agent(model, tools=[note], tool_choice="none").run("q")
    assert not ran
    assert result.steps[0].results[0].is_error
    assert result.output == "fine"


def test_f44_the_models_mistakes_go_back_to_it() -> None:
    """Unknown tool, wrong, missing and extra arguments, a malformed call: each a short error, and it goes on."""
    bad = [
        call("ad", a=1, b=2),
        call(a="x", b=2),
        call(a=1),
        call(a=1, b=2, c=3),
        ToolCall("", "add", {}, error="the arguments are no JSON object"),
    ]
    model = ScriptedModel([*bad, call(), "3"])
    result = Agent(model, tools=[add], limits=Limits(mistakes=10)).run("q")
    assert result.output == "3"
    texts = [step.results[0].text for step in result.steps[:5]]
    assert all(step.results[0].is_error for step in result.steps[:5])
    assert "no tool 'ad'" in texts[0]
    assert "did you mean `add`" in texts[0]
    assert "`a`" in texts[1]
    assert "missing" in texts[2]
    assert "`c`" in texts[3]
    assert texts[4] == "the arguments are no JSON object"
    assert not any("Traceback" in text or len(text) > 600 for text in texts)


def test_f44_tries_are_bounded() -> None:
    """A model that only makes mistakes is stopped with the limit's name."""
    model = ScriptedModel(lambda request: call("nothing", n=len(request.messages)))
    result = Agent(model, tools=[add]).run("q")
    assert result.stop_reason == "limit:mistakes"
    assert len(result.steps) == 3


def test_f44_one_good_call_among_mistakes_resets_the_count() -> None:
    """The count is of steps in a row in which nothing was of use."""
    turns = [turn for n in range(5) for turn in (call("bad", n=n), call(a=n, b=n))]
    assert Agent(ScriptedModel([*turns, "end"]), tools=[add]).run("q").output == "end"


def test_f44_duplicate_ids() -> None:
    """Two calls of one message with one id: the first runs, the second is told; results never share an id."""
    model = ScriptedModel([[call(ident="x"), call(ident="x", a=5, b=5)], "ok"])
    result = Agent(model, tools=[add]).run("q")
    first, second = result.steps[0].results
    assert (first.text, first.is_error) == ("3", False)
    assert second.is_error
    assert "twice" in second.text
    assert len({first.call_id, second.call_id}) == 2
    assert [item.id for item in result.steps[0].message.tool_calls] == [first.call_id, second.call_id]


def test_an_engine_that_counts_calls_from_zero_each_time_is_fine() -> None:
    """An id that an earlier message used is renamed, and the call runs."""
    model = ScriptedModel([call(ident="c0"), call(ident="c0", a=2, b=2), "ok"])
    result = Agent(model, tools=[add]).run("q")
    assert [step.results[0].text for step in result.steps[:2]] == ["3", "4"]
    assert len({step.results[0].call_id for step in result.steps[:2]}) == 2


def test_f43_a_call_that_was_cut_off_never_runs() -> None:
    """At the length limit no call runs, not even a complete one before it; the raw text is kept."""
    ran = []

    def note(a: int) -> int:
        """Note."""
        ran.append(a)
        return a

    raw = '<tool_call>{"name": "note", "argum'
    turn = ["so: ", CallDone(0, ToolCall("c", "note", {"a": 1})), Finish("length", truncated=raw)]
    result = Agent(ScriptedModel([turn]), tools=[note]).run("q")
    assert not ran
    assert result.stop_reason == "length"
    assert result.steps[0].finish == "length"
    assert raw in result.messages[2 - 1].text
    assert result.steps[0].results[0].is_error


def test_f43_raw_text_goes_on_where_the_text_stopped() -> None:
    """Text and the cut-off rest are one part, as the model wrote it."""
    result = Agent(ScriptedModel([["so: ", Finish("length", truncated="<tool_call>{")]])).run("q")
    assert result.messages[-1].parts == (Text("so: <tool_call>{"),)
    assert result.output == "so: <tool_call>{"


@pytest.mark.parametrize(("reason", "stop"), [("length", "length"), ("error", "error"), ("cancelled", "cancelled"),
                                              ("repetition", "length")])  # fmt: skip
def test_why_the_model_stopped_is_why_the_run_stopped(reason: str, stop: str) -> None:
    """Finish.reason is the step's, and decides the run's."""
    result = Agent(ScriptedModel([["half", Finish(reason)]])).run("q")
    assert (result.stop_reason, result.steps[0].finish, result.output) == (stop, reason, "half")


def test_an_error_of_the_model_is_raised() -> None:
    """What the engine raises is raised by the run, unchanged."""
    with pytest.raises(EngineError, match="broke"):
        Agent(ScriptedModel([EngineError("it broke")])).run("q")


def test_a_model_that_breaks_its_contract_is_named() -> None:
    """No Finish, or something after it, is the engine's fault and says so."""

    class NoFinish(ScriptedModel):
        def stream(self, request):
            yield TextDelta("x")

    class Chatty(ScriptedModel):
        def stream(self, request):
            yield Finish("stop")
            yield TextDelta("x")

    with pytest.raises(EngineError, match="without a Finish"):
        Agent(NoFinish(name="mute")).run("q")
    with pytest.raises(EngineError, match="after its Finish"):
        Agent(Chatty()).run("q")


def test_closing_the_stream_cancels_the_engine() -> None:
    """A caller that stops listening stops the model."""
    model = ScriptedModel(["x" * 1000], chunk=1)
    stream = Agent(model).stream("q")
    next(stream)
    stream.close()
    assert model.cancelled == 1


def test_f46_closing_the_stream_cancels_all_that_run() -> None:
    """The caller goes away after the quick call: the slow ones' contexts say cancelled, nobody waits for them."""
    seen = threading.Semaphore(0)
    started = threading.Barrier(3)

    def slow(n: int, ctx: ToolContext) -> str:
        """Wait to be cancelled."""
        started.wait(10)
        while not ctx.cancelled:
            time.sleep(0.005)
        seen.release()
        return "late"

    def quick() -> str:
        """Be quick, once the others run."""
        started.wait(10)
        return "done"

    turn = [call("slow", n=1), ToolCall("", "quick"), call("slow", n=2)]
    stream = Agent(ScriptedModel([turn]), tools=[slow, quick]).stream("q")
    assert any(isinstance(event, ToolReturned) for event in stream)
    stream.close()
    assert seen.acquire(timeout=30)
    assert seen.acquire(timeout=30)


def test_f46_one_that_hangs_does_not_hold_the_others() -> None:
    """The quick calls' ToolReturned come while the slow one still runs."""
    release = threading.Event()

    def hang() -> str:
        """Hang."""
        release.wait(20)
        return "at last"

    model = ScriptedModel([[ToolCall("", "hang"), call(), call(a=3, b=3)], "ok"])
    stream = Agent(model, tools=[hang, add]).stream("q")
    returned = []
    for event in stream:
        if isinstance(event, ToolReturned):
            returned.append(event.result.text)
            if len(returned) == 2:
                release.set()
    assert returned == ["3", "6", "at last"]


def test_f46_a_tool_with_a_time_limit_is_given_up_alone() -> None:
    """Its result says so; the others and the run go on."""

    @tool(timeout=0.1)
    def hang() -> str:
        """Hang."""
        time.sleep(30)
        return "never"

    start = time.monotonic()
    result = Agent(ScriptedModel([[ToolCall("", "hang"), call()], "ok"]), tools=[hang, add]).run("q")
    assert time.monotonic() - start < 25
    assert result.steps[0].results[0].is_error
    assert result.steps[0].results[1].text == "3"
    assert result.output == "ok"


def test_the_time_limit_ends_hanging_tools() -> None:
    """`seconds` gives up what still runs and stops with its name; the conversation stays well-formed."""

    def hang() -> str:
        """Hang."""
        time.sleep(30)
        return "never"

    start = time.monotonic()
    agent = Agent(ScriptedModel([[ToolCall("", "hang"), call()], "ok"]), tools=[hang, add], limits=Limits(seconds=0.3))
    result = agent.run("q")
    assert time.monotonic() - start < 25
    assert result.stop_reason == "limit:seconds"
    assert [item.is_error for item in result.steps[0].results] == [True, False]
    assert [message.role for message in result.messages] == ["user", "assistant", "tool", "tool"]


def test_the_time_limit_ends_a_stream() -> None:
    """A model that writes for ever is stopped in the middle; what it wrote is kept."""

    def forever(_request):
        while True:
            time.sleep(0.01)
            yield "x "

    model = ScriptedModel([forever])
    result = Agent(model, limits=Limits(seconds=0.2)).run("q")
    assert result.stop_reason == "limit:seconds"
    assert result.output.startswith("x ")
    assert model.cancelled == 1


def test_f58_deadlines_do_not_look_at_the_wall_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """With time.time jumping by years in both directions a run with a time limit ends as if nothing happened."""
    jumps = iter([1e9, -1e9] * 10_000)
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + next(jumps))
    model = ScriptedModel([call(), call(a=5, b=5), "ok"])
    result = Agent(model, tools=[add], limits=Limits(seconds=30)).run("q")
    assert result.stop_reason == "done"
    left = model.requests[0].deadline - time.monotonic()
    assert 0 < left <= 30
    slow = ScriptedModel([lambda _request: (time.sleep(0.3), "late")[1]])
    assert Agent(slow, limits=Limits(seconds=0.2)).run("q").stop_reason == "limit:seconds"


def test_f39_without_max_tokens_there_is_a_cap_and_it_is_reported() -> None:
    """The engine's own default applies, and the step says how much it was; one without a default is capped here."""
    model = ScriptedModel([["x", Finish("length", Usage(generated_tokens=2048))]])
    result = Agent(model).run("q")
    assert model.requests[0].sampling.max_tokens is None
    assert result.stop_reason == "length"
    assert result.steps[0].notes == ("capped at 2048 tokens: Sampling has no max_tokens",)

    def forever(_request):
        while True:
            yield "x"

    result = Agent(ScriptedModel([forever])).run("q")
    assert result.stop_reason == "length"
    assert "capped at about 65601 tokens" in result.steps[0].notes[-1]


def test_the_limit_on_output_caps_a_step_and_is_named() -> None:
    """The request carries what is left; the run that hits it says which limit and how much."""
    model = ScriptedModel([["x", Finish("length", Usage(generated_tokens=100))]])
    result = Agent(model, limits=Limits(output_tokens=100)).run("q")
    assert model.requests[0].sampling.max_tokens == 100
    assert result.stop_reason == "limit:output_tokens"
    assert "100" in result.steps[0].notes[-1]


def test_max_tokens_of_the_caller_is_kept() -> None:
    """A smaller cap of one's own is a plain `length`."""
    model = ScriptedModel([["x", Finish("length", Usage(generated_tokens=5))]])
    result = Agent(model, sampling=Sampling(max_tokens=5)).run("q")
    assert model.requests[0].sampling.max_tokens == 5
    assert result.stop_reason == "length"


def test_what_is_left_of_output_tokens_caps_the_next_step() -> None:
    """The cap is over the whole run."""
    model = ScriptedModel([[call(), Finish("tool_calls", Usage(generated_tokens=60))], "ok"])
    Agent(model, tools=[add], limits=Limits(output_tokens=100)).run("q")
    assert [request.sampling.max_tokens for request in model.requests] == [100, 40]


def test_f40_an_engine_that_ignores_its_cap_is_stopped() -> None:
    """A stream of whitespace without end is cut by the loop."""

    def forever(_request):
        while True:
            yield " "

    model = ScriptedModel([forever])
    result = Agent(model, limits=Limits(output_tokens=50)).run("q")
    assert result.stop_reason in ("length", "limit:output_tokens")
    assert result.steps[0].finish == "length"
    assert model.cancelled == 1


def test_f47_the_same_call_for_ever() -> None:
    """The third time in a row it does not run any more, and the run says why it stopped."""
    ran = []

    def poll(job: str) -> str:
        """Poll."""
        ran.append(job)
        return "not yet"

    model = ScriptedModel(lambda request: call("poll", job="a"))
    result = Agent(model, tools=[poll]).run("q")
    assert result.stop_reason == "repeated_call"
    assert ran == ["a", "a"]
    assert [step.results[0].is_error for step in result.steps] == [False, False, True]


def test_f47_other_arguments_are_another_call() -> None:
    """A repetition that is interrupted counts from the beginning; `None` switches it off."""
    turns = [call(a=1, b=1), call(a=1, b=1), call(a=2, b=1), call(a=1, b=1), call(a=1, b=1), "ok"]
    assert Agent(ScriptedModel(turns), tools=[add]).run("q").output == "ok"
    turns = [*[call(a=1, b=1)] * 6, "ok"]
    assert Agent(ScriptedModel(turns), tools=[add], limits=Limits(same_call=None)).run("q").output == "ok"


def test_f47_turns_over_the_cap() -> None:
    """steps, tool_calls and tokens stop the run, with the limit in the reason and a conversation that can go on."""

    def endless(request):
        return [call(a=len(request.messages), b=1), Finish("tool_calls", Usage(prompt_tokens=10, generated_tokens=5))]

    for limits, reason, steps in (
        (Limits(steps=4), "limit:steps", 4),
        (Limits(tool_calls=2), "limit:tool_calls", 3),
        (Limits(tokens=40), "limit:tokens", 3),
        (Limits(output_tokens=10), "limit:output_tokens", 2),
    ):
        result = Agent(ScriptedModel(endless), tools=[add], limits=limits).run("q")
        assert (result.stop_reason, len(result.steps)) == (reason, steps)
        assert result.messages[-1].role == "tool"


@pytest.mark.parametrize("name", ["steps", "tokens", "seconds", "tool_calls", "output_tokens", "same_call", "mistakes"])
@pytest.mark.parametrize("value", [0, -1, True, "3", float("nan"), float("inf"), [1]])
def test_limits_refuse_what_is_none(name: str, value: object) -> None:
    """Each field names itself and what is allowed."""
    with pytest.raises(UsageError, match=f"`{name}` of Limits"):
        Limits(**{name: value})


def test_media_shorthands_follow_the_text() -> None:
    """images=, audio=, video= and parts= make one user message, the text first."""
    caps = Capabilities(kinds=frozenset({"text", "image", "audio", "video"}))
    model = ScriptedModel(["ok"], caps=caps)
    Agent(model).run("what?", images=["a.png", Image(b"x")], audio="b.wav", video=b"v", parts="more")
    parts = model.requests[0].messages[0].parts
    assert [part.kind for part in parts] == ["text", "text", "image", "image", "audio", "video"]
    assert parts[2].source == "a.png"
    assert parts[2].trust == "configured"


def test_a_kind_that_no_model_takes_is_refused_by_name() -> None:
    """No second model is opened for it; the error names the kind."""
    with pytest.raises(UsageError, match="'image'") as error:
        Agent(ScriptedModel(["x"], name="texter")).run("what?", images=[b"x"])
    assert error.value.code == "unsupported_kind"
    assert error.value.hint


def test_further_models_are_used_in_order() -> None:
    """The first eligible model that covers the parts answers."""
    texter = ScriptedModel(["text"], name="texter")
    seer = ScriptedModel(["seen"], name="seer", caps=Capabilities(kinds=frozenset({"text", "image"})))
    agent = Agent(texter, models=[seer])
    assert agent.run("hi").output == "text"
    assert agent.run("what?", images=[b"x"]).output == "seen"


def test_history_and_system() -> None:
    """messages= comes between system and prompt; a history with a system message of its own keeps that."""
    model = ScriptedModel(["a", "b", "c"])
    agent = Agent(model, system="be kind")
    history = [Message("user", "1"), {"role": "assistant", "parts": [{"type": "text", "text": "2"}]}]
    agent.run("3", messages=history)
    assert [(m.role, m.text) for m in model.requests[0].messages] == [
        ("system", "be kind"), ("user", "1"), ("assistant", "2"), ("user", "3")]  # fmt: skip
    agent.run("3", messages=[Message("system", "own")])
    assert [m.text for m in model.requests[1].messages] == ["own", "3"]
    agent.run(messages=[Message("user", "only history")])
    assert [m.text for m in model.requests[2].messages] == ["be kind", "only history"]


@pytest.mark.parametrize("prompt", [None, [], 5, {"a": 1}, Message("assistant", "x")])
def test_a_prompt_that_is_none_is_refused(prompt: object) -> None:
    """Nothing is opened for it."""
    model = ScriptedModel([])
    with pytest.raises(UsageError):
        Agent(model).run(prompt)
    assert not model.requests


@pytest.mark.parametrize(
    "fields",
    [
        {"tool_choice": "nope"}, {"tool_choice": "required"}, {"system": 5}, {"sampling": {}}, {"limits": 3},
        {"thinking": -1}, {"thinking": "yes"}, {"approve": 5}, {"tools": "add"}, {"tools": [5]}, {"tools": ["no_such"]},
        {"tools": [add, add]}, {"models": [5]}, {"output": {"type": "nope"}},
    ],
)  # fmt: skip
def test_a_field_that_is_wrong_is_refused_when_the_agent_is_made(fields: dict) -> None:
    """Before any model is opened."""
    with pytest.raises(UsageError):
        Agent(ScriptedModel([]), **fields)


def test_an_agent_is_immutable_and_says_no_prompt_in_its_repr() -> None:
    """Fields cannot be set; the system message is not in the repr."""
    agent = Agent(ScriptedModel([]), system="SECRET")
    with pytest.raises(AttributeError):
        agent.system = "x"
    assert "SECRET" not in repr(agent)


def test_one_agent_in_many_threads() -> None:
    """Runs do not share anything but the configuration."""
    model = ScriptedModel(lambda request: request.messages[-1].text.upper())
    agent = Agent(model)
    results = agent.batch([f"p{n}" for n in range(50)], concurrency=8)
    assert [result.output for result in results] == [f"P{n}" for n in range(50)]


def test_a_batch_keeps_order_and_the_failures_of_others() -> None:
    """Each prompt's entry is its result or its exception; dicts are arguments of run."""

    def turn(request):
        text = request.messages[-1].text
        return EngineError("no") if text == "bad" else text

    results = Agent(ScriptedModel(turn)).batch(["a", "bad", {"prompt": "b", "parts": ["c"]}, None], concurrency=2)
    assert results[0].output == "a"
    assert isinstance(results[1], EngineError)
    assert results[2].output == "bc"
    assert isinstance(results[3], UsageError)
    with pytest.raises(UsageError, match="concurrency"):
        Agent(ScriptedModel(turn)).batch(["a"], concurrency=0)


def test_a_batch_runs_no_more_at_once_than_allowed() -> None:
    """The bound holds."""
    lock = threading.Lock()
    now, most = [0], [0]

    def turn(_request):
        with lock:
            now[0] += 1
            most[0] = max(most[0], now[0])
        time.sleep(0.02)
        with lock:
            now[0] -= 1
        return "x"

    Agent(ScriptedModel(turn)).batch(["p"] * 12, concurrency=3)
    assert 1 < most[0] <= 3


class Watcher:
    """Every hook of the loop."""

    def __init__(self, choice: Choice | None = None) -> None:
        self.seen: list[str] = []
        self.choice = choice

    @hookimpl
    def before_step(self, request):
        self.seen.append(f"before {len(request.messages)}")

    @hookimpl
    def on_step(self, step):
        self.seen.append(f"step {step.index}")

    @hookimpl
    def choose_backend(self, messages, backends, current):
        self.seen.append(f"choose {current}")
        return self.choice

    @hookimpl(wrapper=True)
    def run_tool(self, call, tool):
        result = yield
        self.seen.append(f"ran {tool.name} -> {result.text}")
        return result


def test_hooks_are_called_once_a_step() -> None:
    """choose_backend, before_step, run_tool around the true run, on_step: in this order, each step."""
    watcher = Watcher()
    result = Agent(ScriptedModel([call(), "3"]), tools=[add], plugins=[watcher]).run("q")
    backend = result.steps[0].backend
    assert watcher.seen == [
        "choose None", "before 1", "ran add -> 3", "step 0", f"choose {backend or None}", "before 3", "step 1",
    ]  # fmt: skip


def test_a_hook_may_run_a_tool_in_place_of_the_agent() -> None:
    """The first result wins, and the function is not called."""
    ran = []

    def danger() -> str:
        """Danger."""
        ran.append(1)
        return "boom"

    class Dry:
        @hookimpl
        def run_tool(self, call, tool):
            return ToolResult((Text("pretended"),), call.id, call.name)

    result = Agent(ScriptedModel([ToolCall("", "danger"), "ok"]), tools=[danger], plugins=[Dry()]).run("q")
    assert not ran
    assert result.steps[0].results[0].text == "pretended"


def test_f54_hooks_that_fail_do_not_end_the_run() -> None:
    """Observers, choosers and runners that raise or return nonsense leave a run that works, or a failed call."""

    class Broken:
        @hookimpl
        def before_step(self, request):
            raise RuntimeError("CANARY")

        @hookimpl
        def on_step(self, step):
            raise SystemExit(3)

        @hookimpl
        def choose_backend(self, messages, backends, current):
            return "text"

        @hookimpl
        def run_tool(self, call, tool):
            raise ValueError("CANARY")

    result = Agent(ScriptedModel([call(), "end"]), tools=[add], plugins=[Broken()]).run("q")
    assert result.output == "end"
    assert result.steps[0].results[0].is_error
    assert "CANARY" not in result.steps[0].results[0].text


def test_the_narrowest_backend_is_chosen_and_the_current_one_kept() -> None:
    """By what the conversation holds; a plugin's choice of an unknown one is passed over and told."""
    from qwen_agent_kit.agent.hooks import Hooks, narrowest

    text, vision = Backend("text", frozenset({"text"})), Backend("vision", frozenset({"text", "image"}))
    both = (vision, text)
    assert narrowest(both, None, frozenset({"text"})).backend == "text"
    assert narrowest(both, "vision", frozenset({"text"})).backend == "vision"
    assert narrowest(both, "text", frozenset({"text", "image"})).backend == "vision"
    assert narrowest(both, None, frozenset({"audio"})).backend == ""
    hooks = Hooks(None, [Watcher(Choice("warp", "why not"))])
    choice = hooks.choose_backend((), both, None, frozenset({"text"}))
    assert choice.backend == "text"
    assert "'warp'" in choice.reason


def test_a_tool_may_ask_and_find_media() -> None:
    """ctx.ask puts a question to the same models, ctx.media finds what the conversation holds."""
    caps = Capabilities(kinds=frozenset({"text", "image"}))

    def look(ctx: ToolContext) -> str:
        """Look."""
        assert ctx.media("image 1").source == b"one"
        assert ctx.media("2").source == b"two"
        with pytest.raises(UsageError, match="image 1, image 2"):
            ctx.media("image 3")
        return ctx.ask(["what is it?", ctx.media("image_2")])

    model = ScriptedModel([ToolCall("", "look"), "a dog", "it is a dog"], caps=caps)
    result = Agent(model, tools=[look]).run("q", images=[b"one", b"two"])
    assert result.steps[0].results[0].text == "a dog"
    assert [part.kind for part in model.requests[1].messages[0].parts] == ["text", "image"]
    assert result.output == "it is a dog"


def test_images_of_tools_reach_a_model_that_sees_and_are_told_to_one_that_does_not() -> None:
    """A text model reads that something was left out; the run goes on."""

    def draw() -> Image:
        """Draw."""
        return Image(b"png")

    seer = ScriptedModel([ToolCall("", "draw"), "nice"], caps=Capabilities(kinds=frozenset({"text", "image"})))
    Agent(seer, tools=[draw]).run("q")
    assert seer.requests[1].messages[-1].media[0].source == b"png"
    texter = ScriptedModel([ToolCall("", "draw"), "ok"])
    result = Agent(texter, tools=[draw]).run("q")
    assert "image left out" in result.steps[0].results[0].text
    assert result.output == "ok"


def test_context_variables_reach_tools() -> None:
    """A tool sees the caller's context, in whatever thread it runs."""
    who = contextvars.ContextVar("who", default="nobody")

    def ask_who() -> str:
        """Say who."""
        return who.get()

    who.set("ada")
    result = Agent(ScriptedModel([ToolCall("", "ask_who"), "ok"]), tools=[ask_who]).run("q")
    assert result.steps[0].results[0].text == "ada"


def test_coroutine_tools_run_under_run() -> None:
    """Without a loop of the caller's they run on the kit's own."""

    async def later(n: int) -> int:
        """Later."""
        import asyncio

        await asyncio.sleep(0)
        return n + 1

    result = Agent(ScriptedModel([call("later", n=1), "ok"]), tools=[later]).run("q")
    assert result.steps[0].results[0].text == "2"


def test_a_run_leaves_no_thread() -> None:
    """The tool threads end with the run."""
    before = threading.active_count()
    Agent(ScriptedModel([[call(), call(a=2, b=2)], "ok"]), tools=[add]).run("q")
    deadline = time.monotonic() + 5
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() <= before


def test_making_an_agent_loads_nothing_heavy() -> None:
    """Neither torch nor pydantic nor the like is imported by constructing an agent with a tool."""
    code = (
        "import sys\n"
        "from qwen_agent_kit import Agent, tool\n"
        "def f(a: int) -> int:\n    'Doc.'\n    return a\n"
        "Agent('x', tools=[f])\n"
        "heavy = {'torch', 'transformers', 'pydantic', 'httpx', 'openai', 'mcp', 'jinja2', 'tokenizers', 'numpy',"
        " 'rich', 'asyncio', 'sqlite3'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_explain_of_an_object_says_that_there_is_no_plan() -> None:
    """A model that was given as an object was not placed by us."""
    with pytest.raises(UsageError, match="no plan"):
        Agent(ScriptedModel([])).explain()


def test_of_two_equally_narrow_backends_the_open_one_is_taken() -> None:
    """Else the first by name; what is in use comes before both."""
    from qwen_agent_kit.agent.hooks import narrowest

    kinds = frozenset({"text", "image"})
    pair = (Backend("a", kinds), Backend("b", kinds), Backend("wide", kinds | {"audio"}))
    assert narrowest(pair, None, kinds).backend == "a"
    chosen = narrowest(pair, None, kinds, frozenset({"b", "wide"}))
    assert (chosen.backend, chosen.reason) == ("b", "the narrowest that covers image, text, and its model is open")
    assert narrowest(pair, "wide", kinds, frozenset({"b"})).backend == "wide"


class Scan(Media):
    """A part of a plugin's own."""

    kind = "scan"


def test_messages_as_data_may_hold_the_parts_of_plugins() -> None:
    """What ``to_dict`` wrote goes into ``messages=`` as it is; a kind that nobody brings is named."""

    class Scans:
        @hookimpl
        def register_backends(self) -> list[Backend]:
            return [Backend("scans", frozenset({"text", "scan"}), parts=(Scan,))]

    model = ScriptedModel(["seen"], caps=Capabilities(kinds=frozenset({"text", "scan"})))
    data = Message("user", [Scan(b"bytes"), "what?"]).to_dict()
    assert Agent(model, host=Host(plugins=[Scans()])).run(messages=[data]).output == "seen"
    assert model.requests[0].messages[0].media == (Scan(b"bytes", "found"),)
    with pytest.raises(UsageError, match="type 'scan'"):
        Agent(ScriptedModel(["seen"]), host=Host()).run(messages=[data])
