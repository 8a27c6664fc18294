"""Scenes that a program draws and knows everything about: shapes, printed text, bar charts.

A scene is laid out in units of the picture the model sees (112 x 112 pixels or the same area in another aspect), drawn
larger, and scaled down with the filter of the image processor, so its edges look like those of a photographed page.
Everything random comes from one ``random.Random``; which of two worlds a scene belongs to is the argument ``held_out``:
the training world never shows a held-out triple of colour, shape and cell, a held-out word or a held-out font.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, field
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

COLOURS = {
    "red": (215, 40, 40),
    "green": (40, 160, 60),
    "blue": (45, 85, 215),
    "yellow": (240, 205, 40),
    "purple": (135, 55, 170),
    "orange": (245, 135, 30),
    "black": (28, 28, 28),
}
SHAPES = ("circle", "square", "triangle", "star", "cross", "diamond")
CELLS = ("top left", "top", "top right", "left", "centre", "right", "bottom left", "bottom", "bottom right")
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
DIGITS = "0123456789"
SIZES = (
    (112, 112),
    (140, 84),
    (84, 140),
    (112, 84),
    (84, 112),
)  # width, height: what smart_resize makes of common aspects
HIGHEST = 5  # a bar's largest value

_BACKGROUNDS = ((255, 255, 255), (244, 244, 240), (225, 230, 240), (235, 240, 225), (250, 235, 225), (205, 205, 210))
_TRAIN_FONTS = (
    "DejaVuSans DejaVuSans-Bold DejaVuSansCondensed DejaVuSerif DejaVuSerif-Bold DejaVuSansMono DejaVuSansMono-Bold "
    "LiberationSans-Regular LiberationSans-Bold LiberationSerif-Regular LiberationSerif-Bold LiberationMono-Regular "
    "LiberationMono-Bold Lato-Regular Lato-Bold Lato-Medium FreeSans FreeSansBold FreeMonoBold Quicksand-Medium "
    "Quicksand-Bold RobotoCondensed-Regular RobotoCondensed-Bold LiberationSansNarrow-Bold DejaVuSerifCondensed "
    "DejaVuSansCondensed-Bold Lato-Semibold Lato-Heavy Lato-Italic LiberationSans-Italic LiberationSerif-Italic "
    "FreeSansOblique FreeMono Comfortaa-Regular Comfortaa-Bold Quicksand-Regular DejaVuSans-Oblique"
).split()
_HELD_OUT_FONTS = (
    "OpenSans-Regular OpenSans-Semibold OpenSans-Bold Cantarell-Regular Cantarell-Bold FreeSerif FreeSerifBold "
    "Roboto-Regular Roboto-Medium Roboto-Bold"
).split()
HELD_OUT_WORDS = (
    "ACE AXE BAG BED BIG BOX BUS CAKE CAR CAT CITY CLOUD COW CUP DOG DOOR DUCK EAR EGG EXIT EYE FISH FLAG FOG FOX FROG "
    "GAME GOLD GYM HAT HEN HOME HOUSE ICE INK JAM JAZZ JET JOB JUICE KEY KING KITE LAMP LEAF LION LOVE MAP MILK MOON "
    "MUG NEST NIGHT NOSE OAK OPEN OWL OXEN PEN PIG PLUM PUSH QUEEN QUIZ RAIN RED RING ROAD SALE SHIP SHOP SIX SNOW "
    "STAR STOP SUN TAXI TEA TOY TREE UP URN VAN VASE VOTE WALK WAX WEB WIND WOLF YAK YES ZEBRA ZERO ZOO"
).split()


def is_held_out(colour: str, shape: str, cell: int) -> bool:
    """Whether training never shows this colour, shape and cell together (one triple in eight, every pair is seen)."""
    return (5 * list(COLOURS).index(colour) + 3 * SHAPES.index(shape) + 7 * cell) % 8 == 0


@dataclass(slots=True)
class Thing:
    """One thing in a scene: a shape, a bar or a line of text; where it is, in pixels of the model's picture."""

    shape: str  # of SHAPES, "bar", "word" or "number"
    colour: str
    x: float
    y: float
    size: float
    cell: int = -1
    value: int = 0  # of a bar
    text: str = ""
    width: float = 0.0  # of a bar
    letters: list[tuple[float, float, str]] = field(default_factory=list)  # centres of a text's characters


@dataclass(slots=True)
class Scene:
    """What is in the picture, and the picture."""

    kind: str  # "shapes", "text" or "chart"
    width: int
    height: int
    things: list[Thing]
    image: Image.Image


