"""A tool draws a plot, and a model that sees reads it.

    python examples/plot.py [model]

With a model that calls tools and sees, the tool returns the picture and the next step sees it. The small ones here do
one of the two each: the one that writes calls the tool, and the tool asks the one that sees.
"""

from __future__ import annotations

import sys

from PIL import Image as Pillow
from PIL import ImageDraw

from qwen_agent_kit import Agent, Image, Text, ToolContext, tool

SALES = {(45, 85, 215): 2, (215, 40, 40): 5, (40, 160, 60): 3}  # thousands, by the colour of the shop


def plot() -> Image:
    """The sales as bars over lines at each thousand."""
    drawn = Pillow.new("RGB", (224, 224), "white")
    pen = ImageDraw.Draw(drawn)
    for value in range(1, 6):
        pen.line((20, 208 - 38 * value, 212, 208 - 38 * value), fill=(185, 185, 185))
    for left, (colour, value) in zip((32, 96, 160), SALES.items(), strict=True):
        pen.rectangle((left, 208 - 38 * value, left + 40, 208), fill=colour)
    pen.line((20, 16, 20, 208, 212, 208), fill=(60, 60, 60), width=4)
    return Image(drawn)


@tool
def plot_sales() -> Image:
    """Draw the sales of the three shops as bars."""
    return plot()


@tool
def read_plot(context: ToolContext) -> str:
    """Draw the sales of the three shops as bars and say which bar is the tallest."""
    answer = context.ask([Text("Which bar is the tallest?"), plot()], kinds=("text", "image"))
    return f"The tallest bar is {answer}."


def main() -> None:
    if len(sys.argv) > 1:
        print(Agent(sys.argv[1], tools=[plot_sales]).run("Plot the sales. Which shop sold most?").output)
        return
    result = Agent(tools=[read_plot], tool_choice="required").run("Read the plot of the sales. Which bar is tallest?")
    print(f"tool: {result.steps[0].results[0].text}\nanswer: {result.output}")


if __name__ == "__main__":
    main()
