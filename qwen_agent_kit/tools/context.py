"""What a tool may ask of the run that it is part of."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from qwen_agent_kit.errors import UsageError
from qwen_agent_kit.messages import Media, ToolCall

__all__ = ["ToolContext"]


@dataclass(frozen=True)
class ToolContext:
    """A parameter annotated with this type is filled in by the run and is not in the tool's schema.

    Args:
        call: The call that is being run.
        deadline: When the tool should have ended, in seconds of ``time.monotonic()``; None for never.
        cancel: Set by the run once it is cancelled.
        find_media: ``ref -> Media``; what ``media`` asks.
        answer: ``(parts, kinds) -> str``; what ``ask`` asks.
    """

    call: ToolCall = field(default_factory=lambda: ToolCall("", ""))
    deadline: float | None = None
    cancel: threading.Event | None = None
    find_media: Callable[[str], Media] | None = None
    answer: Callable[[Sequence[Any], frozenset[str] | None], str] | None = None
    abandoned: threading.Event = field(default_factory=threading.Event, repr=False, compare=False)

    def media(self, ref: str) -> Media:
        """The image, clip or document of the conversation that ``ref`` names.

        Raises:
            UsageError: Where the run has no media, or none of that name.
        """
        if self.find_media is None:
            raise UsageError(f"there is no medium {ref!r}: this run has no media")
        return self.find_media(ref)

    def ask(self, parts: Any, *, kinds: Iterable[str] | None = None) -> str:
        """Put a question of the tool's own to a model of the run and return its text.

        Args:
            parts: A string, a part, or a sequence of these.
            kinds: The part kinds that the answering model must accept; None for those of ``parts``.

        Raises:
            UsageError: Where the run offers no model to tools.
        """
        if self.answer is None:
            raise UsageError("this run offers no model to its tools", hint="call the tool from an Agent")
        several = parts if isinstance(parts, list | tuple) else (parts,)
        return self.answer(several, None if kinds is None else frozenset(kinds))

    @property
    def cancelled(self) -> bool:
        """True once nobody waits for this call any more: the run was cancelled, or the call timed out."""
        return self.abandoned.is_set() or (self.cancel is not None and self.cancel.is_set())

    @property
    def remaining(self) -> float | None:
        """Seconds until the deadline, never below 0; None where there is none."""
        return None if self.deadline is None else max(0.0, self.deadline - time.monotonic())
