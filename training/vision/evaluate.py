"""How well a vision checkpoint answers questions about held-out scenes, as a table per question type.

``python -m training.vision.evaluate FOLDER --seed 7 --scenes 2000`` draws larger pictures, scales them as the image
processor does, and asks three questions about each. ``--prove N`` also answers N of them with transformers' own
processor and model and fails where they are right and this is wrong, or the other way round.
"""

from __future__ import annotations

import argparse
import math
import random
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from qwen_agent_kit import foreign
from training.rows import Writer
from training.table import show
from training.vision.export import MAX_PIXELS, MIN_PIXELS, load
from training.vision.questions import Question
from training.vision.rows import rows_of
from training.vision.scenes import SIZES, Scene, draw_scene
from training.vision.see import batch_of
from training.vision.tower import MERGE, PATCH
from training.vision.train import right_rows


def smart_resize(width: int, height: int) -> tuple[int, int]:
    """The size the official image processor scales a picture to."""
    factor = PATCH * MERGE
    w, h = round(width / factor) * factor, round(height / factor) * factor
    if w * h > MAX_PIXELS:
        shrink = math.sqrt(width * height / MAX_PIXELS)
        w, h = (max(factor, math.floor(side / shrink / factor) * factor) for side in (width, height))
    elif w * h < MIN_PIXELS:
        grow = math.sqrt(MIN_PIXELS / (width * height))
        w, h = (math.ceil(side * grow / factor) * factor for side in (width, height))
    return w, h


def held_out_scenes(seed: int, count: int) -> Iterator[tuple[list[Scene], list[Image.Image], random.Random]]:
    """Batches of held-out scenes of one size as the model sees them, and the larger pictures they were."""
    made = 0
    while made < count:
        rng = random.Random(f"{seed} evaluate {made}")
        size = SIZES[0] if rng.random() < 0.7 else rng.choice(SIZES[1:])
        scale = rng.choice((2, 3, 4))
        scenes = [draw_scene(rng, held_out=True, size=size, scale=scale) for _ in range(min(25, count - made))]
        pictures = [scene.image for scene in scenes]
        for scene in scenes:
            width, height = smart_resize(*scene.image.size)
            if (width, height) != (scene.width, scene.height):
                raise SystemExit(f"{scene.image.size} becomes {(width, height)}, not {(scene.width, scene.height)}")
            scene.image = scene.image.resize((width, height), Image.Resampling.BICUBIC)
        made += len(scenes)
        yield scenes, pictures, rng


@torch.no_grad()
def evaluate(folder: Path, seed: int, count: int, prove: int) -> dict[str, list[bool]]:
    """Whether each answer is right, per question type."""
    model, tokenizer = load(folder)
    writer = Writer(tokenizer)
    oracle = Oracle(folder) if prove else None
    table: dict[str, list[bool]] = defaultdict(list)
    for scenes, pictures, rng in held_out_scenes(seed, count):
        first = rng.random() < 0.3
        rows = rows_of(writer, scenes, rng, 3, held_out=True, first=first, plain=True)
        logits, _, _ = model(batch_of(scenes)[0], scenes[0], rows)
        rights = right_rows(logits, rows)
        for question, right in zip(rows.questions, rights, strict=True):
            table[question.type].append(right)
        for k in range(min(prove, len(rights)) if oracle is not None else 0):
            picture = pictures[int(rows.pictures[k])]
            assert oracle is not None, "it was made where there is something to prove"
            oracle.check(rows.questions[k], picture, first, right=rights[k])
            prove -= 1
    return table


class Oracle:
    """transformers' own processor, tokenizer and model on the same folder, in float32."""

    def __init__(self, folder: Path) -> None:
        library = foreign.transformers()
        self.model = library.Qwen2_5_VLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
        self.tokenizer = library.AutoTokenizer.from_pretrained(folder)
        self.images = library.AutoImageProcessor.from_pretrained(folder)

    def inputs(self, question: str, picture: Image.Image, *, first: bool) -> dict[str, Any]:
        """What the official processors make of a question about a picture."""
        parts: list[dict[str, Any]] = [{"type": "text", "text": question}, {"type": "image"}]
        message = {"role": "user", "content": parts[::-1] if first else parts}
        text = self.tokenizer.apply_chat_template([message], tokenize=False, add_generation_prompt=True)
        pixels = self.images(images=[picture], return_tensors="pt")
        places = int(pixels["image_grid_thw"].prod()) // MERGE**2
        ids = self.tokenizer(text.replace("<|image_pad|>", "<|image_pad|>" * places), return_tensors="pt")
        return {**ids, **pixels}

    def answer(self, question: str, picture: Image.Image, *, first: bool) -> str:
        """What it answers, greedily."""
        given = self.inputs(question, picture, first=first)
        out = self.model.generate(**given, **self._kinds(given), max_new_tokens=12, do_sample=False)
        return str(self.tokenizer.decode(out[0, given["input_ids"].shape[1] :], skip_special_tokens=True))

    @torch.no_grad()
    def logits(self, question: Question, picture: Image.Image, *, first: bool) -> torch.Tensor:
        """Logits [n, vocabulary] over the question and its right answer."""
        given = self.inputs(question.text, picture, first=first)
        answer = self.tokenizer(f"{question.answer}<|im_end|>", return_tensors="pt")
        for name in ("input_ids", "attention_mask"):
            given[name] = torch.cat((given[name], answer[name]), 1)
        found: torch.Tensor = self.model(**given, **self._kinds(given)).logits[0]
        return found

    def _kinds(self, given: dict[str, Any]) -> dict[str, Any]:
        return {"mm_token_type_ids": (given["input_ids"] == self.model.config.image_token_id).int()}

    def check(self, question: Question, picture: Image.Image, first: bool, *, right: bool) -> None:
        said = self.answer(question.text, picture, first=first)
        if (said == question.answer) != right:
            raise SystemExit(f"transformers answers {said!r} to {question}; here that was {right}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--scenes", type=int, default=2000)
    parser.add_argument("--prove", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    raise SystemExit(0 if show(evaluate(options.folder, options.seed, options.scenes, options.prove)) else 1)


if __name__ == "__main__":
    main()
