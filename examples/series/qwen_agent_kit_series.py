"""Time series as a modality: numbers become patches of eight, and each patch one position of the prompt."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from qwen_agent_kit import Backend, Media, hookimpl
from qwen_agent_kit.backends import Embeddings, MediaBudget, ModelFacts
from qwen_agent_kit.errors import MediaError
from qwen_agent_kit.media import read_bytes

QAK_API = 1
PATCH, MOST = 8, 4096


@dataclass(frozen=True)
class Series(Media):
    """Numbers with white space between: bytes, a ``data:`` URL, an address, or the path of a file."""

    kind: ClassVar[str] = "series"


def widen(part: Series, facts: ModelFacts, budget: MediaBudget) -> tuple[int, str, list[float]]:
    """Positions, a digest of all that the encoder sees, and what it sees: numbers from 0 to 1, whole patches."""
    words = read_bytes(part, limit=2**20).split(maxsplit=MOST)
    try:
        values = [float(word) for word in words]
    except ValueError:
        raise MediaError("the series holds a word that is no number") from None
    if not 2 <= len(values) <= MOST or not all(map(math.isfinite, values)):
        raise MediaError(f"the series holds {len(values)} numbers; allowed: 2 to {MOST}, finite ones")
    low, span = min(values), (max(values) - min(values)) or 1.0
    scaled = [(value - low) / span for value in values]
    scaled += [scaled[-1]] * (-len(scaled) % PATCH)
    return len(scaled) // PATCH, hashlib.sha256(repr(scaled).encode()).hexdigest(), scaled


class Tower:
    """One linear layer over each patch, from the checkpoint's ``series_tower.weight`` [hidden, 8]."""

    def __init__(self, facts: ModelFacts, tensors: Mapping[str, Any], device: str) -> None:
        self.weight = tensors["series_tower.weight"].float().to(device)

    def encode(self, items: Sequence[list[float]]) -> list[Embeddings]:
        return [Embeddings(self.weight.new_tensor(item).view(-1, PATCH) @ self.weight.T) for item in items]


@hookimpl
def register_backends() -> list[Backend]:
    """Offer models whose config.json says ``model_type: qwen2_series``."""
    kinds, pad = frozenset({"text", "series"}), frozenset({"<|series_pad|>"})
    names = {"families": ("qwen2_series",), "parts": (Series,), "placeholders": pad}
    return [Backend("series", kinds, widen=widen, encoder=Tower, **names)]