def draw_scene(
    rng: random.Random,
    *,
    held_out: bool = False,
    kind: str | None = None,
    size: tuple[int, int] | None = None,
    scale: int | None = None,
) -> Scene:
    """One scene.

    Args:
        rng: Where everything random comes from.
        held_out: Draw from the held-out world.
        kind: "shapes", "text" or "chart"; None draws it.
        size: The width and height that the model sees; None draws them, most of them square.
        scale: Leave the picture this many times larger than the model sees it; None gives the model's size.
    """
    kind = kind or rng.choices(("shapes", "text", "chart"), (5, 3, 2) if held_out else (5, 8, 2))[0]
    width, height = size or (SIZES[0] if rng.random() < 0.7 else rng.choice(SIZES[1:]))
    drawn = scale or rng.choice((2, 3))
    background = tuple(min(255, max(0, c + rng.randint(-8, 8))) for c in rng.choice(_BACKGROUNDS))
    image = Image.new("RGB", (width * drawn, height * drawn), background)
    pen = ImageDraw.Draw(image)
    make = {"shapes": _shapes, "text": _text, "chart": _chart}[kind]
    things = make(rng, pen, width, height, drawn, held_out)
    if scale is None:
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    return Scene(kind, width, height, things, image)


def _ink(rng: random.Random, colour: str) -> tuple[int, ...]:
    return tuple(min(255, max(0, c + rng.randint(-14, 14))) for c in COLOURS[colour])


# Shapes


