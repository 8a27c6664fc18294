"""Tools that an agent can be armed with by name: ``listen`` and ``transcribe``."""

from __future__ import annotations

from typing import cast

from qwen_agent_kit import Audio, ToolContext, tool
from qwen_agent_kit_audio.items import Hearing
from qwen_agent_kit_audio.windows import Heard, join, windows

__all__ = ["listen", "transcribe"]

TRANSCRIBE = "Write down exactly what is said, and nothing else."


@tool
def listen(audio: str, question: str, context: ToolContext) -> str:
    """Ask a model that hears about a clip of the conversation.

    Args:
        audio: Which clip, as it is called in the conversation.
        question: What to find out.
    """
    return context.ask([context.media(audio), question], kinds=("text", "audio"))


@tool
def transcribe(audio: str, context: ToolContext) -> dict[str, object]:
    """Write down what is said in a clip of the conversation, long ones in windows.

    Args:
        audio: Which clip, as it is called in the conversation.
    """
    part = cast("Audio", context.media(audio))
    hearing = Hearing()
    try:
        duration = hearing.duration(part)
    finally:
        hearing.workers.close()
    heard = [
        Heard(start, end, context.ask([window, TRANSCRIBE], kinds=("text", "audio")))
        for start, end, window in windows(part, duration)
        if not context.cancelled
    ]
    return {"text": join(heard), "windows": [[one.start, one.end, one.text] for one in heard]}
