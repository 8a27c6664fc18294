"""A measurement and how it is shown."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

__all__ = ["Row", "table"]


@dataclass(frozen=True, slots=True)
class Row:
    """One figure.

    Args:
        name: What was measured.
        value: In ``unit``.
        unit: Such as ``ms/step``, ``us/token`` or ``ratio``.
        limit: What is promised; None where nothing is.
        least: Of the values whose median it is, None where it is a single one.
        most: The same.
    """

    name: str
    value: float
    unit: str
    limit: float | None = None
    least: float | None = None
    most: float | None = None

    @property
    def ok(self) -> bool:
        """Whether the promise is kept."""
        return self.limit is None or self.value <= self.limit


def table(rows: Sequence[Row], *, as_json: bool = False) -> str:
    """The rows as a text table, or as JSON with a ``schema_version``."""
    if as_json:
        return json.dumps({"schema_version": 1, "rows": [{**asdict(row), "ok": row.ok} for row in rows]}, indent=2)
    width = max((len(row.name) for row in rows), default=0)
    lines = []
    for row in rows:
        promise = "" if row.limit is None else f"   promised: {row.limit:g}   {'ok' if row.ok else 'MISSED'}"
        lines.append(f"{row.name:<{width}}  {row.value:>9.4f} {row.unit:<8}{promise}")
    return "\n".join(lines)
