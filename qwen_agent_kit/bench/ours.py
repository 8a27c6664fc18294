"""Our own engine as a side of a measurement: it says the ids that it is told, at the cost of choosing them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from qwen_agent_kit.backends import Sampling, Usage
from qwen_agent_kit.bench.sides import Answer
from qwen_agent_kit.engine import Engine
from qwen_agent_kit.engine.sampling import Draw, Mask, Sampler
from qwen_agent_kit.models import LoadedModel, load_model
from qwen_agent_kit.paths import cache_dir

__all__ = ["Ours", "opened"]


def opened(model: Path, quant: str, threads: int) -> LoadedModel:
    """The model, its packed weights kept for the next time."""
    torch.set_num_threads(threads)
    return load_model(model, quant=quant, cache=cache_dir("weights"))


class Ours:
    """Our engine; used by one thread.

    Args:
        loaded: The model.
        threads: For torch, already set.
        drafts: Whether ids are drafted.
        forcing: Whether the grammar's forced ids are appended undrawn.
        end: Whether a turn may end before ``new`` ids.
    """

    def __init__(
        self, loaded: LoadedModel, *, threads: int, drafts: bool = True, forcing: bool = True, end: bool = False
    ) -> None:
        off = [name for name, on in (("drafts", drafts), ("forcing", forcing)) if not on]
        self.name = f"ours, {' and '.join(off)} off" if off else "ours"
        self.settings: dict[str, Any] = {
            "scheme": loaded.scheme,
            "threads": threads,
            "drafts": drafts,
            "forcing": forcing,
        }
        self._engine = _Scripted(
            loaded if end else replace(loaded, eos=()), drafts=drafts, forcing=forcing, stop_repetition=False
        )
        self._turn = 0
        self.usages: list[Usage] = []

    def run(
        self,
        prompt: Sequence[int],
        new: int,
        script: Sequence[int] | None = None,
        *,
        fresh: bool = False,
        grammar: str | None = None,
    ) -> Answer:
        """Generate ``new`` ids; those of ``script`` where it is given. ``fresh`` reuses nothing from before."""
        if fresh:
            self._turn += 1
            self.usages.clear()
        self._engine.script = script
        began = time.perf_counter()
        generation = self._engine.submit(
            list(prompt), Sampling(temperature=0, max_tokens=new), grammar=grammar, salt=f"turn {self._turn}"
        )
        first = 0.0
        ids = []
        for token in generation:
            first = first or time.perf_counter() - began
            ids.append(token)
        total = time.perf_counter() - began
        self.usages.append(generation.usage)
        return Answer(first, total, tuple(ids))

    def run_many(self, prompts: Sequence[Sequence[int]], new: int) -> float:
        """Seconds for ``new`` ids for each prompt, all at once and without anything from before."""
        self._turn += 1
        self._engine.script = None
        sampling = Sampling(temperature=0, max_tokens=new)
        began = time.perf_counter()
        generations = [self._engine.submit(list(p), sampling, salt=f"turn {self._turn}") for p in prompts]
        for generation in generations:
            for _ in generation:
                pass
        return time.perf_counter() - began

    def close(self) -> None:
        """Stop the engine."""
        self._engine.close()


class _Scripted(Engine):
    """An engine that is told what to say: each id is still drawn from its logits, then replaced."""

    script: Sequence[int] | None = None

    def _sampler(self, sampling: Sampling, prompt: np.ndarray) -> Sampler:
        if self.script is None:
            return super()._sampler(sampling, prompt)
        return _Told(sampling, self._loaded.config.vocab_size, self.script)


class _Told(Sampler):
    def __init__(self, sampling: Sampling, vocab: int, script: Sequence[int]) -> None:
        super().__init__(sampling, vocab)
        self._script, self._at = script, 0

    def __call__(self, logits: torch.Tensor, mask: Mask | None = None) -> Draw:
        super().__call__(logits, mask)
        return Draw(self._script[self._at])

    def accept(self, token: int) -> None:
        super().accept(token)
        self._at += 1
