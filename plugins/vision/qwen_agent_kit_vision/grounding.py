"""Boxes and points in a model's answer, as pixels of the original image.

Qwen2.5-VL answers in pixels of the image as it saw it (resized); Qwen2-VL and Qwen3-VL in thousandths of its sides.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

__all__ = ["Box", "Point", "Scale", "draw", "parse_marks"]

Scale = Literal["seen", "thousandths"]


@dataclass(frozen=True, slots=True)
class Box:
    """A rectangle in pixels, left and top inside, right and bottom not."""

    left: float
    top: float
    right: float
    bottom: float
    label: str = ""


@dataclass(frozen=True, slots=True)
class Point:
    """A place in pixels."""

    x: float
    y: float
    label: str = ""


_ENTRY = re.compile(r"\{[^{}]*\}")
_TAGGED = re.compile(
    r"(?:<\|object_ref_start\|>(?P<label>.*?)<\|object_ref_end\|>)?<\|box_start\|>(?P<body>[^<]*)<\|box_end\|>",
    re.DOTALL,
)
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?")
MOST = 1000


def parse_marks(
    text: str, size: tuple[int, int], *, scale: Scale = "seen", seen: tuple[int, int] | None = None
) -> list[Box | Point]:
    """What an answer points at, in its order; what is not understood is left out.

    Args:
        text: JSON with ``bbox_2d`` or ``point_2d`` (cut or fenced too), or Qwen2-VL's ``<|box_start|>(x,y),(x,y)``.
        size: Width and height of the original image.
        scale: ``seen`` for pixels of the resized image (Qwen2.5-VL), ``thousandths`` (Qwen2-VL, Qwen3-VL).
        seen: Width and height as the model saw it; needed for ``seen``.
    """
    width, height = (1000, 1000) if scale == "thousandths" else (seen or size)
    fx, fy = size[0] / width, size[1] / height
    found: list[Box | Point] = []
    for numbers, label in _raw(text)[:MOST]:
        if len(numbers) == 4:
            x0, x1 = sorted((numbers[0] * fx, numbers[2] * fx))
            y0, y1 = sorted((numbers[1] * fy, numbers[3] * fy))
            box = Box(_in(x0, size[0]), _in(y0, size[1]), _in(x1, size[0]), _in(y1, size[1]), label)
            if box.right > box.left and box.bottom > box.top:
                found.append(box)
        elif len(numbers) == 2 and 0 <= numbers[0] <= width and 0 <= numbers[1] <= height:
            found.append(Point(_in(numbers[0] * fx, size[0]), _in(numbers[1] * fy, size[1]), label))
    return found


def _in(value: float, most: int) -> float:
    return min(max(value, 0.0), float(most))


def _raw(text: str) -> list[tuple[list[float], str]]:
    marks: list[tuple[int, list[float], str]] = []
    for match in _ENTRY.finditer(text):
        try:
            entry = json.loads(match[0])
        except (ValueError, RecursionError):
            continue
        numbers = next((entry[k] for k in ("bbox_2d", "bbox", "point_2d", "point") if k in entry), None)
        if isinstance(numbers, list) and _real(numbers):
            marks.append((match.start(), [float(n) for n in numbers], str(entry.get("label", ""))[:200]))
    for match in _TAGGED.finditer(text):
        numbers = [float(n) for n in _NUMBER.findall(match["body"][:200])]
        marks.append((match.start(), numbers, (match["label"] or "").strip()[:200]))
    return [(numbers, label) for _, numbers, label in sorted(marks, key=lambda m: m[0])]


def _real(numbers: Any) -> bool:
    return (
        isinstance(numbers, list)
        and len(numbers) in (2, 4)
        and all(isinstance(n, int | float) and not isinstance(n, bool) and abs(n) < 1e7 for n in numbers)
    )


def draw(image: Any, marks: Sequence[Box | Point], *, colour: str = "red") -> Any:
    """A copy of a PIL image or uint8 array with the marks on it, as a PIL image."""
    from PIL import Image, ImageDraw

    drawn = (
        Image.fromarray(image)
        if hasattr(image, "__array_interface__") and not isinstance(image, Image.Image)
        else image
    ).convert("RGB")
    pen = ImageDraw.Draw(drawn)
    line = max(2, min(drawn.size) // 200)
    for mark in marks:
        if isinstance(mark, Box):
            # Pillow's rectangle includes its last column and row.
            pen.rectangle(
                (mark.left, mark.top, max(mark.left, mark.right - 1), max(mark.top, mark.bottom - 1)),
                outline=colour,
                width=line,
            )
            place = (mark.left + line + 1, mark.top + line + 1)
        else:
            pen.ellipse((mark.x - 2 * line, mark.y - 2 * line, mark.x + 2 * line, mark.y + 2 * line), fill=colour)
            place = (mark.x + 3 * line, mark.y)
        if mark.label:
            pen.text(place, mark.label, fill=colour)
    return drawn
