"""The loop's own cost, by its benchmark; the limits are loosened for machines that are busy with something else."""

from __future__ import annotations

import json

from qwen_agent_kit.bench.loop import scripted_steps, token_cost
from qwen_agent_kit.bench.rows import Row, table

BUSY = 4


def test_the_cost_of_a_step_does_not_grow() -> None:
    """Step 1,000 costs what step 20 costs (half as much again at most), and both stay near the promise."""
    early, late = scripted_steps(1000, repeats=3)
    assert early.limit == late.limit == 0.15
    assert early.value < BUSY * 0.15
    assert late.value < 1.5 * early.value + 0.02


def test_a_token_costs_little() -> None:
    """Detokenize, parse and events, together under the promise."""
    (row,) = token_cost(5000, repeats=3)
    assert row.limit == 10.0
    assert row.value < BUSY * 10.0


def test_rows_are_shown_as_text_and_as_json() -> None:
    """With the promise, and whether it is kept."""
    rows = [Row("a", 1.0, "ms/step", 2.0), Row("b", 3.0, "ms/step", 2.0), Row("c", 3.0, "ratio")]
    text = table(rows)
    assert [line.split()[-1] for line in text.splitlines()] == ["ok", "MISSED", "ratio"]
    data = json.loads(table(rows, as_json=True))
    assert data["schema_version"] == 1
    assert [row["ok"] for row in data["rows"]] == [True, False, True]
