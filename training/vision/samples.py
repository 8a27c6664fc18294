"""Held-out scenes with questions, as files for tests.

``python -m training.vision.samples FOLDER --seed 11 --scenes 100`` writes PNG pictures and ``questions.jsonl``.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from training.vision.evaluate import held_out_scenes
from training.vision.questions import ask


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=11)
    parser.add_argument("--scenes", type=int, default=100)
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    lines: list[str] = []
    made = 0
    for scenes, pictures, rng in held_out_scenes(options.seed, options.scenes):
        for scene, picture in zip(scenes, pictures, strict=True):
            name = f"scene-{made:03}.png"
            small = picture.resize((2 * scene.width, 2 * scene.height), resample=3)
            small.quantize(256, dither=0).convert("RGB").quantize(64, dither=0).save(
                options.folder / name, optimize=True
            )
            for question in ask(rng, scene, 2, held_out=True):
                row = {"file": name, "type": question.type, "question": question.text, "answer": question.answer}
                lines.append(json.dumps(row))
            made += 1
    (options.folder / "questions.jsonl").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