def _shapes(rng: random.Random, pen: Any, width: int, height: int, scale: int, held_out: bool) -> list[Thing]:
    count = rng.choices(range(1, 7), (2, 5, 5, 4, 2, 2))[0]
    cells = rng.sample(range(9), count)
    while True:
        looks = _looks(rng, cells, held_out)
        if any(is_held_out(*look, cell) for look, cell in zip(looks, cells, strict=True)) == held_out:
            break
    things = []
    for (colour, shape), cell in zip(looks, cells, strict=True):
        room = min(width, height) / 3
        size = rng.uniform(0.52, 0.86) * room
        slack_x, slack_y = (width / 3 - size) / 2 - 1, (height / 3 - size) / 2 - 1
        x = (cell % 3 + 0.5) * width / 3 + rng.uniform(-slack_x, slack_x)
        y = (cell // 3 + 0.5) * height / 3 + rng.uniform(-slack_y, slack_y)
        thing = Thing(shape, colour, x, y, size, cell)
        _draw_shape(rng, pen, thing, scale)
        things.append(thing)
    return things


def _looks(rng: random.Random, cells: list[int], held_out: bool) -> list[tuple[str, str]]:
    """A colour and a shape for each cell; some share one or both, so that counting and telling apart are asked for."""
    colours, shapes = list(COLOURS), list(SHAPES)
    if rng.random() < 0.5:  # few looks, many repeats
        colours, shapes = rng.sample(colours, 3), rng.sample(shapes, 3)
    looks = []
    for cell in cells:
        look = (rng.choice(colours), rng.choice(shapes))
        while not held_out and is_held_out(*look, cell):
            look = (rng.choice(colours), rng.choice(shapes))
            if rng.random() < 0.1:
                colours, shapes = list(COLOURS), list(SHAPES)
        looks.append(look)
    return looks


def _draw_shape(rng: random.Random, pen: Any, thing: Thing, scale: int) -> None:
    x, y, r = thing.x * scale, thing.y * scale, thing.size / 2 * scale
    ink = _ink(rng, thing.colour)
    turn = math.radians(rng.uniform(-6, 6))
    if thing.shape == "circle":
        pen.ellipse((x - r, y - r, x + r, y + r), fill=ink)
        return
    corners = [(x + r * a * math.cos(t + turn), y + r * a * math.sin(t + turn)) for a, t in _outline(thing.shape)]
    pen.polygon(corners, fill=ink)


@cache
def _outline(shape: str) -> list[tuple[float, float]]:
    """The corners of a shape as (radius, angle); the radius 1 reaches the edge of its box."""
    quarter = math.pi / 2
    if shape == "square":
        return [(1.2, quarter * (k + 0.5)) for k in range(4)]
    if shape == "diamond":
        return [(1.05, quarter * k) for k in range(4)]
    if shape == "triangle":
        return [(1.1, -quarter + k * math.tau / 3) for k in range(3)]
    if shape == "star":
        return [(1.12 if k % 2 == 0 else 0.45, -quarter + k * math.pi / 5) for k in range(10)]
    arm = 0.34
    cross = [(arm, 1), (arm, arm), (1, arm), (1, -arm), (arm, -arm), (arm, -1)]
    cross += [(-a, -b) for a, b in cross]
    return [(math.hypot(a, b), math.atan2(b, a)) for a, b in cross]


# Text


def _text(rng: random.Random, pen: Any, width: int, height: int, scale: int, held_out: bool) -> list[Thing]:
    what = rng.choice((["word"], ["number"], ["word", "number"], ["number", "word"]))
    things = []
    for row, shape in enumerate(what):
        text = _word(rng, held_out) if shape == "word" else _number(rng)
        band = height / len(what)
        colour = rng.choice([name for name in COLOURS if name != "yellow"])
        things.append(
            _line(rng, pen, Thing(shape, colour, 0, (row + 0.5) * band, 0, text=text), (width, band), scale, held_out)
        )
    return things


def _word(rng: random.Random, held_out: bool) -> str:
    if held_out:
        return rng.choice(HELD_OUT_WORDS)
    while (word := "".join(rng.choices(LETTERS, k=rng.choices((2, 3, 4, 5), (1, 3, 4, 3))[0]))) in HELD_OUT_WORDS:
        pass
    return word


def _number(rng: random.Random) -> str:
    length = rng.choice((1, 2, 2, 3, 3, 4))
    return rng.choice(DIGITS[1:]) + "".join(rng.choices(DIGITS, k=length - 1))


def _line(rng: random.Random, pen: Any, thing: Thing, room: tuple[float, float], scale: int, held_out: bool) -> Thing:
    """Write a line of text somewhere in its band; its characters keep a little apart."""
    name = rng.choice(_HELD_OUT_FONTS if held_out else _TRAIN_FONTS)
    gap = rng.uniform(1.0, 4.0)
    size = rng.uniform(20, 30)
    while True:
        font = _font(name, round(size * scale))
        widths = [font.getlength(c) / scale for c in thing.text]
        total = sum(widths) + gap * (len(widths) - 1)
        if total <= room[0] - 8:
            break
        size *= 0.93
    left = rng.uniform(4, room[0] - 4 - total)
    slack = max(0.0, (room[1] - size) / 2)
    thing.y += rng.uniform(-slack, slack)
    ink = _ink(rng, thing.colour)
    for character, wide in zip(thing.text, widths, strict=True):
        pen.text((left * scale, thing.y * scale), character, font=font, fill=ink, anchor="lm")
        thing.letters.append((left + wide / 2, thing.y, character))
        left += wide + gap
    thing.size, thing.x = size, sum(x for x, _, _ in thing.letters) / len(thing.letters)
    return thing


@lru_cache(256)
def _font(name: str, size: int) -> Any:
    return ImageFont.truetype(str(_font_files()[name]), size)


@cache
def _font_files() -> dict[str, Path]:
    found = {path.stem: path for suffix in ("ttf", "otf") for path in Path("/usr/share/fonts").rglob(f"*.{suffix}")}
    if missing := [name for name in (*_TRAIN_FONTS, *_HELD_OUT_FONTS) if name not in found]:
        raise SystemExit(f"fonts are missing: {missing}; training/README.md names the packages that bring them")
    return found


# Charts


def _chart(rng: random.Random, pen: Any, width: int, height: int, scale: int, held_out: bool) -> list[Thing]:
    del held_out  # its numbers and colours are drawn anew each time; no combination is worth holding out
    bars = rng.randint(2, 5)
    colours = rng.sample(list(COLOURS), bars)
    left, right, top, bottom = 10.0, width - 6.0, 8.0, height - 8.0
    unit = (bottom - top) / HIGHEST
    line = max(1, scale // 2)
    for value in range(1, HIGHEST + 1):
        y = (bottom - value * unit) * scale
        pen.line((left * scale, y, right * scale, y), fill=(185, 185, 185), width=line)
    slot = (right - left) / bars
    wide = slot * rng.uniform(0.5, 0.8)
    things = []
    for k, colour in enumerate(colours):
        value = rng.randint(1, HIGHEST)
        x, y = left + (k + 0.5) * slot, bottom - value * unit
        box = [(x - wide / 2) * scale, y * scale, (x + wide / 2) * scale, bottom * scale]
        pen.rectangle(box, fill=_ink(rng, colour))
        things.append(Thing("bar", colour, x, y, bottom - y, value=value, width=wide))
    pen.line((left * scale, bottom * scale, right * scale, bottom * scale), fill=(60, 60, 60), width=2 * line)
    pen.line((left * scale, top * scale, left * scale, bottom * scale), fill=(60, 60, 60), width=2 * line)
    return things
