"""How well an audio checkpoint answers questions about held-out clips, as a table per question type.

``python -m training.audio.evaluate FOLDER --bank BANK --seed 7 --clips 1000`` mixes clips from a bank that ``voices``
made with ``--held-out``, and asks three questions about each. ``--prove N`` also answers N of them with transformers'
own feature extractor and model and fails where they are right and this is wrong, or the other way round.
"""

from __future__ import annotations

import argparse
import random
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch

from qwen_agent_kit import foreign
from training.audio.clips import Bank, Clip, Question, draw_clip
from training.audio.export import load
from training.audio.mel import RATE
from training.audio.train import batch_of, right_rows
from training.rows import Writer
from training.table import show


@torch.no_grad()
def evaluate(folder: Path, bank: Bank, seed: int, count: int, prove: int) -> dict[str, list[bool]]:
    """Whether each answer is right, per question type."""
    model, tokenizer = load(folder)
    writer = Writer(tokenizer)
    oracle = Oracle(folder) if prove else None
    table: dict[str, list[bool]] = defaultdict(list)
    for start in range(0, count, 25):
        rng = random.Random(f"{seed} evaluate {start}")
        clips = [draw_clip(rng, bank, held_out=True) for _ in range(min(25, count - start))]
        first = rng.random() < 0.3
        features, frames, rows = batch_of(writer, clips, rng, 3, first=first, plain=True)
        logits, _, _ = model(features, frames, rows)
        rights = right_rows(logits, rows)
        for question, right in zip(rows.questions, rights, strict=True):
            table[question.type].append(right)
        for k in range(min(prove, len(rights)) if oracle is not None else 0):
            assert oracle is not None, "it was made where there is something to prove"
            oracle.check(rows.questions[k], clips[int(rows.clips[k])], first, right=rights[k])
            prove -= 1
    return table


class Oracle:
    """transformers' own feature extractor, tokenizer and model on the same folder, in float32."""

    def __init__(self, folder: Path) -> None:
        library = foreign.transformers()
        self.model = library.Qwen2AudioForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
        self.tokenizer = library.AutoTokenizer.from_pretrained(folder)
        self.sounds = library.AutoFeatureExtractor.from_pretrained(folder)

    def inputs(self, question: str, clip: Clip, *, first: bool) -> dict[str, Any]:
        """What the official feature extractor and tokenizer make of a question about a clip."""
        parts: list[dict[str, Any]] = [{"type": "text", "text": question}, {"type": "audio", "audio": ""}]
        message = {"role": "user", "content": parts[::-1] if first else parts}
        text = self.tokenizer.apply_chat_template([message], tokenize=False, add_generation_prompt=True)
        heard = self.sounds(clip.samples, sampling_rate=RATE, return_attention_mask=True, return_tensors="pt")
        frames = int(heard["attention_mask"].sum())
        places = ((frames - 1) // 2 + 1 - 2) // 2 + 1
        ids = self.tokenizer(text.replace("<|AUDIO|>", "<|AUDIO|>" * places), return_tensors="pt")
        sound = {"input_features": heard["input_features"], "feature_attention_mask": heard["attention_mask"]}
        return {**ids, **sound}

    def answer(self, question: str, clip: Clip, *, first: bool) -> str:
        """What it answers, greedily."""
        given = self.inputs(question, clip, first=first)
        out = self.model.generate(**given, max_new_tokens=12, do_sample=False)
        return str(self.tokenizer.decode(out[0, given["input_ids"].shape[1] :], skip_special_tokens=True))

    @torch.no_grad()
    def logits(self, question: Question, clip: Clip, *, first: bool) -> torch.Tensor:
        """Logits [n, vocabulary] over the question and its right answer."""
        given = self.inputs(question.text, clip, first=first)
        answer = self.tokenizer(f"{question.answer}<|im_end|>", return_tensors="pt")
        for name in ("input_ids", "attention_mask"):
            given[name] = torch.cat((given[name], answer[name]), 1)
        found: torch.Tensor = self.model(**given).logits[0]
        return found

    def check(self, question: Question, clip: Clip, first: bool, *, right: bool) -> None:
        said = self.answer(question.text, clip, first=first)
        if (said == question.answer) != right:
            raise SystemExit(f"transformers answers {said!r} to {question}; here that was {right}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--bank", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--clips", type=int, default=1000)
    parser.add_argument("--prove", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    table = evaluate(options.folder, Bank(options.bank), options.seed, options.clips, options.prove)
    raise SystemExit(0 if show(table) else 1)


if __name__ == "__main__":
    main()
