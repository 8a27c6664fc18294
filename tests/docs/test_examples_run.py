"""The example that needs no model but the small one of text runs as it stands, on the real weights."""

from __future__ import annotations

from pathlib import Path

from programs import said_by


def test_the_pipeline_goes_on(real_home: Path, tmp_path: Path) -> None:
    """Its second run leaves alone what the first did."""
    said = said_by(["pipeline.py"], tmp_path)
    assert "first run: 2 done; second run: 2 before, 2 done, 0 failed" in said
    assert said.count('"happy": ') == 4
