"""Notices a generation that no longer says anything: the same few ids over and over, or nothing but blanks."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

__all__ = ["BLANKS", "REPEATED", "RepetitionWatch"]

PERIODS = 64
"""The longest n-gram, in ids, whose repetition is looked for."""

REPEATED = 512
"""So many ids in a row, each equal to the one a period before it, are a loop."""

BLANKS = 200
"""More ids in a row than this that are nothing but white space are a loop."""

EVERY = 32
"""Loops are looked for once in so many ids: the search reads a fixed window, so the cost per id is constant."""


class RepetitionWatch:
    """One per request.

    Args:
        blank: Whether an id's text is white space only.
    """

    def __init__(self, blank: Callable[[int], bool]) -> None:
        self._blank = blank
        self._blanks = 0

    def accept(self, ids: Sequence[int]) -> bool:
        """Look at the ids generated so far, of which the last is new; True where they have become a loop."""
        self._blanks = self._blanks + 1 if self._blank(ids[-1]) else 0
        if self._blanks > BLANKS:
            return True
        return len(ids) % EVERY == 0 and len(ids) > REPEATED and _loops(ids[-(REPEATED + PERIODS) :])


def _loops(tail: Sequence[int]) -> bool:
    """Whether the last ``REPEATED`` ids each equal the one p before, for some p from 1 to ``PERIODS``."""
    window = np.asarray(tail, dtype=np.int64)
    last = window[-REPEATED:]
    # Only a period at which the last id recurs can be one; in ordinary text these are few.
    before = window[-1 - PERIODS : -1][::-1]
    for period in np.flatnonzero(before == window[-1]) + 1:
        if len(window) >= REPEATED + period and np.array_equal(last, window[-REPEATED - period : -period]):
            return True
    return False
