"""The examples and pages about seeing run as they stand, offline, and say what is true of what they draw."""

from __future__ import annotations

from pathlib import Path

import pytest
from pages import name_of, pages_for, run_page
from PIL import Image
from programs import said_by

SEES = {
    "see.py": "How many bars are there? 3\nWhich bar is the tallest? the red bar\n"
    "Which bar is the shortest? the blue bar\n",
    "video_summary.py": "0.0 to 1.5 s: red\n2.0 to 3.8 s: blue\n4.2 to 5.8 s: green\n",
    "documents.py": "32 to 71: 41\n131 to 172: 907\n231 to 272: 65\n",
}


def test_the_examples_that_see_run(tmp_path: Path) -> None:
    """A chart, a video and a document: the answers are the miniature's, and right."""
    assert said_by([*SEES], tmp_path) == "".join(SEES.values())
    page = Image.open(tmp_path / "page.png").convert("RGB")
    assert page.getpixel((160, 127)) == (255, 0, 0), "the box around the second line"
    assert page.getpixel((160, 27)) == (255, 255, 255), "and none around the first"


def test_the_plot_runs(real_home: Path, tmp_path: Path) -> None:
    """A tool that draws and asks the model that sees."""
    tool, answer, *_ = said_by(["plot.py"], tmp_path).splitlines()
    assert tool == "tool: The tallest bar is the red bar."
    assert answer.startswith("answer: ")


@pytest.mark.parametrize("page", pages_for("vision"), ids=name_of)
def test_the_code_of_a_page_runs(page: Path, real_home: Path, tmp_path: Path) -> None:
    """As one program."""
    run_page(page, real_home, tmp_path)
