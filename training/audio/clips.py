"""Clips and what is asked about them: speech from a bank, tones, noise, silence, and every clip a little different.

Everything random comes from one ``random.Random``; with ``held_out`` the noise is of colours that training never hears.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from training.audio.mel import RATE, SECONDS
from training.audio.words import DIGITS

LONGEST = SECONDS * RATE - RATE // 10
COLOURS = (0.0, 0.5, 1.0)  # noise: power falls with frequency to this exponent, over two
HELD_OUT_COLOURS = (0.25, 0.75, 1.4)


@dataclass(frozen=True, slots=True)
class Clip:
    """A sound (16 kHz, mono, in [-1, 1]) and what it is."""

    kind: str  # "speech", "tone", "tones", "noise" or "silence"
    samples: np.ndarray
    text: str = ""  # what is said
    high: bool = False  # of a tone
    course: str = ""  # of a tone: "rise", "fall" or ""
    count: int = 0  # of tones


@dataclass(frozen=True, slots=True)
class Question:
    """A question of some type, and the one right answer."""

    type: str
    text: str
    answer: str


class Bank:
    """The utterances that ``voices`` wrote; samples are read from disk when asked for."""

    def __init__(self, path: Path) -> None:
        self.rows = json.loads(path.with_suffix(".json").read_text())
        self.samples = np.memmap(path.with_suffix(".i16"), np.int16, mode="r")

    def draw(self, rng: random.Random) -> tuple[str, np.ndarray]:
        row = rng.choice(self.rows)
        return row["text"], self.samples[row["start"] : row["stop"]].astype(np.float32) / 32768


def draw_clip(rng: random.Random, bank: Bank, *, held_out: bool = False, kind: str | None = None) -> Clip:
    """One clip; seven in ten are speech, and speech is quickened, muffled and covered with noise by chance."""
    kind = kind or rng.choices(("speech", "tone", "tones", "noise", "silence"), (14, 2, 2, 1, 1))[0]
    dice = np.random.default_rng(rng.getrandbits(64))
    if kind == "speech":
        return _speech(rng, dice, bank, held_out)
    if kind == "noise":
        samples = noise(dice, rng.randint(RATE // 2, 2 * RATE), _colour(rng, held_out)) * 10 ** rng.uniform(-1.5, -0.6)
        return Clip(kind, samples)
    if kind == "silence":
        samples = noise(dice, rng.randint(RATE // 2, 2 * RATE), _colour(rng, held_out)) * rng.choice((0.0, 1e-4, 3e-4))
        return Clip(kind, samples)
    return _covered(rng, dice, _tone(rng) if kind == "tone" else _tones(rng), held_out)


def _colour(rng: random.Random, held_out: bool) -> float:
    return rng.choice(HELD_OUT_COLOURS if held_out else COLOURS)


def noise(dice: np.random.Generator, length: int, colour: float) -> np.ndarray:
    """Noise of about unit loudness whose amplitude falls as frequency to the power ``-colour``."""
    spectrum = np.fft.rfft(dice.standard_normal(length).astype(np.float32))
    spectrum *= np.maximum(np.arange(len(spectrum)) / len(spectrum), 20 / len(spectrum)) ** -colour
    sound = np.fft.irfft(spectrum, length).astype(np.float32)
    return sound / (float(np.sqrt((sound**2).mean())) + 1e-9)


def _covered(rng: random.Random, dice: np.random.Generator, clip: Clip, held_out: bool) -> Clip:
    """The clip somewhere in a little silence, louder or quieter, and three times in four with noise over it."""
    sound = np.pad(clip.samples, (rng.randint(0, RATE // 3), rng.randint(0, RATE // 3)))[:LONGEST]
    loudness = float(np.sqrt((clip.samples**2).mean())) + 1e-9
    if rng.random() < 0.75:
        level = loudness * 10 ** (-rng.uniform(8, 30) / 20)
        sound = sound + level * noise(dice, len(sound), _colour(rng, held_out))
    sound = sound * (10 ** rng.uniform(-1.3, -0.1) / (float(np.abs(sound).max()) + 1e-9))
    return Clip(clip.kind, sound.astype(np.float32), clip.text, clip.high, clip.course, clip.count)


def _speech(rng: random.Random, dice: np.random.Generator, bank: Bank, held_out: bool) -> Clip:
    text, sound = bank.draw(rng)
    if rng.random() < 0.5:  # another utterance of the same world after a pause
        more, second = bank.draw(rng)
        pause = np.zeros(rng.randint(RATE // 20, RATE // 3), np.float32)
        joined = np.concatenate((sound, pause, second))
        if len(text.split()) + len(more.split()) <= 4 and len(joined) < LONGEST - RATE:
            text, sound = f"{text} {more}", joined
    if not held_out:
        stretch = rng.uniform(0.92, 1.1)
        length = int(len(sound) * stretch)
        sound = np.interp(np.linspace(0, len(sound) - 1, length), np.arange(len(sound)), sound).astype(np.float32)
    return _covered(rng, dice, Clip("speech", sound, text), held_out)


def _tone(rng: random.Random) -> Clip:
    """One tone: steady and clearly high or low, or gliding."""
    length = rng.randint(RATE * 3 // 10, RATE * 3 // 2)
    course = rng.choice(("", "rise", "fall"))
    high = rng.random() < 0.5
    if course:
        low, top = rng.uniform(200, 700), rng.uniform(1100, 3000)
        ends = (low, top) if course == "rise" else (top, low)
    else:
        ends = (rng.uniform(1200, 3500) if high else rng.uniform(110, 500),) * 2
    pitch = np.exp(np.linspace(math.log(ends[0]), math.log(ends[1]), length))
    return Clip("tone", _sound(rng, pitch), high=high, course=course)


def _tones(rng: random.Random) -> Clip:
    """One to five beeps of one pitch."""
    count, pitch = rng.randint(1, 5), rng.uniform(250, 2500)
    beep = _sound(rng, np.full(rng.randint(RATE // 10, RATE // 4), pitch))
    pause = np.zeros(rng.randint(RATE // 10, RATE // 4), np.float32)
    return Clip("tones", np.concatenate([beep, *[pause, beep] * (count - 1)]), count=count)


def _sound(rng: random.Random, pitch: np.ndarray) -> np.ndarray:
    """A sound with the given pitch in hertz at each sample, a few overtones and soft ends."""
    phase = np.cumsum(pitch) * 2 * np.pi / RATE
    wave = sum(rng.uniform(0, 0.5) / k * np.sin(k * phase) for k in (2, 3)) + np.sin(phase)
    edge = RATE // 100
    ramp = np.minimum(1, np.minimum(np.arange(len(wave)), np.arange(len(wave))[::-1]) / edge)
    return (0.5 * wave * ramp).astype(np.float32)


def ask(rng: random.Random, clip: Clip, count: int) -> list[Question]:
    """Up to ``count`` different questions; the first about speech is what was said."""
    askers = list(_ASKERS[clip.kind])
    first, rest = (askers[:1], askers[1:]) if clip.kind in ("speech", "tones") else ([], askers)
    rng.shuffle(rest)
    found = [question for asker in first + rest if (question := asker(rng, clip)) is not None]
    return found[:count]


def _said(rng: random.Random, clip: Clip) -> Question:
    words = clip.text.split()
    digits = all(word in DIGITS for word in words)
    forms = ["What was said?", "What did the speaker say?", "What was said?"]
    form = rng.choice([*forms, "Which digits were said?"] if digits else forms)
    return Question("digits" if digits else "words", form, clip.text)


def _edge(rng: random.Random, clip: Clip) -> Question:
    words = clip.text.split()
    if rng.random() < 0.5:
        return Question("first word", "Which word was said first?", words[0])
    return Question("last word", "Which word was said last?", words[-1])


def _how_many(rng: random.Random, clip: Clip) -> Question:
    words = clip.text.split()
    digits = sum(word in DIGITS for word in words)
    if digits and rng.random() < 0.5:
        return Question("count digits", "How many digits were said?", str(digits))
    return Question("count words", "How many words were said?", str(len(words)))


def _speaking(rng: random.Random, clip: Clip) -> Question:
    del rng
    return Question("is anyone speaking", "Is anyone speaking?", "yes" if clip.kind == "speech" else "no")


def _hear(rng: random.Random, clip: Clip) -> Question:
    del rng
    heard = {"speech": "speech", "tone": "a tone", "tones": "a tone", "noise": "noise", "silence": "silence"}
    return Question("what is heard", "What do you hear?", heard[clip.kind])


def _height(rng: random.Random, clip: Clip) -> Question | None:
    del rng
    high_or_low = "high" if clip.high else "low"
    return None if clip.course else Question("high or low", "Is the tone high or low?", high_or_low)


def _glide(rng: random.Random, clip: Clip) -> Question | None:
    del rng
    return Question("rise or fall", "Does the tone rise or fall?", f"it {clip.course}s") if clip.course else None


def _beeps(rng: random.Random, clip: Clip) -> Question:
    del rng
    return Question("count tones", "How many tones do you hear?", str(clip.count))


def _nothing(rng: random.Random, clip: Clip) -> Question:
    del clip
    return Question("nothing said", rng.choice(("What was said?", "What did the speaker say?")), "nothing")


_Asker = Callable[[random.Random, Clip], Question | None]
_ASKERS: dict[str, tuple[_Asker, ...]] = {
    "speech": (_said, _edge, _how_many, _speaking, _hear),
    "tone": (_height, _glide, _hear, _speaking),
    "tones": (_beeps, _hear, _speaking, _nothing),
    "noise": (_hear, _speaking, _nothing),
    "silence": (_hear, _speaking, _nothing),
}
