"""What a decode step costs by its rows, as measured while serving, and how many drafted ids that makes worth trying."""

from __future__ import annotations

__all__ = ["Costs"]

GUESS = 0.12
"""Before anything else was measured, each further row is taken to cost this share of the first step known."""

WEIGHT = 0.2
"""Of a new measurement against all earlier ones."""

OUTLIER = 4.0
"""A step that took so many times the usual counts as this much: another process had the core."""

GAIN = 1.03
"""A longer draft has to promise this much more."""


class Costs:
    """Seconds per forward by number of rows, smoothed. Used by the engine's thread alone."""

    def __init__(self) -> None:
        self._seconds: dict[int, float] = {}

    def note(self, rows: int, seconds: float) -> None:
        """A decode step with so many rows took so long."""
        before = self._seconds.get(rows)
        if before is None:
            self._seconds[rows] = seconds
        else:
            self._seconds[rows] = before + WEIGHT * (min(seconds, OUTLIER * before) - before)

    def of(self, rows: int) -> float | None:
        """What a step of so many rows takes: measured, else between its neighbours; None where nothing is known."""
        known = self._seconds
        if rows in known or not known:
            return known.get(rows)
        below = max((r for r in known if r < rows), default=None)
        above = min((r for r in known if r > rows), default=None)
        if below is not None and above is not None:
            share = (rows - below) / (above - below)
            return known[below] + share * (known[above] - known[below])
        nearest = below if below is not None else above
        assert nearest is not None, "something is known"
        return known[nearest] * max(0.1, 1 + GUESS * (rows - nearest))

    def draft(self, rows: int, chance: float, most: int) -> int:
        """How many drafted ids bring most ids per second, beside ``rows`` that are computed anyway.

        Args:
            rows: Of the step so far.
            chance: That a drafted id is right.
            most: The most that can be drafted.
        """
        base = self.of(rows)
        if base is None:
            return min(most, 2)
        best, rate, expected, sure = 0, rows / base, 0.0, 1.0
        for count in range(1, most + 1):
            sure *= chance
            expected += sure
            took = self.of(rows + count)
            if took is not None and (rows + expected) / took > rate * GAIN:
                best, rate = count, (rows + expected) / took
        return best

    def split(self, pending: int) -> int:
        """How many of ``pending`` known ids to compute at once: all, unless one by one was measured to be faster."""
        one, all_ = self._seconds.get(1), self._seconds.get(pending)
        return 1 if one is not None and all_ is not None and all_ > pending * one else pending
