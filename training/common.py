"""What both trainings share: optimisers, the learning rate's course, states that survive a kill."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn


def optimisers(modules: Iterable[nn.Module], rate: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside, AdamW for embeddings, norms and biases."""
    matrices: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for module in modules:
        for name, value in module.named_parameters():
            inner = value.ndim == 2 and "embed" not in name and "head" not in name and min(value.shape) > 16
            (matrices if inner else others).append(value)
    muon = torch.optim.Muon(matrices, lr=rate, weight_decay=0.02, adjust_lr_fn="match_rms_adamw")
    return [muon, torch.optim.AdamW(others, lr=rate, betas=(0.9, 0.98), weight_decay=0.0)]


def course(step: int, steps: int, rate: float, warm: int = 100) -> float:
    """The learning rate at ``step``: a short warm-up, then half a cosine down to a fiftieth."""
    if step < warm:
        return rate * (step + 1) / warm
    done = min(1.0, (step - warm) / max(1, steps - warm))
    return rate * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * done)))


def save_state(path: Path, state: dict[str, Any]) -> None:
    """Write ``state`` whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_suffix(".new")
    torch.save(state, fresh)
    os.replace(fresh, path)


def load_state(path: Path) -> dict[str, Any] | None:
    """The state at ``path``, None where there is none."""
    found: dict[str, Any] | None = torch.load(path, weights_only=False) if path.is_file() else None
    return found


class Clock:
    """Says when a number of seconds has passed, again and again."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.last = seconds, time.monotonic()

    def rang(self) -> bool:
        if time.monotonic() - self.last < self.seconds:
            return False
        self.last = time.monotonic()
        return True
