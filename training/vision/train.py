"""Second stage: the tower and the decoder learn to answer.

``python -m training.vision.train --state DIR`` starts from the tower that ``see`` left there; the same command again
goes on where the last state was kept. Every ten minutes it says how well it answers held-out questions.
"""

from __future__ import annotations

import argparse
import random
import time
from collections import defaultdict
from pathlib import Path

import torch
import torch.nn.functional as F  # noqa: N812  # its usual name
from torch import Tensor, nn

from training.common import Clock, course, load_state, optimisers, save_state
from training.decoder import Decoder, DecoderSize
from training.rows import IGNORED, Writer
from training.tokenizer import make_tokenizer
from training.vision.hints import Hints
from training.vision.rows import Rows, rows_of
from training.vision.scenes import Scene
from training.vision.see import batch_of, scenes_of_one_size
from training.vision.tower import Tower, TowerSize

HINTS = 0.3  # how much the dense labels still count


class Seer(nn.Module):
    """Tower and decoder."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.tower = Tower(TowerSize())
        self.hints = Hints(TowerSize().hidden_size)
        self.decoder = Decoder(DecoderSize(vocabulary))

    def forward(self, patches: Tensor, scene: Scene, rows: Rows) -> tuple[Tensor, Tensor, Tensor]:
        """Logits [m, vocabulary] and ids [m] of the answers' tokens, and the patches' states."""
        seen, states = self.tower(patches, scene.width, scene.height)
        places = rows.ids < 0
        embedded = self.decoder.embed_tokens(rows.ids.clamp(min=0))
        embedded = embedded.masked_scatter(places[..., None], seen[rows.pictures].to(embedded.dtype))
        out = self.decoder(rows.prefix, embedded, rows.positions)
        asked = rows.labels != IGNORED
        return self.decoder.logits(out[asked]), rows.labels[asked], states


def right_rows(logits: Tensor, rows: Rows) -> list[bool]:
    """For each row whether greedy decoding gives the whole answer and ends there."""
    asked = rows.labels != IGNORED
    right = torch.ones_like(asked)
    right[asked] = logits.argmax(-1) == rows.labels[asked]
    return right.all(1).tolist()


@torch.no_grad()
def held_out(model: Seer, writer: Writer, seed: int, batches: int) -> dict[str, tuple[int, int]]:
    """Right and asked per question type on held-out scenes."""
    table: dict[str, list[bool]] = defaultdict(list)
    for k in range(batches):
        rng = random.Random(f"{seed} held out {k}")
        scenes = scenes_of_one_size(rng, 32, held_out=True)
        rows = rows_of(writer, scenes, rng, 3, held_out=True)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits, _, _ = model(batch_of(scenes)[0], scenes[0], rows)
        for question, right in zip(rows.questions, right_rows(logits, rows), strict=True):
            table[question.type].append(right)
    return {name: (sum(rights), len(rights)) for name, rights in sorted(table.items())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--state", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--batch", type=int, default=32, help="scenes in a step")
    parser.add_argument("--each", type=int, default=3, help="questions about a scene")
    parser.add_argument("--rate", type=float, default=1.5e-3)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    writer = Writer(tokenizer := make_tokenizer())
    model = Seer(tokenizer.get_vocab_size())
    optims = optimisers((model,), options.rate)
    path = options.state / "seer.pt"
    first = begin(model, optims, path, options.state / "tower.pt")
    keep, look, begun = Clock(120), Clock(600), time.monotonic()
    recent: dict[str, float] = {}
    for step in range(first, options.steps):
        rng = random.Random(f"{options.seed} answer {step}")
        scenes = scenes_of_one_size(rng, options.batch)
        patches, labels = batch_of(scenes)
        rows = rows_of(writer, scenes, rng, options.each)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits, wanted, states = model(patches, scenes[0], rows)
            loss = F.cross_entropy(logits.float(), wanted)
            hinted, _ = model.hints(states, labels)
        (loss + HINTS * hinted).backward()
        for optim in optims:
            for group in optim.param_groups:
                group["lr"] = course(step, options.steps, options.rate)
            optim.step()
            optim.zero_grad()
        for question, right in zip(rows.questions, right_rows(logits, rows), strict=True):
            recent[question.type] = 0.98 * recent.get(question.type, 0.0) + 0.02 * right
        if step % 50 == 0:
            shown = ", ".join(f"{name} {value:.2f}" for name, value in sorted(recent.items()))
            print(
                f"{step} loss {loss.item():.3f} hints {hinted.item():.2f} {time.monotonic() - begun:.0f} s: {shown}",
                flush=True,
            )
        if keep.rang() or step + 1 == options.steps:
            kept = [optim.state_dict() for optim in optims]
            save_state(path, {"model": model.state_dict(), "optims": kept, "step": step + 1})
        if look.rang() or step + 1 == options.steps:
            table = held_out(model, writer, options.seed, 8)
            good, total = (sum(pair[k] for pair in table.values()) for k in (0, 1))
            print(f"{step} held out {good}/{total} {good / total:.3f} {table}", flush=True)


def begin(model: Seer, optims: list[torch.optim.Optimizer], path: Path, tower: Path) -> int:
    """Load the kept state, else the first stage's tower; the step to go on with."""
    if (state := load_state(path)) is not None:
        model.load_state_dict(state["model"])
        for optim, kept in zip(optims, state["optims"], strict=True):
            optim.load_state_dict(kept)
        return int(state["step"])
    if (state := load_state(tower)) is not None:
        model.tower.load_state_dict(state["tower"])
        model.hints.load_state_dict(state["hints"])
    return 0


if __name__ == "__main__":
    main()
