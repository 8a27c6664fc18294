"""The calls of one step: which may run, which are mistakes, which wait for a person."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from qwen_agent_kit.agent.limits import Meter
from qwen_agent_kit.agent.setup import Approve, Setup
from qwen_agent_kit.errors import UsageError
from qwen_agent_kit.messages import Media, Part, Text, ToolCall, ToolResult

if TYPE_CHECKING:
    from qwen_agent_kit.tools import Tool

__all__ = ["Planned", "as_found", "errand", "fresh_ids", "judge", "plan_calls", "recheck", "refusal"]


@dataclass(slots=True)
class Planned:
    """A call on its way: ``result`` where it is settled, ``waits`` where it needs approval, else it runs."""

    call: ToolCall
    tool: Tool | None = None
    result: ToolResult | None = None
    waits: bool = False
    mistake: bool = False
    repeated: bool = False
    past_limit: bool = False
    returned: bool = False


def errand(call: ToolCall, text: str) -> ToolResult:
    """A result that tells the model why its call did not run."""
    return ToolResult((Text(text),), call.id, call.name, is_error=True)


def fresh_ids(calls: Iterable[ToolCall], seen: set[str]) -> list[ToolCall]:
    """The calls with ids that are unique in the conversation; ``seen`` grows.

    Two calls of one message that share an id are a mistake of the model, and the later one says so. An id that an
    earlier message used is only renamed: engines that count from 0 in each answer are common.
    """
    unique: list[ToolCall] = []
    here: set[str] = set()
    for given in calls:
        call = given
        if call.id in here:
            call = replace(call, error=call.error or f"the call id {call.id[:80]!r} was used twice; each needs its own")
        here.add(given.id)
        if not call.id or call.id in seen:
            number = len(seen)
            while f"call_{number}" in seen:
                number += 1
            call = replace(call, id=f"call_{number}")
        seen.add(call.id)
        unique.append(call)
    return unique


def plan_calls(calls: Sequence[ToolCall], setup: Setup, meter: Meter) -> list[Planned]:
    """Settle what cannot run: the model's mistakes, repetitions, and what is past a limit."""
    repeated = meter.repeats(calls)
    planned: list[Planned] = []
    for call in calls:
        item = _checked(call, setup)
        item.repeated = call.id in repeated
        if item.result is None and item.repeated:
            text = f"not run: the same call came {meter.limits.same_call} times in a row"
            item.result = errand(call, text)
        elif item.result is None and meter.calls_left == 0:
            item.past_limit = True
            item.result = errand(call, f"not run: the limit of {meter.limits.tool_calls} tool calls is reached")
        elif item.result is None:
            meter.calls += 1
        planned.append(item)
    return planned


def _checked(call: ToolCall, setup: Setup) -> Planned:
    """The call with its tool, or with the mistake in it."""
    from qwen_agent_kit.tools import ArgumentsError, ToolSet

    tool = setup.tools.get(call.name)
    problem = call.error
    if problem is None and setup.tool_choice == "none":
        problem = "tools are switched off for this answer"
    elif problem is None and tool is None:
        problem = ToolSet(setup.tools.values()).unknown(call.name)
    elif problem is None and tool is not None:
        try:
            tool.validate(call.arguments)
        except ArgumentsError as error:
            problem = error.feedback
    if problem is None:
        return Planned(call, tool)
    return Planned(call, tool, errand(call, problem), mistake=True)


def recheck(call: ToolCall, setup: Setup) -> Planned:
    """A call that waited, to be run now: the tools may have changed since."""
    return _checked(call, setup)


def judge(planned: Iterable[Planned], approve: Approve | None) -> None:
    """Ask for approval of each call that would run.

    Raises:
        UsageError: Where ``approve`` answers with something that is no answer.
    """
    for item in planned:
        if item.result is not None:
            continue
        assert item.tool is not None, "a call without a tool is settled"
        if approve is None:
            item.waits = item.tool.side_effects
            continue
        answer = approve(item.call)
        if answer is None:
            item.waits = True
        elif answer is not True:
            item.result = refusal(item.call, answer)


def refusal(call: ToolCall, answer: bool | str) -> ToolResult:
    """What the model reads where a person said no.

    Raises:
        UsageError: Where the answer is neither False nor a reason.
    """
    if answer is not False and not isinstance(answer, str):
        kind = type(answer).__name__
        raise UsageError(f"the answer to the call of {call.name!r} is a {kind}; allowed: True, False, a reason or None")
    return errand(call, f"refused by the user: {answer}" if answer else "refused by the user")


def as_found(result: ToolResult, call: ToolCall, accepted: frozenset[str] | None) -> ToolResult:
    """The result under its call's id, its media no longer trusted, and those that no model here reads told in words."""
    parts: tuple[Part, ...] = result.parts
    if any(isinstance(part, Media) for part in parts):
        parts = tuple(_found(part, accepted) if isinstance(part, Media) else part for part in parts)
    if parts is result.parts and result.call_id == call.id and result.name == call.name:
        return result
    return replace(result, parts=parts, call_id=call.id, name=call.name)


def _found(part: Media, accepted: frozenset[str] | None) -> Part:
    if accepted is not None and part.kind not in accepted:
        return Text(f"[{part.kind} left out: this model takes only {', '.join(sorted(accepted))}]")
    return part if part.trust == "found" or isinstance(part.source, bytes) else part.found()
