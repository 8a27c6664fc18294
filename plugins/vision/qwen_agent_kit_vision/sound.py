"""A video whose sound is heard: chunks of its pictures and chunks of its sound by turns (Qwen2.5-Omni)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from qwen_agent_kit.backends import Run, Share, Slice
from qwen_agent_kit_vision.positions import grid_positions

if TYPE_CHECKING:
    from qwen_agent_kit.messages import Audio
    from qwen_agent_kit_vision.items import Item

__all__ = ["with_sound"]

PICTURES, SOUND, BEGIN, END = "<|VIDEO|>", "<|AUDIO|>", "<|audio_bos|>", "<|audio_eos|>"


def with_sound(item: Item, digest: str, heard: Audio, config: Mapping[str, Any]) -> list[Run | Share]:
    """What is seen in two seconds, then what is heard in them, and so on; what is left of either comes last.

    Args:
        item: The video.
        digest: Of it and its options.
        heard: Its sound, for the backend that takes such.
        config: The model's.
    """
    pace = config.get("position_id_per_seconds", 25)
    chunk = int(pace * config.get("seconds_per_chunk", 2))
    times = grid_positions(item.grid, item.merge, item.interval, item.pace)[0].tolist()
    parts: list[Run | Share] = []
    cuts = list(_chunks(times, chunk))
    for number, (start, stop) in enumerate(cuts):
        before = () if number else (BEGIN,)
        parts.append(
            Run(stop - start, f"{digest}-{start}-{stop}", Slice(item, start, stop), before=before, token=PICTURES)
        )
        last = number == len(cuts) - 1
        until = None if last else (number + 1) * chunk
        parts.append(Share(heard, number * chunk, until, after=(END,) if last else (), token=SOUND))
    return parts


def _chunks(times: list[int], chunk: int) -> Iterator[tuple[int, int]]:
    """Where a list of rising times is cut: at the first one past each multiple of ``chunk``, as transformers does."""
    start = number = 0
    for place, time in enumerate(times):
        if time >= (number + 1) * chunk:
            yield start, place
            start, number = place, number + 1
    yield start, len(times)
