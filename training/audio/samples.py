"""Held-out clips with questions, as files for tests.

``python -m training.audio.samples FOLDER --bank BANK --seed 11 --clips 200`` writes small WAV files of 8 bits a sample
and ``questions.jsonl``; long clips are left out, and what is quiet is made loud, since 8 bits would drown it.
"""

from __future__ import annotations

import argparse
import json
import random
import wave
from pathlib import Path

import numpy as np

from training.audio.clips import Bank, ask, draw_clip
from training.audio.mel import RATE

LONGEST = 1.3  # seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--bank", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=11)
    parser.add_argument("--clips", type=int, default=200)
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    bank, rng = Bank(options.bank), random.Random(f"{options.seed} samples")
    lines: list[str] = []
    made = 0
    while made < options.clips:
        clip = draw_clip(rng, bank, held_out=True)
        if len(clip.samples) > LONGEST * RATE:
            continue
        name = f"clip-{made:03}.wav"
        with wave.open(str(options.folder / name), "wb") as file:
            file.setparams((1, 1, RATE, 0, "NONE", ""))
            loud = 0.9 / float(np.abs(clip.samples).max()) if clip.kind in ("speech", "tone", "tones") else 1.0
            file.writeframes(np.clip(np.round(clip.samples * loud * 127 + 128), 0, 255).astype(np.uint8).tobytes())
        for question in ask(rng, clip, 2):
            row = {"file": name, "type": question.type, "question": question.text, "answer": question.answer}
            lines.append(json.dumps(row))
        made += 1
    (options.folder / "questions.jsonl").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
