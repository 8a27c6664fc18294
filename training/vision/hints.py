"""What each patch of a scene shows: the dense labels that teach the tower to see before anybody asks it anything.

A question's answer is a few bits for a whole picture; a label for every patch is a hundred times more, and it says
where. The heads that predict them are thrown away after training.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812  # its usual name
from torch import Tensor, nn

from training.vision.scenes import COLOURS, DIGITS, LETTERS, SHAPES, Scene
from training.vision.tower import PATCH, order_of

CHARACTERS = LETTERS + DIGITS
KINDS = (*SHAPES, "bar", "word", "number")
HEADS = {
    "colour": len(COLOURS) + 1,
    "kind": len(KINDS) + 1,
    "centre": len(KINDS) + 1,
    "letter": len(CHARACTERS) + 1,
    "cell": 9,
}
NOTHING = {
    "colour": 0.5,
    "kind": 0.5,
    "centre": 0.15,
    "letter": 0.1,
    "cell": 1.0,
}  # what label 0, the common one, counts
WEIGHTS = {"colour": 0.5, "kind": 0.5, "centre": 1.0, "letter": 2.0, "cell": 0.1}


def hints_of(scene: Scene) -> np.ndarray:
    """Labels [5, patches] in the order of ``HEADS``; 0 where there is nothing to see."""
    rows, columns = scene.height // PATCH, scene.width // PATCH
    labels = np.zeros((len(HEADS), rows, columns), np.int64)
    labels[4] = (np.arange(rows)[:, None] * 3 // rows) * 3 + np.arange(columns)[None, :] * 3 // columns
    ys, xs = (np.arange(rows) + 0.5) * PATCH, (np.arange(columns) + 0.5) * PATCH
    for thing in scene.things:
        colour, kind = list(COLOURS).index(thing.colour) + 1, KINDS.index(thing.shape) + 1
        for x, y, character in thing.letters:
            at = _patch(x, y, rows, columns)
            labels[0][at], labels[1][at] = colour, kind
            labels[3][at] = CHARACTERS.index(character) + 1
        if thing.letters:
            continue
        half_x = thing.width / 2 if thing.shape == "bar" else thing.size / 2
        top, bottom = (thing.y, thing.y + thing.size) if thing.shape == "bar" else (thing.y - half_x, thing.y + half_x)
        inside = ((ys > top) & (ys < bottom))[:, None] & (np.abs(xs - thing.x) < half_x)[None, :]
        labels[0][inside], labels[1][inside] = colour, kind
        labels[2][_patch(thing.x, thing.y, rows, columns)] = kind
    row, column = order_of(scene.width, scene.height)
    return labels[:, row, column]


def _patch(x: float, y: float, rows: int, columns: int) -> tuple[int, int]:
    return min(rows - 1, max(0, int(y // PATCH))), min(columns - 1, max(0, int(x // PATCH)))


class Hints(nn.Module):
    """One linear head per label over the tower's last states."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(hidden)
        self.head = nn.Linear(hidden, sum(HEADS.values()))

    def forward(self, states: Tensor, labels: Tensor) -> tuple[Tensor, dict[str, float]]:
        """Loss over ``states`` [b, n, d] and ``labels`` [b, 5, n], and each head's accuracy where there is a thing."""
        parts = self.head(self.norm(states)).float().split(list(HEADS.values()), -1)
        total, seen = torch.zeros(()), {}
        for k, (name, logits) in enumerate(zip(HEADS, parts, strict=True)):
            want = labels[:, k]
            counts = torch.ones(logits.shape[-1])
            counts[0] = NOTHING[name]
            total = total + WEIGHTS[name] * F.cross_entropy(logits.flatten(0, 1), want.flatten(), counts)
            there = want > 0
            right = (logits.argmax(-1) == want)[there]
            seen[name] = float(right.float().mean()) if there.any() else 1.0
        return total, seen
