"""How many pixels and frames a model gets to see: the functions of qwen_vl_utils and of the model's own processor."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from qwen_agent_kit import foreign
from qwen_agent_kit.errors import MediaError

__all__ = ["OMNI", "frame_range", "linear_indices", "processors", "smart_nframes", "smart_resize"]


def smart_resize(height: int, width: int, factor: int, min_pixels: int, max_pixels: int) -> tuple[int, int]:
    """Height and width: multiples of ``factor``, within the two bounds, near the aspect ratio.

    Raises:
        ValueError: Where one side is more than 200 times the other.
    """
    found: tuple[int, int] = _utils().smart_resize(height, width, factor, min_pixels, max_pixels)
    return found


def smart_nframes(options: Mapping[str, Any], total: int, fps: float) -> int:
    """How many frames are taken: ``nframes``, or ``fps`` (2 a second) within ``min_frames`` and ``max_frames``.

    Raises:
        ValueError: Where it would be under 2 or above ``total``.
        AssertionError: For both ``fps`` and ``nframes``.
    """
    found: int = _utils().smart_nframes(dict(options), total, fps)
    return found


def frame_range(options: Mapping[str, Any], total: int, fps: float) -> tuple[int, int, int]:
    """The first and last frame between ``video_start`` and ``video_end`` (seconds), and how many these are.

    Raises:
        ValueError: Where they are out of order or outside.
    """
    found: tuple[int, int, int] = _utils().calculate_video_frame_range(dict(options), total, fps)
    return found


def linear_indices(first: int, last: int, count: int) -> list[int]:
    """``count`` frames from ``first`` to ``last``, evenly: ``torch.linspace(first, last, count).round()``."""
    import torch

    return [int(i) for i in torch.linspace(first, last, count).round().long().tolist()]


@lru_cache(maxsize=1)
def _utils() -> Any:
    import importlib

    name = foreign.qwen_vl_utils().__name__
    return importlib.import_module(f"{name}.vision_process")


def processors(model_type: str, images: Mapping[str, Any], video: Mapping[str, Any]) -> tuple[Any, Any]:
    """Transformers' image and video processor for a family, as the model's files set them.

    Raises:
        MediaError: Where the files ask for what the processors do not take.
    """
    transformers = foreign.transformers()
    moving = "Qwen3VLVideoProcessor" if model_type == "qwen3_vl" else "Qwen2VLVideoProcessor"
    plain = {} if model_type != "qwen3_vl" else _QWEN3
    last = {} if model_type != OMNI else {"size": dict(_OMNI_VIDEO)}
    try:
        image = transformers.Qwen2VLImageProcessor.from_dict({**plain, **_known(images)})
        clip = getattr(transformers, moving).from_dict({**plain, **_known(video or _for_video(images)), **last})
    except (TypeError, ValueError, KeyError) as error:
        raise MediaError(f"the model's preprocessor_config.json is refused: {str(error)[:200]}") from error
    return image, clip


OMNI = "qwen2_5_omni_thinker"
_OMNI_VIDEO = {"shortest_edge": 128 * 28 * 28, "longest_edge": 768 * 28 * 28}
"""Qwen2_5OmniProcessor's bounds of a frame, which go over those of the model's files."""

_QWEN3 = {
    "patch_size": 16,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
}


def _known(given: Mapping[str, Any]) -> dict[str, Any]:
    ours = ("processor_class", "image_processor_type", "video_processor_type", "feature_extractor_type", "auto_map")
    return {key: value for key, value in given.items() if key not in ours}


def _for_video(images: Mapping[str, Any]) -> dict[str, Any]:
    """Old checkpoints have one file for both; its pixel bounds are those of images."""
    return {key: value for key, value in images.items() if key not in ("size", "min_pixels", "max_pixels")}
