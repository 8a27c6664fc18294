"""Several engines of one process, each with its own scheme, share nothing but the kernels' threads."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from qwen_agent_kit.backends import Sampling
from qwen_agent_kit.engine import Engine
from qwen_agent_kit.engine.kv import SequenceKV
from qwen_agent_kit.models import load_model
from qwen_agent_kit.testing.models import tiny_model_dir

SCHEMES = ("int8", "int4", "bf16", "fp32")
SHAPES: dict[str, dict[str, Any]] = {
    "int8": {"hidden": 64},
    "int4": {"hidden": 256, "heads": 8, "kv_heads": 2},
    "bf16": {"hidden": 96, "layers": 3},
    "fp32": {"hidden": 32},
}
PROMPTS = [[(i * 31 + k * 7) % 90 for k in range(n)] for i, n in enumerate((1, 3, 40, 70))]


class Answers:
    """Ids and log-probabilities of each prompt, cold: salts differ, so that nothing is reused."""

    def __init__(self, engine: Engine) -> None:
        self.engine, self.asked = engine, 0

    def __call__(self) -> list[Any]:
        found = []
        for prompt in PROMPTS:
            self.asked += 1
            sampling = Sampling(temperature=0, max_tokens=12, logprobs=1)
            generation = self.engine.submit(prompt, sampling, salt=str(self.asked))
            found.append((list(generation), [logprob for _, logprob, _ in generation._request.logprobs]))
        return found


def _in_turn(engines: dict[str, Answers]) -> dict[str, list[Any]]:
    rounds = [{scheme: answers() for scheme, answers in engines.items()} for _ in range(2)]
    assert rounds[0] == rounds[1]
    return rounds[0]


def _at_once(engines: dict[str, Answers]) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = {}
    threads = [
        threading.Thread(target=lambda s=scheme, a=answers: found.update({s: a()}))  # type: ignore[misc]
        for scheme, answers in engines.items()
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return found


@pytest.mark.parametrize("together", [_in_turn, _at_once])
def test_engines_beside_each_other_say_what_each_says_alone(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    together: Callable[[dict[str, Answers]], dict[str, list[Any]]],
) -> None:
    """Four engines of unlike sizes and schemes, used in turn or at once, with room for keys and values that is full of
    NaN when it is taken: ids and log-probabilities are those of each engine alone over zeros. Nothing reads a key or a
    value that was not written, not even to weigh it with 0."""
    loaded = {s: load_model(tiny_model_dir(tmp_path / s, "qwen3", **SHAPES[s]), quant=s) for s in SCHEMES}
    plain = SequenceKV._slab
    taken: list[int] = []

    def slab(self: SequenceKV, capacity: int, value: float) -> torch.Tensor:
        taken.append(capacity)
        return plain(self, capacity).fill_(value)

    monkeypatch.setattr(SequenceKV, "_slab", lambda self, capacity: slab(self, capacity, 0.0))
    alone = {}
    for scheme, model in loaded.items():
        with Engine(model, drafts=False) as engine:
            alone[scheme] = Answers(engine)()
    monkeypatch.setattr(SequenceKV, "_slab", lambda self, capacity: slab(self, capacity, math.nan))
    engines = {scheme: Engine(model, drafts=False) for scheme, model in loaded.items()}
    try:
        assert together({scheme: Answers(engine) for scheme, engine in engines.items()}) == alone
    finally:
        for engine in engines.values():
            engine.close()
    assert max(taken) > 0
