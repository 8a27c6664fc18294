"""Which line of a document answers a question, and where it stands: the page with a box around the line.

    python examples/documents.py out.png [report.pdf text [model]]

Lines are found by the white between them; a model reads each. A large model gives boxes itself: see boxes.py.
"""

import io
import sys

import numpy as np
from PIL import Image as Pillow
from PIL import ImageDraw, ImageFont
from qwen_agent_kit_vision import Box, draw, pixels

from qwen_agent_kit import Agent, Image


def report() -> bytes:
    """A page of a PDF with three numbers."""
    page, sink = Pillow.new("RGB", (320, 300), "white"), io.BytesIO()
    for row, (number, ink) in enumerate((("41", "#1c1c1c"), ("907", "#2d55d7"), ("65", "#d72828"))):
        for place, digit in enumerate(number):  # a little apart, as the small model knows them
            at = (60 + 40 * place, 50 + 100 * row)
            ImageDraw.Draw(page).text(at, digit, ink, ImageFont.load_default(56), anchor="lm")
    page.save(sink, format="PDF")
    return sink.getvalue()


def lines(page: np.ndarray) -> list[tuple[int, int]]:
    """Top and bottom of each line of ink, in pixels."""
    ink = (page.min(axis=(1, 2)) < 200).astype(int)
    edges = np.flatnonzero(np.diff(np.pad(ink, 1)))
    return [(int(top), int(bottom)) for top, bottom in zip(edges[::2], edges[1::2], strict=True)]


def alone(line: np.ndarray) -> np.ndarray:
    """The line's ink in the middle of a white square, as a small model likes it."""
    across = np.flatnonzero(line.min(axis=(0, 2)) < 200)
    line = line[:, across[0] : across[-1] + 1]
    height, width = line.shape[:2]
    side = max(5 * height, width * 5 // 4)
    top, left = (side - height) // 2, (side - width) // 2
    return np.pad(line, ((top, top), (left, left), (0, 0)), constant_values=255)


def main() -> None:
    source, wanted = (sys.argv[2], sys.argv[3]) if len(sys.argv) > 3 else (report(), "907")
    agent = Agent(sys.argv[4] if len(sys.argv) > 4 else None)
    page, marks = pixels(Image(source, options={"scale": 1.0})), []
    for top, bottom in lines(page):
        said = str(agent.run(["What number is written?", Image(alone(page[top:bottom]))]).output)
        print(f"{top} to {bottom}: {said}")
        marks += [Box(4, top - 4, page.shape[1] - 4, bottom + 4, said)] if wanted in said else []
    draw(page, marks).save(sys.argv[1] if len(sys.argv) > 1 else "page.png")


if __name__ == "__main__":
    main()
