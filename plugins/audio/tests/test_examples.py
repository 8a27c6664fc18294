"""The example and the page about sound run as they stand, offline, and say what is true of what they play."""

from __future__ import annotations

from pathlib import Path

import pytest
from pages import name_of, pages_for, run_page
from programs import said_by


def test_the_example_that_hears_runs(tmp_path: Path) -> None:
    """Tones, and a longer clip in windows."""
    told = "first: it rises\nsecond: it falls\n0 to 2 s: silence\n2 to 4 s: a tone\n4 to 6 s: silence\n"
    assert said_by(["listen.py"], tmp_path) == told


@pytest.mark.parametrize("page", pages_for("audio"), ids=name_of)
def test_the_code_of_a_page_runs(page: Path, real_home: Path, tmp_path: Path) -> None:
    """As one program."""
    run_page(page, real_home, tmp_path)
