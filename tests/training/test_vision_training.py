"""The scenes that the seeing miniature is made from, and that what is trained is what transformers runs."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from qwen_agent_kit import foreign
from training.rows import IGNORED
from training.tokenizer import make_tokenizer
from training.vision import evaluate, export, questions, rows, scenes, tower
from training.vision.hints import CHARACTERS, HEADS, hints_of
from training.vision.train import Seer

DRAWN = ("shapes", "chart")  # text needs fonts, which are not everywhere


def _scene(seed: int, kind: str = "shapes", **options: Any) -> scenes.Scene:
    return scenes.draw_scene(random.Random(seed), kind=kind, **options)


@pytest.mark.parametrize("kind", DRAWN)
def test_a_seed_is_a_scene(kind: str) -> None:
    """The same seed draws the same picture, another seed another."""
    first, again, other = _scene(1, kind), _scene(1, kind), _scene(2, kind)
    assert first.image.tobytes() == again.image.tobytes()
    assert first.things == again.things
    assert first.things != other.things


def test_training_never_shows_what_is_held_out() -> None:
    """No scene for training has a held-out triple of colour, shape and cell; every held-out scene has one."""
    for seed in range(300):
        for held_out in (False, True):
            things = _scene(seed, held_out=held_out).things
            assert any(scenes.is_held_out(t.colour, t.shape, t.cell) for t in things) == held_out


def test_every_colour_and_shape_is_seen_together_in_training() -> None:
    """What is held out is a place, never a colour, a shape or a pair of them."""
    for colour in scenes.COLOURS:
        for shape in scenes.SHAPES:
            assert not all(scenes.is_held_out(colour, shape, cell) for cell in range(9))


def test_answers_follow_from_the_scene() -> None:
    """Counts, places, colours and sides are what a second reading of the scene gives."""
    asked = 0
    for seed in range(400):
        rng = random.Random(seed)
        scene = scenes.draw_scene(rng, kind="shapes")
        for question in questions.ask(rng, scene, 7):
            asked += 1
            assert _answer(question, scene) == question.answer, question
    assert asked > 1500


def _answer(question: questions.Question, scene: scenes.Scene) -> str:
    words = question.text.rstrip("?").split()
    things = {f"{t.colour} {t.shape}": t for t in scene.things}
    if question.type == "count":
        what = " ".join(words[2 : words.index("are") if "are" in words else words.index("do")])
        return str(sum(what in ("shapes", f"{t.shape}s", f"{t.shape}es", f"{t.colour} shapes") for t in scene.things))
    if question.type == "exists":
        return "yes" if " ".join(words[-2:]) in things else "no"
    if question.type == "where":
        return scenes.CELLS[things[" ".join(words[-2:])].cell]
    if question.type == "colour":
        return next(t.colour for t in scene.things if t.shape == words[-1])
    if question.type == "shape":
        return next(t.shape for t in scene.things if t.colour == words[-1])
    if question.type == "relation":
        thing, side = things[" ".join(words[-2:])], " ".join(words[2:-3])
        (found,) = [t for t in scene.things if _is(t, side, thing)]
        return f"{'an' if found.colour == 'orange' else 'a'} {found.colour} {found.shape}"
    assert question.type == "is it beside"
    return "yes" if _is(things[" ".join(words[2:4])], " ".join(words[4:-3]), things[" ".join(words[-2:])]) else "no"


def _is(thing: scenes.Thing, side: str, other: scenes.Thing) -> bool:
    """By the drawn centres; those of one row (column) are never further apart than a third of the picture."""
    row, column = thing.cell // 3 - other.cell // 3, thing.cell % 3 - other.cell % 3
    return {"left of": column < 0, "right of": column > 0, "above": row < 0, "below": row > 0}[side]


def test_dense_labels_are_where_the_things_are() -> None:
    """Every shape's centre is labelled with its kind, in the patch that the drawn centre falls into."""
    for seed in range(50):
        scene = _scene(seed)
        labels = hints_of(scene)
        assert labels.shape == (len(HEADS), scene.width * scene.height // tower.PATCH**2)
        rows_, columns = tower.order_of(scene.width, scene.height)
        for thing in scene.things:
            at = (rows_ == int(thing.y // tower.PATCH)) & (columns == int(thing.x // tower.PATCH))
            assert labels[2][at].tolist() == [scenes.SHAPES.index(thing.shape) + 1]
    assert len(CHARACTERS) == 36


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with random weights, as the training writes it."""
    torch.manual_seed(3)
    model = Seer(make_tokenizer().get_vocab_size())
    with torch.no_grad():
        for value in model.parameters():
            value += 0.05 * torch.randn_like(value)  # biases and norms too, so that a lost one shows
    target = tmp_path_factory.mktemp("seer")
    export.save(model, target)
    return target


@pytest.mark.parametrize("size", scenes.SIZES)
@pytest.mark.parametrize("first", [False, True])
def test_what_is_trained_is_what_transformers_runs(folder: Path, size: tuple[int, int], first: bool) -> None:
    """Pixels, placeholders, m-rope positions and logits equal those of transformers' own classes on the checkpoint."""
    model, tokenizer = export.load(folder)
    oracle = evaluate.Oracle(folder)
    rng = random.Random(f"{size} {first}")
    drawn = [scenes.draw_scene(rng, kind=kind, size=size, scale=3) for kind in DRAWN]
    larger = [scene.image for scene in drawn]
    for scene in drawn:
        assert evaluate.smart_resize(*scene.image.size) == size
        scene.image = scene.image.resize(size, 3)
    asked = rows.rows_of(rows.Writer(tokenizer), drawn, rng, 2, held_out=False, first=first, plain=True)
    patches = torch.from_numpy(np.stack([tower.patches_of(scene.image) for scene in drawn]))
    with torch.no_grad():
        logits, _, _ = model(patches, drawn[0], asked)
    done = 0
    for k, question in enumerate(asked.questions):
        at = (asked.labels[k] != IGNORED).nonzero()[:, 0] + len(asked.prefix)
        want = oracle.logits(question, larger[int(asked.pictures[k])], first=first)
        assert torch.allclose(logits[done : done + len(at)], want[at], atol=1e-3)
        done += len(at)
    assert done == len(logits)


def test_the_folder_is_an_ordinary_checkpoint(folder: Path) -> None:
    """transformers' configuration reads it, with nothing unexpected, and the weights are small."""
    library = foreign.transformers()
    config = library.AutoConfig.from_pretrained(folder)
    assert type(config).__name__ == "Qwen2_5_VLConfig"
    assert config.vision_config.depth == tower.TowerSize().depth
    assert (folder / "model.safetensors").stat().st_size < 12e6
    assert json.loads((folder / "preprocessor_config.json").read_text())["max_pixels"] == 112 * 112
