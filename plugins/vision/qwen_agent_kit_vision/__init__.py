"""Vision backend: images, video and PDF pages for Qwen2-VL, Qwen2.5-VL, Qwen3-VL and what Qwen2.5-Omni sees."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qwen_agent_kit import Backend, hookimpl
from qwen_agent_kit_vision.grounding import Box, Point, draw, parse_marks

if TYPE_CHECKING:
    from qwen_agent_kit.tools import Tool
    from qwen_agent_kit_vision.sight import frames, pixels

__all__ = ["Box", "Point", "draw", "frames", "parse_marks", "pixels", "register_backends", "register_tools"]

QAK_API = 1


def __getattr__(name: str) -> object:
    """``frames`` and ``pixels``, which bring the decoder, on first use."""
    if name in ("frames", "pixels"):
        from qwen_agent_kit_vision import sight

        return getattr(sight, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


@hookimpl
def register_backends() -> list[Backend]:
    """Offer the checkpoints that see."""
    from qwen_agent_kit_vision.items import Vision
    from qwen_agent_kit_vision.positions import positions
    from qwen_agent_kit_vision.tower import Tower

    return [
        Backend(
            name="vision",
            accepts=frozenset({"text", "image", "video"}),
            families=("qwen2_vl", "qwen2_5_vl", "qwen2_5_omni", "qwen3_vl"),
            default="Qwen/Qwen2.5-VL-3B-Instruct",
            widen=Vision().widen,
            positions=positions,
            encoder=Tower,
        )
    ]


@hookimpl
def register_tools() -> list[Tool]:
    """Offer ``zoom`` and ``look``."""
    from qwen_agent_kit_vision.tools import look, zoom

    return [zoom, look]
