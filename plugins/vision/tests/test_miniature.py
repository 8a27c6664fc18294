"""The seeing miniature answers through the kit itself: no model is named, nothing is mocked, files come from disk."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from miniatures import DATA, SCENE, Change, command_answers, reads_what_a_tool_returns, rows_of, share_right
from miniatures import takes_what_was_planned as planned
from PIL import Image as Pillow
from qwen_agent_kit_vision import register_backends

from qwen_agent_kit import Host, Image, Media, hookimpl


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    with Host() as opened:
        yield opened


def _scene(row: dict[str, str]) -> Media:
    return Image(DATA / "scenes" / row["file"])


def _pixels(change: Change) -> Callable[[dict[str, str]], Media]:
    def part(row: dict[str, str]) -> Media:
        with Pillow.open(DATA / "scenes" / row["file"]) as opened:
            return Image(np.ascontiguousarray(change(np.asarray(opened.convert("RGB")))))

    return part


def test_it_sees_the_committed_scenes(host: Host) -> None:
    """At least 95 % of 200 questions about held-out scenes, in the scheme that the plan chose."""
    rows = rows_of("scenes")
    assert len(rows) == 200
    assert share_right(host, rows, _scene) >= 0.95
    model: Any = host.open(None, kinds=frozenset({"text", "image"}))
    assert (model.name, model.plan.scheme) == ("miniature-vl", host.plan("miniature-vl").scheme)


@pytest.mark.parametrize(
    "change",
    [lambda p: p[..., ::-1], lambda p: p[:, ::-1], lambda p: p[::-1], lambda p: np.rot90(p), lambda p: p // 4],
    ids=["channels swapped", "mirrored", "upside down", "turned", "too dark"],
)
def test_a_fault_in_pixels_shows(host: Host, change: Change) -> None:
    """The share above would fall: what reaches the tower matters."""
    assert share_right(host, rows_of("scenes", 4), _pixels(change)) < 0.85


def test_a_wrong_grid_shows() -> None:
    """Patches that are counted as another number of rows cost more than chance explains."""

    class Faulty:
        @hookimpl
        def register_backends(self) -> list[Any]:
            (own,) = register_backends()

            def widen(part: Any, facts: Any, budget: Any) -> Any:
                length, digest, item = own.widen(part, facts, budget)
                t, h, w = item.grid
                return length, digest, replace(item, grid=(t, h * w // item.merge, item.merge))

            return [replace(own, name="a-faulty-vision", accepts=frozenset({"text", "image"}), widen=widen)]

    with Host(plugins=[Faulty()]) as host:
        assert share_right(host, rows_of("scenes", 4), _scene) < 0.85


def test_the_command_line_answers() -> None:
    """`qak run` with a picture and no model named: the answer alone is on stdout."""
    assert command_answers("--image", SCENE, "Which colour is the square?") == "green\n"


@pytest.mark.parametrize("quant", ["bf16", "int8"])
def test_it_takes_what_was_planned(quant: str) -> None:
    """Decoder and tower, loaded, take what the plan says."""
    planned("miniature-vl", quant)


def test_a_picture_that_a_tool_returns_is_seen_next(real_home: Path) -> None:
    """The step after the text model's call goes to the model that sees."""
    with Host() as host:
        reads_what_a_tool_returns(host, Image(SCENE.read_bytes()), "vision")
