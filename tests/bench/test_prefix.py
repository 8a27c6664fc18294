"""``qak bench prefix``: two real runs of ``qak``, the second of which finds the first one's system prompt on disk."""

from __future__ import annotations

from pathlib import Path

import pytest

from qwen_agent_kit.bench import prefix
from qwen_agent_kit.errors import UsageError
from qwen_agent_kit.testing.models import tiny_model_dir


@pytest.mark.full
def test_a_second_run_computes_only_what_is_new(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cold everything, warm the question and what follows it, in processes of their own; the caller's own prefixes are
    neither read nor written."""
    from qwen_agent_kit.paths import cache_dir

    monkeypatch.setenv("QAK_NATIVE", "0")  # no build
    rows = {row.name: row for row in prefix.measure(str(tiny_model_dir(tmp_path)), pairs=1, tokens=300)}
    cold, warm = (rows[f"{kind}: computed ids of the prompt"].value for kind in ("cold", "warm"))
    assert cold > 300
    assert 0 < warm < 100
    assert rows["cold: process to first token"].value > rows["cold: submitted to first token"].value > 0
    assert rows["warm: process to first token"].value > rows["warm: submitted to first token"].value > 0
    assert not list(cache_dir("prefixes").rglob("*.kv"))


@pytest.mark.parametrize("said", ["", "1 step · generated 2", "prompt many (cached 3) · first token 3 ms"])
def test_a_run_that_says_nothing_is_an_error(said: str) -> None:
    """Not a row of zeros."""
    with pytest.raises(UsageError, match="did not say"):
        prefix.usage_of(said)


def test_the_line_is_read() -> None:
    """As ``qak run`` writes it."""
    line = "stopped: length\n1 step · prompt 1576 (cached 1568) · generated 2 · first token 89 ms · 37 tokens/s\n"
    assert prefix.usage_of(line) == {"prompt": 1576, "cached": 1568, "first_ms": 89}
