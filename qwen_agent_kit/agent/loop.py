"""The loop: the model speaks, its calls run, it reads the results, until it is done or must stop.

A step: hook ``before_step`` -> ``ChatModel.stream`` -> events as they come -> the assistant's message -> its calls side
by side -> one tool message each, in the order of the calls -> hook ``on_step`` -> ``StepDone``. Nothing in a step costs
more in a long conversation, but for one copy of the list of messages.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import reduce
from operator import add
from typing import TYPE_CHECKING, Any

from qwen_agent_kit.agent import calls
from qwen_agent_kit.agent.asking import Asking
from qwen_agent_kit.agent.calls import Planned
from qwen_agent_kit.agent.cancel import Cancel
from qwen_agent_kit.agent.heard import Heard
from qwen_agent_kit.agent.limits import MAX_STEP, Meter
from qwen_agent_kit.agent.output import FINAL_ANSWER
from qwen_agent_kit.agent.setup import Setup, close, kinds_of
from qwen_agent_kit.agent.toolbox import Toolbox
from qwen_agent_kit.backends import ChatModel, ChatRequest, Finish, Usage
from qwen_agent_kit.errors import EngineError, OutputError
from qwen_agent_kit.events import Event, ReasoningDelta, RunDone, RunResult, Step, StepDone, TextDelta
from qwen_agent_kit.messages import Message, Text, ToolCall, ToolResult

if TYPE_CHECKING:
    import asyncio

    from qwen_agent_kit.tools import OutputType

__all__ = ["Open", "Run"]

_NOTHING: Any = object()


@dataclass(frozen=True, slots=True)
class Open:
    """A step that waits for approval: what its other calls returned, by call id, and what was decided since."""

    waiting: tuple[str, ...]
    results: Mapping[str, ToolResult]
    decisions: Mapping[str, bool | str] = field(default_factory=dict)


class Run:
    """One run over a list of messages that it extends.

    Args:
        setup: The agent, resolved.
        messages: The conversation so far, the prompt included; the run appends to it.
        output: What the answer must be; None for text.
        cancel: Set by whoever wants the run to end, and by the run itself when it ends.
        loop: The caller's event loop, for coroutine tools; None for the kit's private one.
        open_step: The step to finish first, where the last message's calls waited for approval.

    Attributes:
        pending: The step that waits for approval, once the run stopped for that.
    """

    def __init__(
        self,
        setup: Setup,
        messages: list[Message],
        *,
        output: OutputType | None = None,
        cancel: Cancel | None = None,
        loop: asyncio.AbstractEventLoop | None = None,
        open_step: Open | None = None,
    ) -> None:
        self.messages = messages
        self.pending: Open | None = None
        self._open = open_step
        self._setup = setup
        self._cancel = cancel or Cancel()
        self._meter = Meter(setup.limits)
        self._output = output
        self._asking = Asking(setup, output, self._meter)
        self._toolbox = Toolbox(setup, messages, self._meter, self._cancel, loop)
        self._asked: tuple[ChatModel, ChatRequest] | None = None
        self._steps: list[Step] = []
        self._stop: str | None = None
        self._answer: Any = _NOTHING
        self._correction: str | None = None
        self._kinds = frozenset({"text"}).union(*(kinds_of(message) for message in messages))
        self._seen = {call.id for message in messages for call in message.tool_calls}

    def events(self) -> Generator[Event, None, None]:
        """Run; closing the iterator stops the model and the tools.

        Raises:
            OutputError: Where the answer did not fit in ``limits.mistakes`` tries; its ``result`` is the run so far.
            QakError: What opening or running the model raises; the steps that were complete stay in ``messages``.
        """
        try:
            if self._open is not None:
                yield from self._go_on(self._open)
            while self._stop is None:
                self._stop = "cancelled" if self._cancel.is_set else self._meter.stop()
                if self._stop is None:
                    yield from self._step()
        finally:
            self._cancel.set()
            self._toolbox.close()
        if self._output is not None and self._stop == "limit:mistakes":
            last = self._correction or "the model's tool calls could not be run"
            error = OutputError(f"no answer that fits came in {self._setup.limits.mistakes} tries; last: {last}")
            error.result = replace(self._result(), stop_reason="error")
            raise error
        yield RunDone(self._result())

    def look_ahead(self) -> None:
        """Once the turn is over: let a model that can compute what the next turn begins with, while nobody asks."""
        if self._asked is not None and self._stop not in ("approval", "cancelled", "error"):
            model, request = self._asked
            if (ahead := getattr(model, "ahead", None)) is not None:
                ahead(replace(request, messages=tuple(self.messages)))

    # --- a step ----------------------------------------------------------------------------------------------------

    def _step(self) -> Iterator[Event]:
        if self._correction is not None:
            self.messages.append(Message("user", (Text(self._correction),)))
            self._correction = None
        first = not self._steps and self._open is None and self.messages[-1].role == "user"
        model, request = self._asking.request(self.messages, self._kinds, first=first)
        self._setup.hooks.before_step(request)
        self._asked = model, request
        heard = Heard()
        yield from self._listen(model, request, heard)
        if self._cancel.is_set:
            return
        if self._meter.late and not heard.deltas:
            self._stop = "limit:seconds"  # nothing was said: that is no step
            return
        finish = heard.finish or Finish("cancelled" if self._meter.late else "length")
        self._meter.count(finish.usage, heard.deltas)
        made = calls.fresh_ids(heard.calls, self._seen)
        choice = self._asking.choice
        step = Step(
            len(self._steps),
            heard.message(iter(made)),
            (),
            finish.usage,
            finish.reason,
            choice.backend,
            choice.reason,
            finish.notes,
        )
        if finish.reason in ("stop", "tool_calls"):
            planned = self._plan(made)
        else:
            step = self._broken_off(step, request, heard.deltas)
            planned = [Planned(call, None, calls.errand(call, "not run: the answer was cut off")) for call in made]
        yield from self._finish(step, planned)

    def _listen(self, model: ChatModel, request: ChatRequest, heard: Heard) -> Iterator[TextDelta | ReasoningDelta]:
        """Pass on what the model says, until it ends or has to be stopped."""
        # An engine that ignores max_tokens is stopped here. A token is at most two deltas: what was held back, and it.
        most = 2 * (request.sampling.max_tokens or MAX_STEP) + 64
        stream = model.stream(request)
        try:
            for delta in stream:
                event = heard.add(delta)
                if event is not None:
                    yield event
                if self._cancel.is_set or heard.deltas > most or self._meter.late:
                    return
        except EngineError as error:
            if error.code != "queue_timeout" or not self._meter.late:
                raise
            return  # our own deadline passed before it was its turn
        finally:
            close(stream)
        if heard.finish is None:
            raise EngineError(f"the model `{model.name}` ended its stream without a Finish")

    def _broken_off(self, step: Step, request: ChatRequest, deltas: int) -> Step:
        """A step that did not end by itself: the run stops, and none of its calls runs, complete or not."""
        own, cap = self._setup.sampling.max_tokens, request.sampling.max_tokens
        self._stop = step.finish if step.finish in ("cancelled", "error") else "length"
        if self._meter.late:
            self._stop = "limit:seconds"
        elif self._stop == "length" and cap != own and self._meter.output_left == 0:
            self._stop = "limit:output_tokens"
            return replace(step, notes=(*step.notes, f"capped at {cap} tokens by Limits.output_tokens"))
        elif step.finish == "length" and cap is None:
            count = step.usage.generated_tokens or f"about {deltas}"
            return replace(step, notes=(*step.notes, f"capped at {count} tokens: Sampling has no max_tokens"))
        return step

    def _plan(self, made: Sequence[ToolCall]) -> list[Planned]:
        """Which calls run: mistakes settled, approval asked, a call of ``final_answer`` taken as the answer."""
        wanted = self._asking.wanted
        given = [call for call in made if wanted is None or wanted.tool is None or call.name != FINAL_ANSWER]
        planned = {item.call.id: item for item in calls.plan_calls(given, self._setup, self._meter)}
        calls.judge(planned.values(), self._setup.approve)
        for call in made:
            if call.id in planned:
                continue
            assert wanted is not None, "only `final_answer` is left out above"
            try:
                self._answer = wanted.from_call(call)
                planned[call.id] = Planned(call, None, ToolResult((Text("accepted"),), call.id, call.name))
            except OutputError as error:
                text = wanted.correction(error.message)
                planned[call.id] = Planned(call, None, calls.errand(call, text), mistake=True)
        return [planned[call.id] for call in made]

    def _go_on(self, waiting: Open) -> Iterator[Event]:
        """Finish the step that waited: run what was approved, refuse what was refused."""
        planned = []
        message = self.messages.pop()
        for call in message.tool_calls:
            if call.id in waiting.results:
                planned.append(Planned(call, None, waiting.results[call.id], returned=True))
                continue
            item = calls.recheck(call, self._setup)
            decision = waiting.decisions.get(call.id)
            if item.result is None and decision is None:
                item.waits = True
            elif item.result is None and decision is not None and decision is not True:
                item.result = calls.refusal(call, decision)
            planned.append(item)
        yield from self._finish(Step(0, message, (), Usage(), "tool_calls"), planned)

    def _finish(self, step: Step, planned: Sequence[Planned]) -> Iterator[Event]:
        """Run the calls, put the step into the conversation, and tell of it."""
        if planned:
            start = time.perf_counter()
            yield from self._toolbox.run(planned)
            if self._cancel.is_set:
                return
            for item in planned:
                if item.result is not None:
                    item.result = calls.as_found(item.result, item.call, self._asking.accepted)
            spent = (time.perf_counter() - start) * 1000
            step = replace(
                step,
                results=tuple(item.result for item in planned if item.result is not None),
                usage=replace(step.usage, tool_ms=spent),
            )
        self._steps.append(step)
        self.messages.append(step.message)
        waiting = tuple(item.call.id for item in planned if item.waits)
        if waiting:
            self.pending = Open(waiting, {result.call_id: result for result in step.results})
            self._stop = "approval"
            return
        for result in step.results:
            message = Message("tool", (result,))
            self.messages.append(message)
            self._kinds |= kinds_of(message)
        self._stop = self._stop or self._verdict(step, planned)
        self._setup.hooks.on_step(step)
        yield StepDone(step)

    def _verdict(self, step: Step, planned: Sequence[Planned]) -> str | None:
        """Why the run ends with this step, None where it goes on."""
        if not planned:
            return self._read_answer(step.message.text)
        useful = any(not item.mistake for item in planned)
        self._meter.mistakes = 0 if useful else self._meter.mistakes + 1
        if self._answer is not _NOTHING:
            return "done"
        if any(item.repeated for item in planned):
            return "repeated_call"
        return "limit:tool_calls" if any(item.past_limit for item in planned) else None

    def _read_answer(self, text: str) -> str | None:
        """Take the text as the answer, or note what the model must mend."""
        wanted = self._asking.wanted
        if wanted is None:
            return "done"
        try:
            self._answer = wanted.from_text(text)
        except OutputError as error:
            self._meter.mistakes += 1
            self._correction = wanted.correction(error.message)
            return None
        return "done"

    def _result(self) -> RunResult:
        answer = self._answer if self._answer is not _NOTHING else None
        if self._output is None:
            answer = next((m.text for m in reversed(self.messages) if m.role == "assistant"), "")
        waiting = set(self.pending.waiting) if self.pending is not None else set()
        pending = tuple(call for call in self._steps[-1].message.tool_calls if call.id in waiting) if waiting else ()
        usage = reduce(add, (step.usage for step in self._steps), Usage())
        assert self._stop is not None, "a run that ended has a reason"
        return RunResult(answer, tuple(self.messages), tuple(self._steps), usage, self._stop, pending)
