"""One step of compute: the next ids of several sequences through the model in one forward."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from qwen_agent_kit.engine.kv import SequenceKV
from qwen_agent_kit.engine.live import Live
from qwen_agent_kit.engine.media import media_rows

if TYPE_CHECKING:
    from qwen_agent_kit.models import Decoder, ForeignDecoder

__all__ = ["Counters", "Part", "Runner"]


@dataclass
class Counters:
    """What went through the layers since the engine was made; ``positions`` counts rejected drafts too."""

    forwards: int = 0
    positions: int = 0


@dataclass(frozen=True, slots=True)
class Part:
    """The rows of one sequence in a step: its next ``count`` ids, and a draft of what may follow them."""

    live: Live
    count: int
    draft: Sequence[int] = ()

    @property
    def rows(self) -> int:
        """All of them."""
        return self.count + len(self.draft)

    @property
    def wanted(self) -> int:
        """Of how many rows the logits are needed: none where ids are left after this step."""
        return 1 + len(self.draft) if self.live.length + self.count == self.live.count else 0


@dataclass(frozen=True, slots=True)
class _Segment:
    """What ``Decoder.forward_batch`` asks of a ``Segment``: engine and models do not import each other."""

    kv: SequenceKV
    start: int
    count: int
    wanted: int
    adapter: Any


class Runner:
    """Runs the model; knows nothing of requests, sampling or text."""

    def __init__(self, model: Decoder | ForeignDecoder) -> None:
        self._model = model
        self.counters = Counters()

    def step(self, parts: Sequence[Part]) -> list[torch.Tensor | None]:
        """Compute the parts together; their sequences are longer afterwards by ``count``, drafts not included.

        Returns:
            Per part the logits [wanted, vocab], None where none are wanted.
        """
        ids, positions = _ids(parts), _positions(parts)
        segments: list[Any] = []
        for part in parts:
            start, end = part.live.length, part.live.length + part.rows
            part.live.kv.ensure(end, start, part.live.reserved)
            segments.append(_Segment(part.live.kv, start, part.rows, part.wanted, part.live.adapter))
        more = media_rows([(p.live.media, p.live.length, p.rows) for p in parts], ids, self._model)
        logits = self._model.forward_batch(ids, positions, segments, **more)
        self.counters.forwards += 1
        self.counters.positions += len(ids)
        found: list[torch.Tensor | None] = []
        first = 0
        for part, segment in zip(parts, segments, strict=True):
            part.live.length += part.count
            found.append(logits[first : first + segment.wanted] if segment.wanted else None)
            first += segment.wanted
        return found


def _ids(parts: Sequence[Part]) -> torch.Tensor:
    runs = []
    for part in parts:
        runs.append(part.live.ids(part.live.length, part.live.length + part.count))
        if part.draft:
            runs.append(np.asarray(part.draft, dtype=np.int32))
    return torch.from_numpy(np.concatenate(runs)).long()


def _positions(parts: Sequence[Part]) -> torch.Tensor:
    """[n], or [3, n] where any sequence has m-rope positions."""
    runs = [part.live.positions(part.live.length, part.live.length + part.rows) for part in parts]
    if any(run.ndim > 1 for run in runs):
        runs = [run if run.ndim > 1 else np.broadcast_to(run, (3, len(run))) for run in runs]
    return torch.from_numpy(np.concatenate(runs, axis=-1))
