"""Drafts: what the conversation said the last time it came by here, tried in one forward with the next id.

The tail of the ids is looked for earlier on in prompt, tool results and answers; what followed there is the draft. The
model computes it together with the id before it, and each row is drawn from exactly as if it had come alone: the draft
only decides whether the next row is of use. So output is the same with and without, greedy or seeded.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from qwen_agent_kit.engine.content import Ids
from qwen_agent_kit.engine.costs import Costs

__all__ = ["Drafter", "lookup"]

SHORTEST = 3
"""Fewer equal ids than this are no reason to expect more."""

LONGEST = 12
"""More are not told apart."""

MOST = 10
"""Ids of one draft."""

FIRST_CHANCE = 0.6
LEARN = 0.12
RECOVER = 0.01
"""How the chance of a drafted id is guessed at first, learned, and drawn back to the guess while nothing is tried."""


def lookup(ids: Ids, most: int) -> Ids:
    """What followed the latest of the longest earlier runs that equal the end of ``ids``; empty where there is none.

    Args:
        ids: The sequence so far.
        most: The most ids of a draft.
    """
    n = len(ids)
    if n <= SHORTEST or most < 1:
        return ids[:0]
    ends = np.flatnonzero(ids[SHORTEST - 1 : n - 1] == ids[n - 1]) + SHORTEST
    for back in range(2, LONGEST + 1):
        if not ends.size:
            break
        longer = ends[(ends >= back) & (ids[ends - back] == ids[n - back])]
        if not longer.size and back > SHORTEST:
            break
        ends = longer
    if not ends.size:
        return ids[:0]
    at = int(ends[-1])
    return ids[at + np.arange(most) % (n - at)]


class Drafter:
    """One per request: what it drafted, what came true, and whether it is worth going on."""

    def __init__(self) -> None:
        self.drafted = 0
        self.accepted = 0
        self._chance = FIRST_CHANCE
        self._draft: Sequence[int] = ()
        self._seen = 0
        self._right = 0
        self._true = False

    def propose(self, ids: Ids, costs: Costs, rows: int, most: int, fits: Callable[[list[int]], int]) -> list[int]:
        """A draft to compute beside ``rows``, or nothing where it would not pay.

        Args:
            ids: The sequence so far.
            costs: Of a step.
            rows: Of this step without the draft.
            most: The most ids that may be drafted.
            fits: How many ids of a run the grammar allows.
        """
        count = costs.draft(rows, self._chance, min(most, MOST))
        if not count:
            self._chance += RECOVER * (FIRST_CHANCE - self._chance)
            return []
        draft: list[int] = lookup(ids, count).tolist()
        return draft[: fits(draft)] if draft else draft

    def begin(self, draft: Sequence[int]) -> None:
        """A step was computed with this draft; the ids that are appended now are held against it."""
        self.drafted += len(draft)
        self._draft, self._seen, self._right, self._true = draft, 0, 0, False

    def see(self, token: int) -> bool:
        """Take an id that is appended.

        Returns:
            Whether the id before it had come true: its keys and values are there, and count now that another follows.
        """
        before = self._true
        at = self._seen
        self._true = at == self._right and at < len(self._draft) and self._draft[at] == token
        self._seen += 1
        self._right += self._true
        self.accepted += self._true
        return before

    @property
    def holds(self) -> bool:
        """Whether all ids since ``begin`` were as drafted, so that the next row is of use."""
        return self._right == self._seen

    def end(self) -> None:
        """The step is over: learn from it."""
        for at in range(min(self._seen, len(self._draft), self._right + 1)):
            self._chance += LEARN * ((1.0 if at < self._right else 0.0) - self._chance)
        self.begin(())
