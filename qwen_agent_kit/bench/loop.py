"""What the loop itself costs, the model's work left out.

Each part times many equal pieces of work and reports the lower quartile of a window of them, so that a machine that is
busy with something else now and then still gives the cost of the code.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator

from qwen_agent_kit.agent import Agent, Limits
from qwen_agent_kit.backends import ChatRequest
from qwen_agent_kit.bench.pieces import token_cost
from qwen_agent_kit.bench.rows import Row, table
from qwen_agent_kit.events import StepDone
from qwen_agent_kit.messages import ToolCall
from qwen_agent_kit.testing.scripted import ScriptedModel

__all__ = ["Row", "measure", "scripted_steps", "table"]

STEPS = 1_000
WINDOW = 20


def measure(steps: int = STEPS, repeats: int = 3, *, engine: bool = True) -> list[Row]:
    """All parts.

    Args:
        steps: How many steps the conversations grow to.
        repeats: How often the parts without an engine run; the best run counts.
        engine: Whether to measure with a tiny real engine and the store too; it needs torch and about a minute.
    """
    rows = [*scripted_steps(steps, repeats), *token_cost()]
    if engine:
        from qwen_agent_kit.bench.engine import engine_steps  # it imports torch

        rows += engine_steps(steps)
    return rows


def scripted_steps(steps: int = STEPS, repeats: int = 3) -> list[Row]:
    """The loop with ``ScriptedModel`` and one tool: the cost of a step early and late in one run."""
    runs = [_step_times(steps) for _ in range(repeats)]
    early = min(_around(times, WINDOW) for times in runs)
    late = min(_around(times, steps) for times in runs)
    return [
        Row(f"a step at step {WINDOW}, ScriptedModel and one tool", early, "ms/step", 0.15),
        Row(f"a step at step {steps}, ScriptedModel and one tool", late, "ms/step", 0.15),
    ]


def _step_times(steps: int) -> list[float]:
    """Milliseconds between the ends of successive steps."""

    def turn(request: ChatRequest) -> ToolCall | str:
        done = len(request.messages) // 2
        return ToolCall("", "add", {"a": done, "b": 1}) if done < steps else "done"

    def add(a: int, b: int) -> int:
        """Add two numbers."""
        return a + b

    agent = Agent(ScriptedModel(turn), tools=[add], limits=Limits(steps=steps + 1, tool_calls=None))
    return list(_between(agent, steps))


def _between(agent: Agent, steps: int) -> Iterator[float]:
    last = 0.0
    seen = 0
    for event in agent.stream("go"):
        if isinstance(event, StepDone):
            now = time.perf_counter()
            if 0 < seen < steps:
                yield (now - last) * 1000
            seen += 1
            last = now


def _around(times: list[float], step: int) -> float:
    """The lower quartile of the window around ``step``: what it costs on a quiet machine."""
    end = min(step + WINDOW // 2, len(times))
    return statistics.quantiles(times[max(0, end - WINDOW) : end], n=4)[0]
