"""First stage: the tower alone learns from the dense labels.

``python -m training.vision.see --state DIR``; the same command again goes on where the last state was kept.
"""

from __future__ import annotations

import argparse
import random
import time
from pathlib import Path

import numpy as np
import torch

from training.common import Clock, course, load_state, optimisers, save_state
from training.vision.hints import Hints, hints_of
from training.vision.scenes import SIZES, Scene, draw_scene
from training.vision.tower import Tower, TowerSize, patches_of


def scenes_of_one_size(rng: random.Random, count: int, *, held_out: bool = False) -> list[Scene]:
    """``count`` scenes that one batch can hold."""
    size = SIZES[0] if rng.random() < 0.7 else rng.choice(SIZES[1:])
    return [draw_scene(rng, held_out=held_out, size=size) for _ in range(count)]


def batch_of(scenes: list[Scene]) -> tuple[torch.Tensor, torch.Tensor]:
    """Patches [b, n, 588] and dense labels [b, 5, n]."""
    patches = torch.from_numpy(np.stack([patches_of(scene.image) for scene in scenes]))
    return patches, torch.from_numpy(np.stack([hints_of(scene) for scene in scenes]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--state", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    tower, hints = Tower(TowerSize()), Hints(TowerSize().hidden_size)
    optims = optimisers((tower, hints), options.rate)
    path, first = options.state / "tower.pt", 0
    if (state := load_state(path)) is not None:
        tower.load_state_dict(state["tower"])
        hints.load_state_dict(state["hints"])
        for optim, kept in zip(optims, state["optims"], strict=True):
            optim.load_state_dict(kept)
        first = state["step"]
    clock, begun = Clock(120), time.monotonic()
    seen: dict[str, float] = {}
    for step in range(first, options.steps):
        rng = random.Random(f"{options.seed} see {step}")
        scenes = scenes_of_one_size(rng, options.batch)
        patches, labels = batch_of(scenes)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            _, states = tower(patches, scenes[0].width, scenes[0].height)
            loss, now = hints(states, labels)
        loss.backward()
        for optim in optims:
            for group in optim.param_groups:
                group["lr"] = course(step, options.steps, options.rate)
            optim.step()
            optim.zero_grad()
        seen = {name: 0.95 * seen.get(name, value) + 0.05 * value for name, value in now.items()}
        if step % 20 == 0:
            shown = " ".join(f"{name} {value:.3f}" for name, value in seen.items())
            print(f"{step} loss {loss.item():.3f} {shown} {time.monotonic() - begun:.0f} s", flush=True)
        if clock.rang() or step + 1 == options.steps:
            kept = [optim.state_dict() for optim in optims]
            save_state(
                path, {"tower": tower.state_dict(), "hints": hints.state_dict(), "optims": kept, "step": step + 1}
            )


if __name__ == "__main__":
    main()
