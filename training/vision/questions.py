"""Questions about a scene and their short answers, from templates.

A question is asked only where the scene leaves no doubt: "left of" only where exactly one thing is further left.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from training.vision.scenes import CELLS, COLOURS, SHAPES, Scene, Thing, is_held_out

SIDES = ("left of", "right of", "above", "below")


@dataclass(frozen=True, slots=True)
class Question:
    """A question of some type, and the one right answer."""

    type: str
    text: str
    answer: str


def ask(rng: random.Random, scene: Scene, count: int, *, held_out: bool = False, hard: bool = False) -> list[Question]:
    """Up to ``count`` questions about ``scene``, each of another type.

    With ``held_out`` those about one shape are about one whose triple of colour, shape and cell is held out. ``hard``
    asks more often what is slow to learn.
    """
    weight = _SLOW if hard else {}
    askers = sorted(_ASKERS[scene.kind], key=lambda asker: -(rng.random() ** (1 / weight.get(asker, 1.0))))
    found: list[Question] = []
    for asker in askers:
        if len(found) == count:
            break
        if (question := asker(rng, scene, held_out)) is not None:
            found.append(question)
    return found


def name(thing: Thing) -> str:
    return f"{thing.colour} {thing.shape}"


def _a(what: str) -> str:
    return ("an " if what[0] in "aeiou" else "a ") + what


def _unique(things: list[Thing], key: Callable[[Thing], object], held_out: bool) -> list[Thing]:
    """The things that no other one shares ``key`` with; only held-out triples where ``held_out``."""
    keys = [key(thing) for thing in things]
    found = [thing for thing in things if keys.count(key(thing)) == 1]
    return [t for t in found if is_held_out(t.colour, t.shape, t.cell)] if held_out else found


def _colour(rng: random.Random, scene: Scene, held_out: bool) -> Question | None:
    if not (things := _unique(scene.things, lambda t: t.shape, held_out)):
        return None
    thing = rng.choice(things)
    form = rng.choice(("What colour is the {}?", "What color is the {}?", "Which colour is the {}?"))
    return Question("colour", form.format(thing.shape), thing.colour)


def _shape(rng: random.Random, scene: Scene, held_out: bool) -> Question | None:
    if not (things := _unique(scene.things, lambda t: t.colour, held_out)):
        return None
    thing = rng.choice(things)
    return Question("shape", rng.choice(("What shape is {}?", "Which shape is {}?")).format(thing.colour), thing.shape)


def _where(rng: random.Random, scene: Scene, held_out: bool) -> Question | None:
    if not (things := _unique(scene.things, name, held_out)):
        return None
    thing = rng.choice(things)
    return Question("where", f"Where is the {name(thing)}?", CELLS[thing.cell])


def _exists(rng: random.Random, scene: Scene, held_out: bool) -> Question | None:
    there = {name(thing) for thing in scene.things}
    form = "Is there {}?"
    if rng.random() < 0.5:
        things = [t for t in scene.things if not held_out or is_held_out(t.colour, t.shape, t.cell)]
        return Question("exists", form.format(_a(name(rng.choice(things)))), "yes")
    colours = sorted({t.colour for t in scene.things}) if rng.random() < 0.6 else list(COLOURS)
    shapes = sorted({t.shape for t in scene.things}) if rng.random() < 0.6 else list(SHAPES)
    absent = [f"{c} {s}" for c in colours for s in shapes if f"{c} {s}" not in there]
    return Question("exists", form.format(_a(rng.choice(absent))), "no") if absent else None


def _count(rng: random.Random, scene: Scene, held_out: bool) -> Question | None:
    del held_out
    forms = ("How many {} are there?", "How many {} do you see?")
    how = rng.randrange(3)
    if how == 0:
        what, count = "shapes", len(scene.things)
    elif how == 1:
        shape = rng.choice([t.shape for t in scene.things] + [rng.choice(SHAPES)])
        what, count = _plural(shape), sum(t.shape == shape for t in scene.things)
    else:
        colour = rng.choice([t.colour for t in scene.things] + [rng.choice(list(COLOURS))])
        what, count = f"{colour} shapes", sum(t.colour == colour for t in scene.things)
    return Question("count", rng.choice(forms).format(what), str(count))


def _plural(shape: str) -> str:
    return shape + ("es" if shape == "cross" else "s")


def _beyond(thing: Thing, other: Thing, side: str) -> bool:
    """Whether ``other`` is in a column (row) further to ``side`` than ``thing``."""
    (row, column), (other_row, other_column) = divmod(thing.cell, 3), divmod(other.cell, 3)
    by = {"left of": column - other_column, "right of": other_column - column}
    by |= {"above": row - other_row, "below": other_row - row}
    return by[side] > 0


def _relation(rng: random.Random, scene: Scene, held_out: bool) -> Question | None:
    pairs = []
    for thing in _unique(scene.things, name, held_out):
        for side in SIDES:
            beyond = [other for other in scene.things if _beyond(thing, other, side)]
            if len(beyond) == 1:
                pairs.append((thing, side, beyond[0]))
    if not pairs:
        return None
    thing, side, other = rng.choice(pairs)
    return Question("relation", f"What is {side} the {name(thing)}?", _a(name(other)))


def _is_beyond(rng: random.Random, scene: Scene, held_out: bool) -> Question | None:
    everyone = _unique(scene.things, name, False)
    firsts = _unique(scene.things, name, held_out)
    side = rng.choice(SIDES)
    back = SIDES[SIDES.index(side) ^ 1]
    wanted = rng.random() < 0.5
    pairs = [(a, b) for a in firsts for b in everyone if _beyond(a, b, back if wanted else side)]
    if not pairs:
        return None
    a, b = rng.choice(pairs)
    return Question("is it beside", f"Is the {name(a)} {side} the {name(b)}?", "yes" if wanted else "no")


def _read(kind: str) -> Callable[[random.Random, Scene, bool], Question | None]:
    def asker(rng: random.Random, scene: Scene, held_out: bool) -> Question | None:
        del held_out
        texts = [t.text for t in scene.things if t.shape == kind]
        if not texts:
            return None
        form = rng.choice(("What {} is written?", "Which {} is written?", "Read the {}."))
        return Question(kind, form.format(kind), texts[0])

    return asker


def _ink_of_text(rng: random.Random, scene: Scene, held_out: bool) -> Question | None:
    del held_out
    thing = rng.choice(scene.things)
    return Question("colour of text", f"What colour is the {thing.shape}?", thing.colour)


def _extreme(rng: random.Random, scene: Scene, held_out: bool) -> Question | None:
    del held_out
    word, pick = rng.choice((("tallest", max), ("shortest", min)))
    edge = pick(t.value for t in scene.things)
    found = [t.colour for t in scene.things if t.value == edge]
    return Question("tallest bar", f"Which bar is the {word}?", f"the {found[0]} bar") if len(found) == 1 else None


def _bars(rng: random.Random, scene: Scene, held_out: bool) -> Question | None:
    del held_out
    return Question(
        "count bars", rng.choice(("How many bars are there?", "How many bars do you see?")), str(len(scene.things))
    )


def _value(rng: random.Random, scene: Scene, held_out: bool) -> Question | None:
    del held_out
    thing = rng.choice(scene.things)
    form = rng.choice(("What is the value of the {} bar?", "How high is the {} bar?"))
    return Question("value of a bar", form.format(thing.colour), str(thing.value))


def _taller(rng: random.Random, scene: Scene, held_out: bool) -> Question | None:
    del held_out
    a, b = rng.sample(scene.things, 2)
    if a.value == b.value:
        return None
    word = rng.choice(("taller", "shorter"))
    yes = (a.value > b.value) == (word == "taller")
    return Question("compare bars", f"Is the {a.colour} bar {word} than the {b.colour} bar?", "yes" if yes else "no")


_ASKERS = {
    "shapes": (_colour, _shape, _where, _exists, _count, _relation, _is_beyond),
    "text": (_read("word"), _read("number"), _ink_of_text),
    "chart": (_extreme, _bars, _value, _taller),
}
_SLOW = {_is_beyond: 4.0, _count: 5.0, _where: 2.0, _taller: 4.0, _bars: 0.5}
