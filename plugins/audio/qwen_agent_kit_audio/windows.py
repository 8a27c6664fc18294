"""Long sound in windows that overlap, and what was heard in each joined again; microphones as an iterator."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from qwen_agent_kit import Audio
from qwen_agent_kit.errors import UsageError

if TYPE_CHECKING:
    import numpy as np

__all__ = ["Heard", "join", "stream", "windows"]

SECONDS, OVERLAP = 30.0, 2.0


@dataclass(frozen=True, slots=True)
class Heard:
    """What was heard between two times, in seconds."""

    start: float
    end: float
    text: str


def windows(
    audio: Audio, duration: float, *, seconds: float = SECONDS, overlap: float = OVERLAP
) -> Iterator[tuple[float, float, Audio]]:
    """Start, end and part of each window; the last one ends with the clip, and none lies wholly in the one before.

    Args:
        audio: The whole clip.
        duration: Its length in seconds.
        seconds: Of a window, at most 30.
        overlap: That two neighbours share.

    Raises:
        UsageError: For lengths that lead nowhere.
    """
    if not 0 < seconds <= SECONDS or not 0 <= overlap < seconds:
        raise UsageError(f"`seconds` is {seconds!r} and `overlap` {overlap!r}; allowed: 0 <= overlap < seconds <= 30")
    start = 0.0
    while True:
        end = min(start + seconds, duration)
        options = {**audio.options, "start": start, "seconds": min(seconds, end - start)}
        yield start, end, replace(audio, options=options)
        if end >= duration:
            return
        start += seconds - overlap


def join(heard: Sequence[Heard]) -> str:
    """One text; words that two neighbours both heard in their overlap are written once."""
    words: list[str] = []
    for index, one in enumerate(heard):
        found = one.text.split()
        if index and one.start < heard[index - 1].end:
            found = found[_shared(words, found) :]
        words += found
    return " ".join(words)


def _shared(before: Sequence[str], after: Sequence[str], most: int = 40) -> int:
    """How many words ``after`` begins with that ``before`` ends with."""
    a, b = ([_bare(word) for word in words] for words in (before[-most:], after[:most]))
    return next((n for n in range(min(len(a), len(b)), 0, -1) if a[-n:] == b[:n]), 0)


def _bare(word: str) -> str:
    return re.sub(r"\W", "", word).casefold()


def stream(
    blocks: Iterable[np.ndarray], rate: int = 16_000, *, seconds: float = 10.0, overlap: float = 1.0
) -> Iterator[tuple[float, float, Audio]]:
    """Windows of a microphone's blocks (float32 [n]) as they fill up; the rest at the end.

    Raises:
        UsageError: For lengths that lead nowhere.
    """
    import numpy as np

    size, keep = int(seconds * rate), int(overlap * rate)
    if size < 1 or not 0 <= keep < size or seconds > SECONDS:
        raise UsageError(f"`seconds` is {seconds!r} and `overlap` {overlap!r}; allowed: 0 <= overlap < seconds <= 30")
    held, at, fresh = np.zeros(0, dtype=np.float32), 0, 0
    for block in blocks:
        held = np.concatenate([held, np.asarray(block, dtype=np.float32).ravel()])
        fresh += np.size(block)
        while len(held) >= size:
            yield at / rate, (at + size) / rate, Audio(held[:size], options={"rate": rate})
            held, at = held[size - keep :], at + size - keep
            fresh = len(held) - keep
    if fresh > 0 and len(held):
        yield at / rate, (at + len(held)) / rate, Audio(held, options={"rate": rate})
