"""Ask about a picture: three questions about a bar chart, offline, on a model of 3 million parameters.

python examples/see.py [picture.png question]
"""

from __future__ import annotations

import sys

from PIL import Image, ImageDraw

from qwen_agent_kit import Agent


def chart() -> Image.Image:
    """Bars of 2, 5 and 3 over lines at each whole number."""
    drawn = Image.new("RGB", (224, 224), "white")
    pen = ImageDraw.Draw(drawn)
    for value in range(1, 6):
        pen.line((20, 208 - 38 * value, 212, 208 - 38 * value), fill=(185, 185, 185))
    for left, colour, value in ((32, (45, 85, 215), 2), (96, (215, 40, 40), 5), (160, (40, 160, 60), 3)):
        pen.rectangle((left, 208 - 38 * value, left + 40, 208), fill=colour)
    pen.line((20, 16, 20, 208, 212, 208), fill=(60, 60, 60), width=4)
    return drawn


def main() -> None:
    agent = Agent()  # no model is named: the small one that sees answers
    if len(sys.argv) == 3:
        print(agent.run(sys.argv[2], images=sys.argv[1]).output)
        return
    picture = chart()
    for question in ("How many bars are there?", "Which bar is the tallest?", "Which bar is the shortest?"):
        result = agent.run(question, images=[picture])
        print(f"{question} {result.output}")


if __name__ == "__main__":
    main()
