"""The loop's own cost with a tiny real engine and the store."""

from __future__ import annotations

import pytest

from qwen_agent_kit.bench.engine import engine_steps


def by_name(rows: list) -> dict[str, float]:
    return {row.name: row.value for row in rows}


def test_the_parts_of_a_step_are_told_apart() -> None:
    """Sixty steps on a real engine: what is the loop's, the template's and the layers' adds up to something."""
    rows = engine_steps(60)
    assert all(row.value > 0 for row in rows)
    (ratio,) = (row for row in rows if row.unit == "ratio")
    assert ratio.limit == 1.5
    assert ratio.value < 2 * 1.5


@pytest.mark.full
def test_the_cost_of_a_step_does_not_grow_with_a_real_engine() -> None:
    """Step 1,000 against step 20, beside the template and the layers: within twice the promise on a busy machine."""
    (ratio,) = (row for row in engine_steps(1000) if row.unit == "ratio")
    assert ratio.value < 2 * 1.5
