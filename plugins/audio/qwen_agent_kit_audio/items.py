"""From a part to what the tower takes: bytes, samples, and how many ids that is."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from qwen_agent_kit.backends import MediaBudget, ModelFacts
from qwen_agent_kit.errors import MediaError
from qwen_agent_kit.media import MediaLimits, Workers, digest_of, read_bytes
from qwen_agent_kit.messages import Media

if TYPE_CHECKING:
    import numpy as np

__all__ = ["OMNI", "Hearing", "Item", "mel_frames", "tokens"]

OPTIONS = frozenset({"start", "seconds", "rate"})
HOP = 160
OMNI = "qwen2_5_omni_thinker"
WINDOW = 30.0
OMNI_WINDOW = 300.0
"""Seconds that a tower hears at once, at most."""


def mel_frames(samples: int) -> int:
    """How many frames of the spectrogram a clip fills."""
    return math.ceil(samples / HOP)


def tokens(frames: int) -> int:
    """How many ids they take: a convolution of stride 2, and a pool of 2 (both families' processors)."""
    return max(0, ((frames - 1) // 2 + 1 - 2) // 2 + 1)


@dataclass(frozen=True, slots=True)
class Item:
    """A clip: float32 [n] at 16 kHz, and how many ids it takes."""

    samples: np.ndarray
    length: int


class Hearing:
    """Widens clips. Thread-safe.

    Args:
        limits: Of each clip.
    """

    def __init__(self, limits: MediaLimits | None = None) -> None:
        self.limits = limits or MediaLimits()
        self.workers = Workers("qwen_agent_kit_audio.decode:decode", limits=self.limits)

    def widen(self, part: Media, facts: ModelFacts, budget: MediaBudget) -> tuple[int, str, Item]:
        """The number of ids, a digest of the content and of the window of it, and the item.

        Raises:
            MediaError: Where the source, the file or an option is refused.
        """
        options = _checked(part)
        data = read_bytes(part, limit=self.limits.size)
        window = _window(facts)
        samples = self.samples(part, data, min(window, budget.seconds or window))
        length = tokens(mel_frames(len(samples)))
        if length < 1:
            raise MediaError(f"the audio lasts {len(samples) / 16_000:.3f} s; allowed: 0.03 s or more")
        told = json.dumps(["audio", options], sort_keys=True)
        digest = hashlib.sha256(f"{digest_of(data)} {told}".encode()).hexdigest()
        return length, digest, Item(samples, length)

    def samples(self, part: Media, data: bytes, most: float) -> np.ndarray:
        """float32 [n] at 16 kHz of a part's window.

        Raises:
            MediaError: Where the file is refused, or the window is longer than ``most`` seconds.
        """
        if not data:
            raise MediaError("the audio is empty")
        start, length = part.options.get("start", 0.0), part.options.get("seconds")
        options = {"what": "clip", "seconds": self.limits.seconds, "start": start, "length": length, "most": most}
        return self.workers.decode(data, "audio", options).arrays[0]

    def duration(self, part: Media) -> float:
        """Seconds of the whole file.

        Raises:
            MediaError: Where it is refused.
        """
        data = read_bytes(part, limit=self.limits.size)
        options = {"what": "probe", "seconds": self.limits.seconds}
        return float(self.workers.decode(data, "audio", options).facts["seconds"])


def _window(facts: ModelFacts) -> float:
    """Seconds that the model hears at once, as its files say; the family's where they say nothing that can be."""
    most = OMNI_WINDOW if facts.model_type == OMNI else WINDOW
    chunk = facts.preprocessor.get("chunk_length", most)
    return float(chunk) if isinstance(chunk, int | float) and 0 < chunk <= most else most


def _checked(part: Media) -> dict[str, Any]:
    for name, value in part.options.items():
        if name not in OPTIONS:
            raise MediaError(f"the audio has an option {name!r}; allowed: {', '.join(sorted(OPTIONS))}")
        real = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        least = 1 if name == "rate" else 0
        if not real or not least <= value <= 10**7 or (name == "seconds" and value == 0):
            raise MediaError(f"`{name}` of the audio is {value!r}; allowed: a number from {least} on")
    return {key: part.options[key] for key in sorted(part.options)}
