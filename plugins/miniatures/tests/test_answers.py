"""The trained miniatures answer through the kit itself: no model is named, nothing is mocked, files come from disk."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qwen_agent_kit import Agent, Audio, Host, Image, Media, hookimpl
from qwen_agent_kit.events import RunResult

DATA = Path(__file__).with_name("data")
Change = Callable[[np.ndarray], np.ndarray]


def _rows(folder: str, step: int = 1) -> list[dict[str, str]]:
    """Every ``step``-th committed question."""
    lines = (DATA / folder / "questions.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines[::step]]


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    with Host() as opened:
        yield opened


def _share(host: Host, rows: list[dict[str, str]], part: Callable[[dict[str, str]], Media]) -> float:
    """Of the questions that are answered word for word; all are asked through one agent, as a pipeline does."""
    results = Agent(host=host).batch([[part(row), row["question"]] for row in rows], concurrency=4)
    answers = [one.output if isinstance(one, RunResult) else repr(one) for one in results]
    return float(np.mean([answer == row["answer"] for answer, row in zip(answers, rows, strict=True)]))


def _scene(row: dict[str, str]) -> Media:
    return Image(DATA / "scenes" / row["file"])


def _clip(row: dict[str, str]) -> Media:
    return Audio(DATA / "clips" / row["file"])


def _pixels(change: Change) -> Callable[[dict[str, str]], Media]:
    from PIL import Image as Pillow

    def part(row: dict[str, str]) -> Media:
        with Pillow.open(DATA / "scenes" / row["file"]) as opened:
            return Image(np.ascontiguousarray(change(np.asarray(opened.convert("RGB")))))

    return part


def _samples(change: Change, rate: int = 16_000) -> Callable[[dict[str, str]], Media]:
    import soundfile

    def part(row: dict[str, str]) -> Media:
        samples = soundfile.read(DATA / "clips" / row["file"], dtype="float32")[0]
        return Audio(np.ascontiguousarray(change(samples)), options={"rate": rate})

    return part


def test_it_sees_the_committed_scenes(host: Host) -> None:
    """At least 95 % of 200 questions about held-out scenes, in the scheme that the plan chose."""
    pytest.importorskip("qwen_agent_kit_vision")
    rows = _rows("scenes")
    assert len(rows) == 200
    assert _share(host, rows, _scene) >= 0.95
    model: Any = host.open(None, kinds=frozenset({"text", "image"}))
    assert (model.name, model.plan.scheme) == ("miniature-vl", host.plan("miniature-vl").scheme)


def test_it_hears_the_committed_clips(host: Host) -> None:
    """At least 95 % of 400 questions about held-out clips, half of them about what was said."""
    pytest.importorskip("qwen_agent_kit_audio")
    rows = _rows("clips")
    assert len(rows) == 400
    assert _share(host, rows, _clip) >= 0.95


@pytest.mark.parametrize(
    "change",
    [lambda p: p[..., ::-1], lambda p: p[:, ::-1], lambda p: p[::-1], lambda p: np.rot90(p), lambda p: p // 4],
    ids=["channels swapped", "mirrored", "upside down", "turned", "too dark"],
)
def test_a_fault_in_pixels_shows(host: Host, change: Change) -> None:
    """The share above would fall: what reaches the tower matters."""
    pytest.importorskip("qwen_agent_kit_vision")
    assert _share(host, _rows("scenes", 4), _pixels(change)) < 0.85


@pytest.mark.parametrize(
    ("change", "rate"),
    [(lambda s: s, 8000), (lambda s: s, 32_000), (lambda s: s[::-1], 16_000)],
    ids=["half the rate", "twice the rate", "backwards"],
)
def test_a_fault_in_samples_shows(host: Host, change: Change, rate: int) -> None:
    """A clip whose rate is told wrongly, or that runs backwards, is not understood."""
    pytest.importorskip("qwen_agent_kit_audio")
    assert _share(host, _rows("clips", 10), _samples(change, rate)) < 0.85


def test_a_wrong_grid_shows() -> None:
    """Patches that are counted as another number of rows cost more than chance explains."""
    vision = pytest.importorskip("qwen_agent_kit_vision")

    class Faulty:
        @hookimpl
        def register_backends(self) -> list[Any]:
            (own,) = vision.register_backends()

            def widen(part: Any, facts: Any, budget: Any) -> Any:
                length, digest, item = own.widen(part, facts, budget)
                t, h, w = item.grid
                return length, digest, replace(item, grid=(t, h * w // item.merge, item.merge))

            return [replace(own, name="a-faulty-vision", accepts=frozenset({"text", "image"}), widen=widen)]

    with Host(plugins=[Faulty()]) as host:
        assert _share(host, _rows("scenes", 4), _scene) < 0.85


@pytest.mark.parametrize(
    ("option", "plugin", "file", "question", "answer"),
    [
        ("--image", "vision", "scenes/scene-001.png", "Which colour is the square?", "green"),
        ("--audio", "audio", "clips/clip-000.wav", "What was said?", "five"),
    ],
)
def test_the_command_line_answers(option: str, plugin: str, file: str, question: str, answer: str) -> None:
    """`qak run` with a picture or a clip and no model named: the answer alone is on stdout."""
    pytest.importorskip(f"qwen_agent_kit_{plugin}")
    command = [sys.executable, "-m", "qwen_agent_kit", "run", option, str(DATA / file), question]
    done = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        env=dict(os.environ),
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, f"{answer}\n"), done.stderr[-2000:]
