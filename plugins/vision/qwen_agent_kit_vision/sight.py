"""Pixels of pictures and frames of videos for programs of one's own, decoded in a bounded child as the models' are."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from qwen_agent_kit import Image, Video
from qwen_agent_kit.errors import UsageError
from qwen_agent_kit_vision.items import Vision
from qwen_agent_kit_vision.numbers import linear_indices

if TYPE_CHECKING:
    import numpy as np

__all__ = ["frames", "pixels"]


def pixels(image: Image) -> np.ndarray:
    """uint8 [h, w, 3] of a picture or a page of a PDF at full resolution, upright.

    Raises:
        MediaError: Where it is refused.
    """
    with _vision() as vision:
        return vision.pixels(image)


def frames(video: Video, count: int) -> list[tuple[float, Image]]:
    """Pictures from a video, evenly over its length, each with its time in seconds.

    Raises:
        UsageError: For a count that is none.
        MediaError: Where the video is refused, or has too many pixels for so many frames.
    """
    if not isinstance(count, int) or isinstance(count, bool) or count < 1:
        raise UsageError(f"`count` is {count!r}; allowed: a whole number from 1 on")
    with _vision() as vision:
        facts = vision.probe(video)
        chosen = linear_indices(0, facts["frames"] - 1, min(count, facts["frames"], vision.limits.frames))
        array = vision.frames(video, chosen)
    return [(number / facts["fps"], Image(frame)) for number, frame in zip(chosen, array, strict=True)]


@contextmanager
def _vision() -> Iterator[Vision]:
    vision = Vision()
    try:
        yield vision
    finally:
        vision.workers.close()
