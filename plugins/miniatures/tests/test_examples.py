"""The examples that see and hear run as they stand, offline, and say what is true of what they draw."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[3] / "examples"
SEES = {
    "see.py": "How many bars are there? 3\nWhich bar is the tallest? the red bar\n"
    "Which bar is the shortest? the blue bar\n",
    "video_summary.py": "0.0 to 1.5 s: red\n2.0 to 3.8 s: blue\n4.2 to 5.8 s: green\n",
    "documents.py": "32 to 71: 41\n131 to 172: 907\n231 to 272: 65\n",
}
HEARS = {
    "listen.py": "first: it rises\nsecond: it falls\n0 to 2 s: silence\n2 to 4 s: a tone\n4 to 6 s: silence\n",
}
# One process for several, so that torch and transformers are imported once.
RUN = "import runpy, sys\nfor sys.argv in [[n] for n in sys.argv[1:]]: runpy.run_path(sys.argv[0], None, '__main__')"


def _said(folder: Path, *names: str) -> str:
    examples = [EXAMPLES / name for name in names]
    assert all(example.read_text(encoding="utf-8").count("\n") <= 60 for example in examples)
    done = subprocess.run(
        [sys.executable, "-c", RUN, *map(str, examples)],
        cwd=folder,
        env=dict(os.environ),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_the_examples_that_see_run(tmp_path: Path) -> None:
    """A chart, a video and a document: the answers are the miniature's, and right."""
    pytest.importorskip("qwen_agent_kit_vision")
    from PIL import Image

    assert _said(tmp_path, *SEES) == "".join(SEES.values())
    page = Image.open(tmp_path / "page.png").convert("RGB")
    assert page.getpixel((160, 127)) == (255, 0, 0), "the box around the second line"
    assert page.getpixel((160, 27)) == (255, 255, 255), "and none around the first"


def test_the_example_that_hears_runs(tmp_path: Path) -> None:
    """Tones, and a longer clip in windows."""
    pytest.importorskip("qwen_agent_kit_audio")
    assert _said(tmp_path, *HEARS) == "".join(HEARS.values())


def test_the_demo_and_the_plot_run(smollm2_gguf: Path, private_home: Path, tmp_path: Path) -> None:
    """A tool that draws and asks the model that sees; the demo's picture and clip are answered after its tool call."""
    pytest.importorskip("qwen_agent_kit_vision")
    pytest.importorskip("qwen_agent_kit_audio")
    folder = private_home / "cache" / "models" / "smollm2"
    folder.mkdir(parents=True)
    shutil.copy(smollm2_gguf, folder)
    lines = _said(tmp_path, "plot.py", "demo.py").splitlines()
    assert lines[0] == "tool: The tallest bar is the red bar."
    assert lines[1].startswith("answer: ")
    assert "stop_reason: done" in lines
    assert lines[-2:] == [
        "image: What is left of the red circle? a blue square",
        "audio: Does the tone rise or fall? it rises",
    ]
