"""Tools that an agent can be armed with by name: ``zoom`` and ``look``."""

from __future__ import annotations

import io

from qwen_agent_kit import Image, ToolContext, tool
from qwen_agent_kit.errors import UsageError
from qwen_agent_kit_vision.items import Vision

__all__ = ["look", "zoom"]


@tool
def zoom(image: str, left: float, top: float, right: float, bottom: float, context: ToolContext) -> Image:
    """Cut a part out of an image of the conversation, at its full resolution.

    Args:
        image: Which image, as it is called in the conversation.
        left: Left side of the part, from 0 to 1 across the image.
        top: Upper side of the part, from 0 to 1 down the image.
        right: Right side, from 0 to 1.
        bottom: Lower side, from 0 to 1.
    """
    from PIL import Image as Pillow

    if not (0 <= left < right <= 1 and 0 <= top < bottom <= 1):
        raise UsageError("the part is empty or outside; allowed: 0 <= left < right <= 1 and 0 <= top < bottom <= 1")
    vision = Vision()
    try:
        whole = Pillow.fromarray(vision.pixels(context.media(image)))
    finally:
        vision.workers.close()
    width, height = whole.size
    box = (
        int(left * width),
        int(top * height),
        max(int(left * width) + 1, round(right * width)),
        max(int(top * height) + 1, round(bottom * height)),
    )
    sink = io.BytesIO()
    whole.crop(box).save(sink, format="PNG")
    return Image(sink.getvalue())


@tool
def look(image: str, question: str, context: ToolContext) -> str:
    """Ask a model that sees about an image of the conversation.

    Args:
        image: Which image, as it is called in the conversation.
        question: What to find out.
    """
    return context.ask([context.media(image), question], kinds=("text", "image"))
