"""What a run yields while it goes on, and what it leaves at the end.

``Agent.stream`` yields the members of ``Event``, in this order within a step: deltas, then one ``ToolCalled`` and one
``ToolReturned`` per call, then ``StepDone``; ``RunDone`` comes once, last.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from qwen_agent_kit.messages import Message, ToolCall, ToolResult

if TYPE_CHECKING:
    from qwen_agent_kit.backends import Usage

__all__ = [
    "Event",
    "ReasoningDelta",
    "RunDone",
    "RunResult",
    "Step",
    "StepDone",
    "TextDelta",
    "ToolCalled",
    "ToolReturned",
]


@dataclass(frozen=True, slots=True)
class TextDelta:
    """More of the answer's text."""

    text: str

    def to_dict(self) -> dict[str, Any]:
        return {"event": "text", "text": self.text}


@dataclass(frozen=True, slots=True)
class ReasoningDelta:
    """More of what the model thinks."""

    text: str

    def to_dict(self) -> dict[str, Any]:
        return {"event": "reasoning", "text": self.text}


@dataclass(frozen=True, slots=True)
class ToolCalled:
    """A call is about to run (or, where ``call.error`` is set, was malformed and will not)."""

    call: ToolCall

    def to_dict(self) -> dict[str, Any]:
        return {"event": "tool_called", "call": self.call.to_dict()}


@dataclass(frozen=True, slots=True)
class ToolReturned:
    """A call ended; ``ms`` is the wall time it took."""

    call: ToolCall
    result: ToolResult
    ms: float

    def to_dict(self) -> dict[str, Any]:
        return {"event": "tool_returned", "call_id": self.call.id, "result": self.result.to_dict(), "ms": self.ms}


@dataclass(frozen=True, slots=True)
class Step:
    """One turn of the model and the tools it called.

    Args:
        index: From 0 inside the run.
        message: What the model said.
        results: One per call, in the order of the calls.
        usage: What the step cost.
        finish: Why the model stopped: ``stop``, ``tool_calls``, ``length``, ``repetition``, ``cancelled`` or ``error``.
        backend: The backend that was chosen, with the reason.
        notes: What a reader should know, one line each ("model changed", "strict mode off: validated after the fact").
    """

    index: int
    message: Message
    results: tuple[ToolResult, ...]
    usage: Usage
    finish: str
    backend: str = ""
    reason: str = ""
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        return {
            "index": self.index,
            "message": self.message.to_dict(),
            "results": [result.to_dict() for result in self.results],
            "usage": self.usage.to_dict(),
            "finish": self.finish,
            "backend": self.backend,
            "reason": self.reason,
            "notes": list(self.notes),
        }


@dataclass(frozen=True, slots=True)
class StepDone:
    """A step ended."""

    step: Step

    def to_dict(self) -> dict[str, Any]:
        return {"event": "step_done", "step": self.step.to_dict()}


@dataclass(frozen=True, slots=True)
class RunResult:
    """The end of a run.

    Args:
        output: The answer's text, or the validated object where an output type was asked for.
        messages: The whole conversation, the prompt included.
        steps: What happened, in order.
        usage: The sum over the steps.
        stop_reason: ``done``, ``length``, ``limit:<name>``, ``repeated_call``, ``approval``, ``cancelled``, ``error``.
        pending: The calls that wait for approval, where ``stop_reason`` is ``approval``.
    """

    output: Any
    messages: tuple[Message, ...]
    steps: tuple[Step, ...]
    usage: Usage
    stop_reason: str
    pending: tuple[ToolCall, ...] = ()


@dataclass(frozen=True, slots=True)
class RunDone:
    """The run ended."""

    result: RunResult

    def to_dict(self) -> dict[str, Any]:
        return {"event": "run_done", "stop_reason": self.result.stop_reason, "usage": self.result.usage.to_dict()}


Event = TextDelta | ReasoningDelta | ToolCalled | ToolReturned | StepDone | RunDone
