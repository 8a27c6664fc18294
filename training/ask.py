"""How well a miniature answers about a held-out set through the kit itself: plugins, plan and engine, as a user asks.

``python -m training.ask vision --seed 7 --count 2000`` draws the scenes that ``training.vision.evaluate`` draws and
asks its questions; ``python -m training.ask audio --bank BANK --seed 7 --count 1000`` does so with clips. Exit code 1
where under 95 % of all are right.
"""

from __future__ import annotations

import argparse
import random
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from qwen_agent_kit import Agent, Audio, Host, Image, Media, Text
from qwen_agent_kit.events import RunResult
from training.table import show

Asked = tuple[str, str, str, list[Text | Media]]
"""The type of a question, the question, its answer, and the parts that are sent."""

WEIGHTS = "plugins/miniatures/qwen_agent_kit_miniatures_weights"


def scenes(folder: Path, seed: int, count: int) -> Iterator[list[Asked]]:
    """Batches of questions about held-out scenes."""
    from training.rows import Writer
    from training.vision.evaluate import held_out_scenes
    from training.vision.export import load
    from training.vision.rows import rows_of

    writer = Writer(load(folder)[1])
    for drawn, pictures, rng in held_out_scenes(seed, count):
        first = rng.random() < 0.3
        rows = rows_of(writer, drawn, rng, 3, held_out=True, first=first, plain=True)
        media: list[Media] = [Image(np.asarray(picture.convert("RGB"))) for picture in pictures]
        asked = zip(rows.questions, rows.pictures.tolist(), strict=True)
        yield [(q.type, q.text, q.answer, _parts(q.text, media[i], first=first)) for q, i in asked]


def clips(folder: Path, bank: Path, seed: int, count: int) -> Iterator[list[Asked]]:
    """Batches of questions about held-out clips."""
    from training.audio.clips import Bank, draw_clip
    from training.audio.export import load
    from training.audio.mel import RATE
    from training.audio.train import batch_of
    from training.rows import Writer

    writer, voices = Writer(load(folder)[1]), Bank(bank)
    for start in range(0, count, 25):
        rng = random.Random(f"{seed} evaluate {start}")
        drawn = [draw_clip(rng, voices, held_out=True) for _ in range(min(25, count - start))]
        first = rng.random() < 0.3
        _, _, rows = batch_of(writer, drawn, rng, 3, first=first, plain=True)
        media: list[Media] = [Audio(np.asarray(clip.samples), options={"rate": RATE}) for clip in drawn]
        asked = zip(rows.questions, rows.clips.tolist(), strict=True)
        yield [(q.type, q.text, q.answer, _parts(q.text, media[i], first=first)) for q, i in asked]


def _parts(question: str, medium: Media, *, first: bool) -> list[Text | Media]:
    return [medium, Text(question)] if first else [Text(question), medium]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["vision", "audio"])
    parser.add_argument("--bank", type=Path)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--count", type=int, default=2000)
    options = parser.parse_args()
    model = "miniature-vl" if options.what == "vision" else "miniature-audio"
    folder = Path(WEIGHTS) / model
    if options.what == "vision":
        batches = scenes(folder, options.seed, options.count)
    else:
        batches = clips(folder, options.bank, options.seed, options.count)
    table: dict[str, list[bool]] = defaultdict(list)
    with Host(prefixes=False) as host:
        agent = Agent(model, host=host)
        for asked in batches:
            results = agent.batch([parts for *_, parts in asked], concurrency=16)
            for (kind, _, answer, _), one in zip(asked, results, strict=True):
                table[kind].append(isinstance(one, RunResult) and one.output == answer)
    raise SystemExit(0 if show(table) else 1)


if __name__ == "__main__":
    main()
