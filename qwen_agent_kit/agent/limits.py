"""How far a run may go, and the count of how far it went."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from qwen_agent_kit.backends import Usage
from qwen_agent_kit.errors import UsageError
from qwen_agent_kit.messages import ToolCall

__all__ = ["Limits", "MAX_STEP", "Meter"]

MAX_STEP = 32_768
"""Tokens of one step of an engine that has no cap of its own."""


_MOST = 10**15
"""No run gets there, and clocks and counters take it."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What ends a run that does not end by itself; None is no limit. Times are on the monotonic clock.

    Args:
        steps: The most turns of the model.
        tokens: The most tokens in all, prompt and generated, summed over the steps.
        seconds: The most wall time.
        tool_calls: The most tool calls that run.
        output_tokens: The most generated tokens over all steps; what is left of it caps each step. A step is capped in
            any case: by ``Sampling.max_tokens``, else by the engine's default, else at ``MAX_STEP`` (F39).
        same_call: A call with the same name and arguments that comes in this many steps in a row is not run again.
        mistakes: The most steps in a row in which the model did nothing that could be used (malformed calls, unknown
            tools, wrong arguments, output that does not fit).

    Where an engine cannot count tokens, each delta that it streams counts as one.

    Raises:
        UsageError: Names the field, what was found and the allowed range.
    """

    steps: int | None = 50
    tokens: int | None = None
    seconds: float | None = None
    tool_calls: int | None = 200
    output_tokens: int | None = None
    same_call: int | None = 3
    mistakes: int | None = 3

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            whole = field.name != "seconds"
            if value is None:
                continue
            least = {"same_call": 2}.get(field.name, 1) if whole else 0
            allowed = f"a whole number from {least}" if whole else "a number above 0"
            kind = int if whole else int | float
            fits = isinstance(value, kind) and not isinstance(value, bool) and 0 < value <= _MOST and value >= least
            if not fits:
                raise UsageError(f"`{field.name}` of Limits is {_shown(value)}; allowed: {allowed}, or None")


def _shown(value: Any) -> str:
    """A value in few characters; Python refuses to print a very long integer."""
    return "a very large integer" if isinstance(value, int) and abs(value) > 10**80 else repr(value)[:80]


class Meter:
    """Counts what a run used up; every question costs the same however long the run is.

    Args:
        limits: What is allowed.
        deadline: An earlier end on ``time.monotonic()``, where the caller has one.
    """

    def __init__(self, limits: Limits, deadline: float | None = None) -> None:
        own = time.monotonic() + limits.seconds if limits.seconds is not None else math.inf
        end = min(own, deadline if deadline is not None else math.inf)
        self.limits = limits
        self.deadline = None if end == math.inf else end
        self.steps = 0
        self.tokens = 0
        self.generated = 0
        self.calls = 0
        self.mistakes = 0
        self._streaks: dict[str, int] = {}

    @property
    def late(self) -> bool:
        """Whether the time is up."""
        return self.deadline is not None and time.monotonic() >= self.deadline

    @property
    def seconds_left(self) -> float | None:
        """Seconds until the time is up, None where there is no end."""
        return None if self.deadline is None else max(0.0, self.deadline - time.monotonic())

    @property
    def output_left(self) -> int | None:
        """Tokens that may still be generated."""
        most = self.limits.output_tokens
        return None if most is None else max(0, most - self.generated)

    @property
    def calls_left(self) -> int | None:
        """Tool calls that may still run."""
        most = self.limits.tool_calls
        return None if most is None else max(0, most - self.calls)

    def count(self, usage: Usage, deltas: int) -> None:
        """Add a step; ``deltas`` stands in where the engine cannot count its tokens."""
        generated = usage.generated_tokens if usage.generated_tokens is not None else deltas
        self.steps += 1
        self.generated += generated
        self.tokens += generated + (usage.prompt_tokens or 0)

    def add_tokens(self, usage: Usage) -> None:
        """Add what a tool asked of a model."""
        self.generated += usage.generated_tokens or 0
        self.tokens += (usage.generated_tokens or 0) + (usage.prompt_tokens or 0)

    def stop(self) -> str | None:
        """Why no further step may begin, None where one may."""
        limits = self.limits
        if self.late:
            return "limit:seconds"
        if limits.steps is not None and self.steps >= limits.steps:
            return "limit:steps"
        if limits.tokens is not None and self.tokens >= limits.tokens:
            return "limit:tokens"
        if limits.mistakes is not None and self.mistakes >= limits.mistakes:
            return "limit:mistakes"
        if self.output_left == 0:
            return "limit:output_tokens"
        return None

    def repeats(self, calls: Iterable[ToolCall]) -> set[str]:
        """The ids of calls that came in ``same_call`` steps in a row, this one included."""
        keys = [(call.id, _key(call.name, call.arguments)) for call in calls]
        before = self._streaks
        self._streaks = {key: before.get(key, 0) + 1 for _, key in keys}
        most = self.limits.same_call
        return set() if most is None else {ident for ident, key in keys if self._streaks[key] >= most}


def _key(name: str, arguments: Mapping[str, Any]) -> str:
    return f"{name}\n{json.dumps(dict(arguments), sort_keys=True, default=repr)}"
