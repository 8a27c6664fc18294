"""An agent sees what its tools return, and grounding comes back to pixels of the original."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from qwen_agent_kit_vision import Box, Point, draw, parse_marks, register_tools

from qwen_agent_kit import Agent, Image, Limits, Sampling, ToolContext, tool
from qwen_agent_kit.errors import UsageError
from qwen_agent_kit.host import Host


def picture(seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (60, 90, 3), dtype=np.uint8)


def test_what_a_tool_draws_is_seen_in_the_next_step(models: Any) -> None:
    """The model calls a tool that returns a picture; the next prompt holds it, and the tower ran once for it."""
    folder: Path = models["qwen2_vl"][0]

    @tool
    def plot() -> Image:
        """Draw the numbers."""
        return Image(picture())

    with Host(quant="fp32", cache=False, context=1024) as host:
        agent = Agent(
            str(folder),
            tools=[plot],
            host=host,
            tool_choice="required",
            sampling=Sampling(temperature=0, max_tokens=48),
            limits=Limits(steps=2),
        )
        result = agent.run("draw and tell")
        engine = host.open(str(folder)).engine  # type: ignore[attr-defined]  # the local one
        assert [part.kind for part in result.messages[2].media] == ["image"]
        assert len(result.steps) == 2
        chosen = [(step.backend, step.reason) for step in result.steps]
        assert chosen == [
            ("vision", "the narrowest that covers text"),  # the only backend that drives this model
            ("vision", "covers the conversation and is in use"),
        ]
        assert engine.media_counters.encoded == 1


def test_a_model_of_text_is_chosen_until_a_picture_comes(models: Any) -> None:
    """Of the installed backends the narrowest that covers the parts, with the reason."""
    from qwen_agent_kit import Message
    from qwen_agent_kit.agent.hooks import narrowest

    with Host() as host:
        backends = host.backends
    assert {"text", "vision"} <= {backend.name for backend in backends}
    assert narrowest(backends, None, frozenset({"text"})).backend == "text"
    seen = narrowest(backends, "text", frozenset({"text", "image"}))
    assert (seen.backend, seen.reason) == ("vision", "the narrowest that covers image, text")
    assert narrowest(backends, "vision", frozenset({"text"})).reason == "covers the conversation and is in use"
    assert Message("user", (Image(b"x"),)).media[0].kind == "image"


def test_marks_come_back_to_the_original() -> None:
    """Pixels of the resized image and thousandths, boxes and points, cut and fenced JSON."""
    text = 'see ```json\n[{"bbox_2d": [28, 14, 280, 140], "label": "cat"}, {"point_2d": [56, 28]}, {"bbox_2d": [1,'
    assert parse_marks(text, (800, 400), seen=(560, 280)) == [Box(40, 20, 400, 200, "cat"), Point(80, 40)]
    old = "<|object_ref_start|>a dog<|object_ref_end|><|box_start|>(100,200),(500,900)<|box_end|>"
    assert parse_marks(old, (2000, 1000), scale="thousandths") == [Box(200, 200, 1000, 900, "a dog")]
    swapped = '{"bbox_2d": [10, 10, 2, 2]} {"bbox_2d": [3, 3, 3, 9]} {"point": ["a", 1]} {"bbox_2d": [0, 0, 1e30, 5]}'
    assert parse_marks(swapped, (10, 10)) == [Box(2, 2, 10, 10)]


@given(st.text(alphabet='{}[]",:0123456789.-bbox_2dpointlae<|_strn>() ', max_size=200))
def test_any_text_gives_marks_inside_the_image(text: str) -> None:
    """Nothing raises, and nothing lies outside."""
    for mark in parse_marks(text, (640, 480), seen=(560, 420)):
        places = (mark.left, mark.right) if isinstance(mark, Box) else (mark.x,)
        assert all(0 <= place <= 640 for place in places)


def test_marks_are_drawn() -> None:
    """On a copy, where they belong."""
    blank = np.zeros((100, 200, 3), dtype=np.uint8)
    drawn = np.asarray(draw(blank, [Box(20, 10, 60, 50, "x"), Point(150, 80)]))
    assert drawn[10, 40].tolist() == drawn[30, 59].tolist() == drawn[80, 150].tolist() == [255, 0, 0]
    assert drawn[30, 40].tolist() == drawn[90, 190].tolist() == [0, 0, 0]
    assert not blank.any()


def test_zoom_cuts_at_full_resolution_and_look_asks() -> None:
    """The crop holds the original's own pixels."""
    zoom, look = register_tools()
    asked: list[Any] = []
    context = ToolContext(
        find_media=lambda ref: Image(picture()), answer=lambda parts, kinds: asked.append((parts, kinds)) or "a cat"
    )
    from qwen_agent_kit_vision.items import Vision

    cut = zoom.function(image="image 1", left=0.5, top=0.25, right=1.0, bottom=0.75, context=context)
    assert np.array_equal(Vision().pixels(cut), picture()[15:45, 45:90])
    assert look.function(image="image 1", question="what?", context=context) == "a cat"
    assert asked[0][1] == frozenset({"text", "image"})
    with pytest.raises(UsageError, match="outside"):
        zoom.function(image="image 1", left=0.5, top=0.0, right=0.5, bottom=1.0, context=context)


def test_the_example_of_boxes_runs(tmp_path: Path) -> None:
    """It prints the places in the original and writes the drawn picture."""
    import subprocess
    import sys

    example = Path(__file__).resolve().parents[3] / "examples" / "boxes.py"
    done = subprocess.run(
        [sys.executable, str(example), str(tmp_path / "o.png")], capture_output=True, text=True, check=True
    )
    assert done.stdout == "square: 80,40 to 320,200\ndot: 600,120\n"
    assert (tmp_path / "o.png").stat().st_size > 500
