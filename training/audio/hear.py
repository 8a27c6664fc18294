"""First stage: the encoder alone learns which words it hears, in order (CTC over the lexicon).

``python -m training.audio.hear --bank BANK --state DIR``; the same command again goes on where the last state was kept.
"""

from __future__ import annotations

import argparse
import random
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812  # its usual name
from torch import Tensor, nn

from training.audio.clips import Bank, Clip, draw_clip
from training.audio.mel import HOP, log_mel
from training.audio.tower import Encoder, EncoderSize, lengths_of
from training.audio.words import DIGITS, WORDS
from training.common import Clock, course, load_state, optimisers, save_state

LEXICON = ("", *DIGITS, *WORDS)  # 0 is CTC's blank


class Words(nn.Module):
    """A linear head over the encoder's states; it is thrown away after training."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.head = nn.Linear(hidden, len(LEXICON))

    def forward(self, states: Tensor, frames: Tensor, clips: list[Clip]) -> tuple[Tensor, float]:
        """Loss, and the share of spoken clips that the best path spells right."""
        scores = self.head(states).float().log_softmax(-1)
        _, lengths = lengths_of(frames)
        wanted = [[LEXICON.index(word) for word in clip.text.split()] for clip in clips]
        targets = torch.tensor([word for words in wanted for word in words])
        counts = torch.tensor([len(words) for words in wanted])
        loss = F.ctc_loss(scores.transpose(0, 1), targets, lengths, counts, zero_infinity=True)
        best = scores.argmax(-1)
        spelled = [torch.unique_consecutive(row[:n]).tolist() for row, n in zip(best, lengths, strict=True)]
        rights = [[w for w in row if w] == words for row, words in zip(spelled, wanted, strict=True) if words]
        return loss, sum(rights) / max(1, len(rights))


def features_of(clips: list[Clip]) -> tuple[Tensor, Tensor]:
    """Features [b, frames, 128], padded as a longer silence would be, and each clip's frames [b]."""
    mels = [log_mel(clip.samples) for clip in clips]
    frames = torch.tensor([-(-len(clip.samples) // HOP) for clip in clips])
    batch = np.zeros((len(mels), max(len(mel) for mel in mels), mels[0].shape[1]), np.float32)
    for row, mel in zip(batch, mels, strict=True):
        row[: len(mel)] = mel
        row[len(mel) :] = mel.min()
    return torch.from_numpy(batch), frames


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bank", type=Path, required=True)
    parser.add_argument("--state", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--batch", type=int, default=40)
    parser.add_argument("--rate", type=float, default=1.5e-3)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    bank = Bank(options.bank)
    encoder, words = Encoder(EncoderSize()), Words(EncoderSize().d_model)
    optims = optimisers((encoder, words), options.rate)
    path, first = options.state / "encoder.pt", 0
    if (state := load_state(path)) is not None:
        encoder.load_state_dict(state["encoder"])
        words.load_state_dict(state["words"])
        for optim, kept in zip(optims, state["optims"], strict=True):
            optim.load_state_dict(kept)
        first = state["step"]
    clock, begun, recent = Clock(120), time.monotonic(), 0.0
    for step in range(first, options.steps):
        rng = random.Random(f"{options.seed} hear {step}")
        clips = [draw_clip(rng, bank, kind="speech" if rng.random() < 0.9 else None) for _ in range(options.batch)]
        features, frames = features_of(clips)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            states = encoder(features, frames)
        loss, right = words(states.float(), frames, clips)
        loss.backward()
        nn.utils.clip_grad_norm_(encoder.parameters(), 2.0)
        for optim in optims:
            for group in optim.param_groups:
                group["lr"] = course(step, options.steps, options.rate)
            optim.step()
            optim.zero_grad()
        recent = 0.95 * recent + 0.05 * right
        if step % 20 == 0:
            print(f"{step} loss {loss.item():.3f} right {recent:.3f} {time.monotonic() - begun:.0f} s", flush=True)
        if clock.rang() or step + 1 == options.steps:
            kept = [optim.state_dict() for optim in optims]
            state = {"encoder": encoder.state_dict(), "words": words.state_dict(), "optims": kept, "step": step + 1}
            save_state(path, state)


if __name__ == "__main__":
    main()
