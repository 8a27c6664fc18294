"""What a run of a pipeline did."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

__all__ = ["Report"]


@dataclass(frozen=True, slots=True)
class Report:
    """The counts of one run; those of earlier runs of the same job are in ``before``.

    Args:
        sink: Where the results are.
        job: The digest of prompt, output, model, settings and columns.
        seen: Items that were read from the source.
        before: Of those, items that had a result already.
        duplicates: Of those, items that were left out because an earlier one has the same value in the key column.
        done: Items that were answered in this run.
        failed: Items whose result is an error.
        cut: Of ``done``, answers that ended at their length limit.
        retried: Attempts beyond the first.
        errors: How often each error code came.
        prompt_tokens: Of the answered items; None where the engine cannot know.
        generated_tokens: The same.
        seconds: Wall time.
        peak_items: The most items that were held at once.
        order: ``source`` or ``completion``.
        stopped: Why it ended before the source did: ``interrupted``, ``limit`` or ``max_errors``; else None.
    """

    sink: str
    job: str
    seen: int = 0
    before: int = 0
    duplicates: int = 0
    done: int = 0
    failed: int = 0
    cut: int = 0
    retried: int = 0
    errors: Mapping[str, int] = field(default_factory=dict)
    prompt_tokens: int | None = None
    generated_tokens: int | None = None
    seconds: float = 0.0
    peak_items: int = 0
    order: str = "completion"
    stopped: str | None = None

    @property
    def items_per_second(self) -> float | None:
        """Results per second of this run; None where there is none."""
        finished = self.done + self.failed
        return finished / self.seconds if finished and self.seconds > 0 else None

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "errors": dict(self.errors), "items_per_second": self.items_per_second}
