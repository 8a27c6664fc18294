"""The loop's own cost with a tiny real engine and the store."""

from __future__ import annotations

from qwen_agent_kit.bench.engine import engine_steps


def test_the_parts_of_a_step_are_told_apart() -> None:
    """Sixty steps on a real engine: what is the loop's, the template's and the layers' adds up to something."""
    rows = engine_steps(60)
    assert all(row.value > 0 for row in rows)
    ratios = [row for row in rows if row.unit == "ratio"]
    assert [ratio.limit for ratio in ratios] == [1.5, 1.5]
    assert {row.unit for row in rows} == {"ratio", "ms/step"}
