"""Questions about scenes as rows of token ids, their positions, and where the answers are."""

from __future__ import annotations

import random
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from training.rows import IGNORED, Writer
from training.vision.questions import Question, ask
from training.vision.scenes import Scene
from training.vision.tower import MERGE, PATCH


@dataclass(slots=True)
class Rows:
    """A batch of questions. Row i asks about picture ``pictures[i]``; ids of the picture's places are -1."""

    prefix: Tensor  # [p] token ids
    ids: Tensor  # [b, n]
    positions: Tensor  # [3, b, n]
    labels: Tensor  # [b, n], the id that should come next; -100 outside the answers
    pictures: Tensor  # [b]
    questions: list[Question]


def rows_of(
    writer: Writer,
    scenes: list[Scene],
    rng: random.Random,
    each: int,
    *,
    held_out: bool = False,
    first: bool | None = None,
    plain: bool = False,
) -> Rows:
    """``each`` questions about every scene (all of one size).

    ``first`` puts the picture before the question; None does so for three in ten. ``plain`` keeps the template's own
    system message.
    """
    prefix = writer.plain if plain else writer.prefix(rng)
    height, width = scenes[0].height // (PATCH * MERGE), scenes[0].width // (PATCH * MERGE)
    found = [
        (k, q) for k, scene in enumerate(scenes) for q in ask(rng, scene, each, held_out=held_out, hard=not held_out)
    ]
    made = [_row(writer, q, height * width, first=rng.random() < 0.3 if first is None else first) for _, q in found]
    length = max(len(ids) for ids, _ in made)
    ids = np.zeros((len(made), length), np.int64)
    labels = np.full((len(made), length), IGNORED, np.int64)
    positions = np.zeros((3, len(made), length), np.int64)
    for k, (row, answer) in enumerate(made):
        ids[k, : len(row)] = row
        labels[k, answer - 1 : len(row) - 1] = row[answer:]
        positions[:, k, : len(row)] = positions_of(row, len(prefix), height, width)
    return Rows(
        prefix=torch.tensor(prefix),
        ids=torch.from_numpy(ids),
        positions=torch.from_numpy(positions),
        labels=torch.from_numpy(labels),
        pictures=torch.tensor([k for k, _ in found]),
        questions=[q for _, q in found],
    )


def positions_of(row: list[int], start: int, height: int, width: int) -> np.ndarray:
    """Positions [3, n] (time, row, column) of a row with one picture of ``height`` x ``width`` places."""
    at = row.index(-1)
    places = height * width
    positions = np.empty((3, len(row)), np.int64)
    positions[:, :at] = np.arange(at)
    positions[:, at : at + places] = at
    positions[1, at : at + places] += np.arange(places) // width
    positions[2, at : at + places] += np.arange(places) % width
    positions[:, at + places :] = at + max(height, width) + np.arange(len(row) - at - places)
    return positions + start


def _row(writer: Writer, question: Question, places: int, *, first: bool) -> tuple[list[int], int]:
    """Ids after the prefix with -1 for each place of the picture, and where the answer begins."""
    picture = [*writer.ids("<|vision_start|>"), *[-1] * places, *writer.ids("<|vision_end|>")]
    text = writer.ids(question.text)
    asked = picture + text if first else text + picture
    asked += writer.ids("<|im_end|>\n<|im_start|>assistant\n")
    return asked + writer.ids(f"{question.answer}<|im_end|>"), len(asked)
