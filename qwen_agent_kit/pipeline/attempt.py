"""One item through the agent: its record, whatever happens."""

from __future__ import annotations

import threading
from collections.abc import Generator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from qwen_agent_kit.errors import (
    EngineError,
    FetchError,
    ModelError,
    OutputError,
    PlanError,
    PluginError,
    QakError,
    SchemaError,
)
from qwen_agent_kit.events import RunDone, RunResult

if TYPE_CHECKING:
    from qwen_agent_kit.agent import Agent
    from qwen_agent_kit.messages import Part
    from qwen_agent_kit.pipeline.items import Item
    from qwen_agent_kit.tools import OutputType

__all__ = ["Outcome", "Runner", "failure"]

MESSAGE = 500
"""Characters of an error's message that are kept."""
FIRST_PAUSE = 0.25
LONGEST_PAUSE = 8.0
"""Seconds before another attempt; the pause doubles."""
_FATAL = (ModelError, PlanError, PluginError, SchemaError)
"""What is wrong for every item: the job ends, and no item is blamed."""
_ANSWERED = ("done", "length")


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of an item.

    Args:
        item: Which one.
        record: As the journal keeps it.
        result: The run, where there is one.
    """

    item: Item
    record: dict[str, Any]
    result: RunResult | None = None


@dataclass(frozen=True, slots=True)
class Runner:
    """Runs items through an agent.

    Args:
        agent: Usable from many threads.
        output: What the answers must be.
        retries: Attempts beyond the first, for faults that may pass.
        stop: Ends a run at its next event, and pauses at once.
    """

    agent: Agent
    output: OutputType | None
    retries: int
    stop: threading.Event

    def run(self, item: Item, parts: list[Part]) -> Outcome | None:
        """The outcome of an item; None where it was stopped.

        Raises:
            QakError: Where no item could run.
        """
        attempt = 0
        while True:
            attempt += 1
            try:
                result = self._once(parts)
            except _FATAL:
                raise
            except Exception as error:  # noqa: BLE001  # one item's failure is its own result and must lose no other
                if self.stop.is_set():
                    return None
                if attempt > self.retries or not _may_pass(error):
                    return failure(item, error, attempt)
                self.stop.wait(min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** (attempt - 1)))
                continue
            return _outcome(item, result, attempt) if result is not None else None

    def _once(self, parts: list[Part]) -> RunResult | None:
        events: Generator[Any, None, None] = self.agent.stream(parts, output=self.output)
        try:
            for event in events:
                if isinstance(event, RunDone):
                    return event.result
                if self.stop.is_set():
                    return None
        finally:
            events.close()
        raise AssertionError("a run ends with RunDone or raises")


def failure(item: Item, error: Exception, attempts: int = 0) -> Outcome:
    """The outcome of an item that ended with an error."""
    # What an unknown exception says may hold parts of the prompt or the answer; its type is enough to find it.
    code, message = "unexpected", "an error of no type that the kit knows"
    if isinstance(error, QakError):
        code, message = error.code, error.message[:MESSAGE]
    described = {"type": type(error).__name__, "code": code, "message": message}
    result = error.result if isinstance(error, OutputError) else None
    return Outcome(item, _record(item, error=described, attempts=attempts), result)


def _may_pass(error: Exception) -> bool:
    """Whether another attempt could end otherwise: not where the item itself is refused."""
    return isinstance(error, EngineError | FetchError | OutputError) or not isinstance(error, QakError)


def _outcome(item: Item, result: RunResult, attempts: int) -> Outcome:
    from pydantic_core import to_jsonable_python

    if result.stop_reason not in _ANSWERED:
        message = f"the run ended with {result.stop_reason!r}"
        described = {"type": "Stopped", "code": result.stop_reason.split(":")[0], "message": message}
        return Outcome(item, _record(item, error=described, attempts=attempts, stop=result.stop_reason), result)
    output = to_jsonable_python(result.output, fallback=str, inf_nan_mode="null")
    return Outcome(item, _record(item, output=output, attempts=attempts, stop=result.stop_reason), result)


def _record(
    item: Item, *, output: Any = None, error: dict[str, Any] | None = None, attempts: int = 0, stop: str | None = None
) -> dict[str, Any]:
    return {
        "key": item.key,
        "index": item.index,
        "output": output,
        "error": error,
        "stop_reason": stop,
        "attempts": attempts,
    }
