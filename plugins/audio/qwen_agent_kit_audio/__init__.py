"""Audio backend: sound for Qwen2-Audio and Qwen2.5-Omni."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qwen_agent_kit import Backend, hookimpl
from qwen_agent_kit_audio.windows import Heard, join, windows

if TYPE_CHECKING:
    from qwen_agent_kit.tools import Tool

__all__ = ["Heard", "join", "register_backends", "register_tools", "windows"]

QAK_API = 1


@hookimpl
def register_backends() -> list[Backend]:
    """Offer the checkpoints that hear."""
    from qwen_agent_kit_audio.items import Hearing
    from qwen_agent_kit_audio.tower import tower

    return [
        Backend(
            name="audio",
            accepts=frozenset({"text", "audio"}),
            families=("qwen2_audio", "qwen2_5_omni"),
            default="Qwen/Qwen2-Audio-7B-Instruct",
            widen=Hearing().widen,
            encoder=tower,
        )
    ]


@hookimpl
def register_tools() -> list[Tool]:
    """Offer ``listen`` and ``transcribe``."""
    from qwen_agent_kit_audio.tools import listen, transcribe

    return [listen, transcribe]
