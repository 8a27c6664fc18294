"""The committed weights, on committed held-out pictures and clips, through transformers' own processors and classes."""

from __future__ import annotations

import json
import wave
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from qwen_agent_kit_miniatures import TRAINED

from training.audio import clips
from training.audio import evaluate as hearing
from training.vision import evaluate as seeing
from training.vision.questions import Question

DATA = Path(__file__).parents[2] / "plugins" / "miniatures" / "tests" / "data"


def _questions(folder: Path) -> list[tuple[Path, dict[str, str]]]:
    rows = [json.loads(line) for line in (folder / "questions.jsonl").read_text().splitlines()]
    return [(folder / row["file"], row) for row in rows]


def _is_greedy(logits: torch.Tensor, answer: list[int]) -> bool:
    """Whether greedy decoding says the whole answer: each of its tokens is the likeliest after those before it."""
    return bool((logits[-len(answer) - 1 : -1].argmax(-1) == torch.tensor(answer)).all())


def _share_seen(change: Callable[[Image.Image], Image.Image], step: int = 1) -> float:
    oracle = seeing.Oracle(TRAINED / "miniature-vl")
    asked = _questions(DATA / "scenes")[::step]
    rights = []
    for path, row in asked:
        question = Question(row["type"], row["question"], row["answer"])
        picture = change(Image.open(path).convert("RGB"))
        answer = oracle.tokenizer(f"{question.answer}<|im_end|>")["input_ids"]
        rights.append(_is_greedy(oracle.logits(question, picture, first=False), answer))
    return sum(rights) / len(rights)


def test_it_sees_held_out_scenes() -> None:
    """At least 95 % of the committed questions about held-out scenes are answered right."""
    assert len({path for path, _ in _questions(DATA / "scenes")}) == 100
    assert _share_seen(lambda picture: picture) >= 0.95


FAULTS: dict[str, Callable[[Image.Image], Image.Image]] = {
    "channels swapped": lambda picture: Image.fromarray(np.asarray(picture)[..., ::-1].copy()),
    "mirrored": lambda picture: picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
    "upside down": lambda picture: picture.transpose(Image.Transpose.FLIP_TOP_BOTTOM),
    "turned": lambda picture: picture.transpose(Image.Transpose.ROTATE_90),
    "too dark": lambda picture: picture.point(lambda value: value // 4),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_before_the_model_shows(fault: str) -> None:
    """A picture that was changed on its way costs far more than chance explains."""
    assert _share_seen(FAULTS[fault], step=2) < 0.85


def _samples(path: Path) -> np.ndarray:
    with wave.open(str(path)) as file:
        assert file.getparams()[:3] == (1, 1, 16_000)
        return (np.frombuffer(file.readframes(file.getnframes()), np.uint8).astype(np.float32) - 128) / 127


def _share_heard(change: Callable[[np.ndarray], np.ndarray], step: int = 1) -> float:
    oracle = hearing.Oracle(TRAINED / "miniature-audio")
    rights = []
    for path, row in _questions(DATA / "clips")[::step]:
        question = clips.Question(row["type"], row["question"], row["answer"])
        answer = oracle.tokenizer(f"{question.answer}<|im_end|>")["input_ids"]
        clip = clips.Clip("", np.ascontiguousarray(change(_samples(path))))
        rights.append(_is_greedy(oracle.logits(question, clip, first=False), answer))
    return sum(rights) / len(rights)


def test_it_hears_held_out_clips() -> None:
    """At least 95 % of the committed questions about held-out clips are answered right; 200 clips, 3 MB at most."""
    files = {path for path, _ in _questions(DATA / "clips")}
    assert len(files) == 200
    assert sum(path.stat().st_size for path in files) <= 3_000_000
    assert _share_heard(lambda samples: samples) >= 0.95


@pytest.mark.parametrize("fault", ["half the rate", "backwards", "twice the rate"])
def test_a_fault_before_the_encoder_shows(fault: str) -> None:
    """A clip at another rate, or the wrong way round, costs far more than chance explains."""
    change = {
        "half the rate": lambda s: s[::2],
        "backwards": lambda s: s[::-1],
        "twice the rate": lambda s: s.repeat(2),
    }
    assert _share_heard(change[fault], step=2) < 0.85
