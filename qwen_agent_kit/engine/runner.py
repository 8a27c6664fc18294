"""One step of compute: the next ids of one sequence through the model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from qwen_agent_kit.engine.cache import Live

if TYPE_CHECKING:
    from qwen_agent_kit.models import Decoder

__all__ = ["Counters", "Runner"]


@dataclass
class Counters:
    """What went through the layers since the engine was made."""

    forwards: int = 0
    positions: int = 0


class Runner:
    """Runs the model; knows nothing of requests, sampling or text."""

    def __init__(self, model: Decoder) -> None:
        self._model = model
        self.counters = Counters()

    def step(self, live: Live, count: int) -> torch.Tensor | None:
        """Compute the next ``count`` positions; logits [vocab] of the last one where it ends the sequence."""
        start, end = live.length, live.length + count
        ids = torch.from_numpy(live.ids(start, end)).long()
        positions = torch.from_numpy(live.positions(start, end))
        live.kv.ensure(end, start, live.reserved)
        last = end == live.count
        logits = self._model.forward(ids, positions, live.kv, start=start, logits_from=count - 1 if last else count)
        live.length = end
        self.counters.forwards += 1
        self.counters.positions += count
        return logits[-1] if last else None
