"""Second stage: the encoder and the decoder learn to answer.

``python -m training.audio.train --bank BANK --held-out BANK --state DIR`` starts from the encoder that ``hear`` left
there; the same command again goes on where the last state was kept. Every ten minutes it answers held-out questions.
"""

from __future__ import annotations

import argparse
import random
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812  # its usual name
from torch import Tensor, nn

from training.audio.clips import Bank, Clip, Question, ask, draw_clip
from training.audio.hear import Words, features_of
from training.audio.tower import Encoder, EncoderSize, lengths_of
from training.common import Clock, course, load_state, optimisers, save_state
from training.decoder import Decoder, DecoderSize
from training.rows import IGNORED, Writer
from training.tokenizer import make_tokenizer

HINTS = 0.3  # how much the lexicon's labels still count
THETA = 1000.0


@dataclass(slots=True)
class Rows:
    """A batch of questions. Row i asks about clip ``clips[i]``; ids of the clip's places are -1."""

    prefix: Tensor  # [p] token ids
    ids: Tensor  # [b, n]
    labels: Tensor  # [b, n], the id that should come next; -100 outside the answers
    clips: Tensor  # [b]
    questions: list[Question]


def rows_of(
    writer: Writer,
    clips: list[Clip],
    places: list[int],
    rng: random.Random,
    each: int,
    *,
    first: bool | None = None,
    plain: bool = False,
) -> Rows:
    """``each`` questions about every clip, which has so many ``places``.

    ``first`` puts the clip before the question; None does so for three in ten. ``plain`` keeps the template's own
    system message.
    """
    prefix = torch.tensor(writer.plain if plain else writer.prefix(rng))
    found = [(k, q) for k, clip in enumerate(clips) for q in ask(rng, clip, each)]
    made = [_row(writer, q, places[k], first=rng.random() < 0.3 if first is None else first) for k, q in found]
    length = max(len(ids) for ids, _ in made)
    ids = np.zeros((len(made), length), np.int64)
    labels = np.full((len(made), length), IGNORED, np.int64)
    for k, (row, answer) in enumerate(made):
        ids[k, : len(row)] = row
        labels[k, answer - 1 : len(row) - 1] = row[answer:]
    return Rows(
        prefix=prefix,
        ids=torch.from_numpy(ids),
        labels=torch.from_numpy(labels),
        clips=torch.tensor([k for k, _ in found]),
        questions=[q for _, q in found],
    )


def _row(writer: Writer, question: Question, places: int, *, first: bool) -> tuple[list[int], int]:
    """Ids after the prefix with -1 for each place of the clip, and where the answer begins."""
    asked, end = question.text, "<|im_end|>\n<|im_start|>assistant\n"
    before, after = ("Audio 1: ", f"\n{asked}{end}") if first else (f"{asked}Audio 1: ", f"\n{end}")
    ids = [*writer.ids(f"{before}<|audio_bos|>"), *[-1] * places, *writer.ids(f"<|audio_eos|>{after}")]
    return ids + writer.ids(f"{question.answer}<|im_end|>"), len(ids)


