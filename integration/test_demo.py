"""`make demo` runs as it stands, offline, and says what is true of what it draws and plays."""

from __future__ import annotations

from pathlib import Path

from programs import said_by


def test_the_demo_runs(real_home: Path, tmp_path: Path) -> None:
    """Its picture and its clip are answered after its tool call."""
    lines = said_by(["demo.py"], tmp_path).splitlines()
    assert "stop_reason: done" in lines
    assert lines[-2:] == [
        "image: What is left of the red circle? a blue square",
        "audio: Does the tone rise or fall? it rises",
    ]
