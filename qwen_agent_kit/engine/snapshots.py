"""Recurrent states of one sequence, for models whose layers keep one instead of keys and values.

Such a state cannot be cut: from the one after 100 positions there is no way back to the one after 50. So a few are
kept, at the ends of prompts, where generations ended, and where another prompt once parted; a prefix is reused up to
one of these, no further.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from qwen_agent_kit.placement.shape import STATES

__all__ = ["MOST_STATES", "Snapshots"]

MOST_STATES = STATES
"""Kept per sequence, the current one included."""


class Snapshots:
    """States by the number of positions that they come after. A state is never changed once it is here."""

    def __init__(self) -> None:
        self._kept: dict[int, Any] = {}
        self._marks: set[int] = set()

    def __len__(self) -> int:
        return len(self._kept)

    def at(self, position: int) -> Any:
        """The state after ``position`` positions, None where it is not kept."""
        return self._kept.get(position)

    def put(self, position: int, state: Any) -> None:
        """Take the current state; earlier ones go unless they were marked.

        Where there are too many the first stays, which is the beginning that many share, and the latest.
        """
        kept = {at: old for at, old in sorted(self._kept.items()) if at in self._marks and at != position}
        while len(kept) >= MOST_STATES:
            del kept[list(kept)[1]]
        self._kept = {**kept, position: state}

    def begin(self, kept: int, marks: Iterable[int]) -> None:
        """The sequence goes on after its first ``kept`` positions: later states go, earlier ones stay.

        Args:
            kept: Positions.
            marks: Where states are to be kept from now on.
        """
        self._kept = {at: state for at, state in self._kept.items() if at <= kept}
        self._marks = {*self._kept, *marks}

    def share(self, other: Snapshots, length: int) -> None:
        """Keep the states of another sequence after at most ``length`` positions."""
        self._kept = {at: state for at, state in other._kept.items() if at <= length}

    def before(self, position: int) -> int:
        """The last position, at most ``position``, whose state is kept; 0 where none is."""
        return max((at for at in self._kept if at <= position), default=0)

    def split(self, start: int, count: int) -> int:
        """How many of the next ``count`` positions to compute at once, so that no mark is passed."""
        return min((at - start for at in self._marks if start < at < start + count), default=count)