class Listener(nn.Module):
    """Encoder and decoder."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.encoder = Encoder(EncoderSize())
        self.words = Words(EncoderSize().d_model)
        self.decoder = Decoder(DecoderSize(vocabulary, rope_theta=THETA, mrope_section=(16, 0, 0)))

    def forward(self, features: Tensor, frames: Tensor, rows: Rows) -> tuple[Tensor, Tensor, Tensor]:
        """Logits [m, vocabulary] and ids [m] of the answers' tokens, and the encoder's states."""
        states = self.encoder(features, frames)
        _, lengths = lengths_of(frames)
        heard = self.encoder.projector(states)[rows.clips]
        real = torch.arange(heard.shape[1]) < lengths[rows.clips][:, None]
        places = rows.ids < 0
        embedded = self.decoder.embed_tokens(rows.ids.clamp(min=0))
        embedded = embedded.masked_scatter(places[..., None], heard[real].to(embedded.dtype))
        at = torch.arange(len(rows.prefix), len(rows.prefix) + rows.ids.shape[1]).expand(3, len(rows.ids), -1)
        out = self.decoder(rows.prefix, embedded, at)
        asked = rows.labels != IGNORED
        return self.decoder.logits(out[asked]), rows.labels[asked], states


def right_rows(logits: Tensor, rows: Rows) -> list[bool]:
    """For each row whether greedy decoding gives the whole answer and ends there."""
    asked = rows.labels != IGNORED
    right = torch.ones_like(asked)
    right[asked] = logits.argmax(-1) == rows.labels[asked]
    return right.all(1).tolist()


def batch_of(
    writer: Writer,
    clips: list[Clip],
    rng: random.Random,
    each: int,
    *,
    first: bool | None = None,
    plain: bool = False,
) -> tuple[Tensor, Tensor, Rows]:
    """Features, frames and rows of ``clips``."""
    features, frames = features_of(clips)
    places = lengths_of(frames)[1].tolist()
    return features, frames, rows_of(writer, clips, places, rng, each, first=first, plain=plain)


@torch.no_grad()
def held_out(model: Listener, writer: Writer, bank: Bank, seed: int, batches: int) -> dict[str, tuple[int, int]]:
    """Right and asked per question type on held-out clips."""
    table: dict[str, list[bool]] = defaultdict(list)
    for k in range(batches):
        rng = random.Random(f"{seed} held out {k}")
        clips = [draw_clip(rng, bank, held_out=True) for _ in range(40)]
        features, frames, rows = batch_of(writer, clips, rng, 3)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits, _, _ = model(features, frames, rows)
        for question, right in zip(rows.questions, right_rows(logits, rows), strict=True):
            table[question.type].append(right)
    return {name: (sum(rights), len(rights)) for name, rights in sorted(table.items())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bank", type=Path, required=True)
    parser.add_argument("--held-out", type=Path, required=True)
    parser.add_argument("--state", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--batch", type=int, default=32, help="clips in a step")
    parser.add_argument("--each", type=int, default=2, help="questions about a clip")
    parser.add_argument("--rate", type=float, default=1.5e-3)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    bank, test = Bank(options.bank), Bank(options.held_out)
    writer = Writer(tokenizer := make_tokenizer())
    model = Listener(tokenizer.get_vocab_size())
    optims = optimisers((model,), options.rate)
    path = options.state / "listener.pt"
    first = begin(model, optims, path, options.state / "encoder.pt")
    keep, look, begun = Clock(120), Clock(600), time.monotonic()
    recent: dict[str, float] = {}
    for step in range(first, options.steps):
        rng = random.Random(f"{options.seed} answer {step}")
        clips = [draw_clip(rng, bank) for _ in range(options.batch)]
        features, frames, rows = batch_of(writer, clips, rng, options.each)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits, wanted, states = model(features, frames, rows)
        loss = F.cross_entropy(logits.float(), wanted)
        hinted, _ = model.words(states.float(), frames, clips)
        (loss + HINTS * hinted).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 2.0)
        for optim in optims:
            for group in optim.param_groups:
                group["lr"] = course(step, options.steps, options.rate)
            optim.step()
            optim.zero_grad()
        for question, right in zip(rows.questions, right_rows(logits, rows), strict=True):
            recent[question.type] = 0.98 * recent.get(question.type, 0.0) + 0.02 * right
        if step % 50 == 0:
            shown = ", ".join(f"{name} {value:.2f}" for name, value in sorted(recent.items()))
            print(f"{step} loss {loss:.3f} hints {hinted:.2f} {time.monotonic() - begun:.0f} s: {shown}", flush=True)
        if keep.rang() or step + 1 == options.steps:
            kept = [optim.state_dict() for optim in optims]
            save_state(path, {"model": model.state_dict(), "optims": kept, "step": step + 1})
        if look.rang() or step + 1 == options.steps:
            table = held_out(model, writer, test, options.seed, 8)
            good, total = (sum(pair[k] for pair in table.values()) for k in (0, 1))
            print(f"{step} held out {good}/{total} {good / total:.3f} {table}", flush=True)


def begin(model: Listener, optims: list[torch.optim.Optimizer], path: Path, encoder: Path) -> int:
    """Load the kept state, else the first stage's encoder; the step to go on with."""
    if (state := load_state(path)) is not None:
        model.load_state_dict(state["model"])
        for optim, kept in zip(optims, state["optims"], strict=True):
            optim.load_state_dict(kept)
        return int(state["step"])
    if (state := load_state(encoder)) is not None:
        model.encoder.load_state_dict(state["encoder"])
        model.words.load_state_dict(state["words"])
    return 0


if __name__ == "__main__":
    main()
