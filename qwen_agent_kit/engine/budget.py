"""Counts the ids of a span and says when it must be closed."""

from __future__ import annotations

from qwen_agent_kit.backends import SpanBudget

__all__ = ["SpanCounter"]


class SpanCounter:
    """One per request; ``due`` is asked before each draw."""

    def __init__(self, budget: SpanBudget) -> None:
        self._budget = budget
        self._inside = budget.open is None
        self._count = 0

    def accept(self, token: int) -> None:
        """Count an id that was appended."""
        if self._inside:
            self._inside = token != self._budget.close
            self._count += 1
        elif token == self._budget.open:
            self._inside, self._count = True, 0

    def due(self) -> tuple[int, ...]:
        """The closing ids where the span has had its limit, else nothing."""
        return self._budget.closing if self._inside and self._count >= self._budget.limit else ()
