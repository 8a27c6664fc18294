"""What a pipeline gains from many items in flight: the time of a job, batched against one item at a time."""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from qwen_agent_kit.agent import Agent
from qwen_agent_kit.backends import Sampling
from qwen_agent_kit.bench.rows import Row
from qwen_agent_kit.host import Host
from qwen_agent_kit.messages import Image
from qwen_agent_kit.pipeline import run_pipeline

__all__ = ["measure"]


def measure(
    items: int = 128, tokens: int = 32, concurrency: int = 16, repeats: int = 3, model: str = "", images: bool = False
) -> list[Row]:
    """The median time of each side, the sides taken in turn; every run has new prompts, so that none finds a prefix.

    Args:
        items: Per job.
        tokens: Per answer.
        concurrency: Of the batched side.
        repeats: Of each side.
        model: As ``Agent`` takes it; the one that answers by default where "".
        images: Each item is a picture of its own; else a text.
    """
    with Host() as host, tempfile.TemporaryDirectory() as folder:
        agent = Agent(model or None, sampling=Sampling(temperature=0, max_tokens=tokens), host=host)
        agent.run(["Say hello.", *_picture(0, "first")] if images else "Say hello.")  # opens the model
        alone, batched = [], []
        for number in range(repeats):
            alone.append(_seconds(agent, Path(folder) / f"a{number}.jsonl", items, 1, images))
            batched.append(_seconds(agent, Path(folder) / f"b{number}.jsonl", items, concurrency, images))
    one, many = statistics.median(alone), statistics.median(batched)
    job = f"{items} {'pictures' if images else 'items'} of up to {tokens} tokens"
    return [
        Row(f"{job}, one at a time", one / items * 1000, "ms/item"),
        Row(f"{job}, {concurrency} at a time", many / items * 1000, "ms/item"),
        Row(f"{concurrency} at a time against one, time of the job", many / one, "ratio", 0.5),
    ]


def _seconds(agent: Agent, sink: Path, items: int, concurrency: int, images: bool) -> float:
    rows: list[dict[str, Any]] = [{"n": number, "job": sink.stem} for number in range(items)]
    prompt = "{n} of job {job}: count from one to ten in words."
    if images:
        rows = [{"image": _picture(number, sink.stem)[0]} for number in range(items)]
        prompt = "Which colour is the square?"
    began = time.perf_counter()
    run_pipeline(rows, agent, prompt=prompt, sink=sink, concurrency=concurrency)
    return time.perf_counter() - began


def _picture(number: int, job: str) -> list[Image]:
    """A square on white of a size and a colour of its own, so that no tower's output is found again."""
    draw = np.random.default_rng([number, *job.encode()])
    height, width = draw.integers(100, 400, 2)
    picture = np.full((height, width, 3), 255, dtype=np.uint8)
    picture[height // 4 : height // 2, width // 4 : width // 2] = draw.integers(0, 256, 3)
    return [Image(picture)]
