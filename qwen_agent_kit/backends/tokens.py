"""Ids in, ids out: what the local ``ChatModel`` stands on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from qwen_agent_kit.backends.sampling import Sampling
from qwen_agent_kit.backends.usage import Usage

if TYPE_CHECKING:
    import numpy as np

__all__ = ["Engine", "Generation", "MediaSpan", "Piece", "Prompt", "SpanBudget"]


@dataclass(frozen=True, slots=True)
class MediaSpan:
    """A run of placeholder ids. ``item`` is opaque to the engine and goes to ``Encoder.encode``."""

    start: int
    length: int
    digest: str
    item: Any = None


@dataclass(frozen=True, slots=True)
class Prompt:
    """Ids with the media among them; ``positions`` is an int array [3, n] for m-rope, else None."""

    ids: Sequence[int]
    media: tuple[MediaSpan, ...] = ()
    positions: np.ndarray | None = None


@dataclass(frozen=True, slots=True)
class SpanBudget:
    """Ends a span of generated ids: once ``limit`` ids were sampled inside it, ``closing`` is forced.

    Args:
        close: The id that ends the span by itself.
        limit: How many ids the span may have before it is closed.
        closing: The ids that are forced then; they end with, or contain, ``close``.
        open: The id that begins the span, or None where the prompt already did.
    """

    close: int
    limit: int
    closing: tuple[int, ...]
    open: int | None = None


@dataclass(frozen=True, slots=True)
class Piece:
    """Decoded text: never half a character. ``control`` marks the text of one control token."""

    text: str
    control: bool = False


class Generation(Protocol):
    """A request in flight: iterate for ids, or ``pieces()`` for text; one of the two, once."""

    @property
    def ids(self) -> Sequence[int]: ...

    @property
    def usage(self) -> Usage: ...

    @property
    def finish_reason(self) -> str | None: ...

    def __iter__(self) -> Iterator[int]: ...

    def pieces(self) -> Iterator[Piece]: ...

    def cancel(self) -> None: ...


class Engine(Protocol):
    """Ids in, ids out. Thread-safe; one thread of its own owns the model."""

    def submit(
        self,
        prompt: Prompt | Sequence[int],
        sampling: Sampling | None = None,
        *,
        grammar: str | None = None,
        budget: SpanBudget | None = None,
        deadline: float | None = None,
        priority: int = 0,
        salt: str = "",
    ) -> Generation: ...

    def close(self) -> None: ...
