"""Speech for the training, made with espeak-ng: a bank of utterances on disk, in two worlds of voices.

``python -m training.audio.voices BANK --seed 1 --count 20000`` writes ``BANK.i16`` (samples at 16 kHz, end to end) and
``BANK.json`` (what is said where, by whom). With ``--held-out`` it draws from the voices, accents and speeds that
the training never hears. espeak-ng is needed here and nowhere else.
"""

from __future__ import annotations

import argparse
import io
import json
import random
import subprocess
import wave
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from training.audio.words import DIGITS, WORDS

RATE = 16_000
ACCENTS = ("en-us", "en-gb", "en-gb-x-rp", "en-gb-x-gbclan", "en-gb-x-gbcwmd", "en-029")
HELD_OUT_ACCENTS = ("en-us", "en-gb", "en-us-nyc", "en-gb-scotland")
SPEAKERS = (
    "adam Alex Alicia Andrea Andy Annie antonio belinda benjamin boris caleb david Diogo ed edward Gene gustave "
    "Henrique Hugo iven iven2 Jacky john Lee linda marcelo Marco Mario Michael michel miguel norbert Nguyen pablo paul "
    "pedro quincy robert robosoft3 robosoft5 steph steph2 Storm travis f1 f3 f4 m1 m3 m4 m5 m7 m8 grandma klatt klatt3"
).split()
HELD_OUT_SPEAKERS = (
    "Denis edward2 Gene2 iven3 Max Mike Zac anika f2 f5 m2 m6 grandpa sandro shelby victor steph3".split()
)
SPEEDS = (135, 195)  # words a minute
HELD_OUT_SPEEDS = ((115, 130), (200, 220))


@dataclass(frozen=True, slots=True)
class Utterance:
    """What is said in ``bank[start:stop]``, and how."""

    text: str
    voice: str
    speed: int
    pitch: int
    start: int = 0
    stop: int = 0


def draw_utterance(rng: random.Random, *, held_out: bool) -> Utterance:
    """Words and a voice."""
    accent = rng.choice(HELD_OUT_ACCENTS if held_out else ACCENTS)
    speaker = rng.choice(HELD_OUT_SPEAKERS if held_out else SPEAKERS)
    low, high = rng.choice(HELD_OUT_SPEEDS) if held_out else SPEEDS
    return Utterance(draw_text(rng), f"{accent}+{speaker}", rng.randint(low, high), rng.randint(25, 75))


def draw_text(rng: random.Random) -> str:
    """One to four digits or words; sometimes both."""
    kind = rng.random()
    lexicon = DIGITS if kind < 0.45 else WORDS if kind < 0.85 else [*DIGITS, *WORDS]
    return " ".join(rng.choices(lexicon, k=rng.choices((1, 2, 3, 4), (3, 4, 4, 2))[0]))


def speak(utterance: Utterance) -> np.ndarray:
    """16 kHz samples in [-1, 1] with the silence at both ends cut to 50 ms."""
    command = ["espeak-ng", "-v", utterance.voice, "-s", str(utterance.speed), "-p", str(utterance.pitch), "--stdout"]
    done = subprocess.run([*command, utterance.text], capture_output=True, check=True)  # fixed program
    with wave.open(io.BytesIO(done.stdout)) as file:
        rate, samples = file.getframerate(), np.frombuffer(done.stdout[44:], np.int16).astype(np.float32) / 32768
    samples = resample(samples, rate, RATE)
    loud = np.flatnonzero(np.abs(samples) > 0.01)
    if not len(loud):
        return np.zeros(0, np.float32)
    edge = RATE // 20
    return samples[max(0, loud[0] - edge) : loud[-1] + edge]


def resample(samples: np.ndarray, rate: int, wanted: int) -> np.ndarray:
    """The same sound at another rate, by cutting or padding its spectrum."""
    length = round(len(samples) * wanted / rate)
    return np.fft.irfft(np.fft.rfft(samples)[: length // 2 + 1], length).astype(np.float32) * (length / len(samples))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bank", type=Path)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--count", type=int, default=20_000)
    parser.add_argument("--held-out", action="store_true")
    options = parser.parse_args()
    rng = random.Random(f"{options.seed} voices {options.held_out}")
    options.bank.parent.mkdir(parents=True, exist_ok=True)
    rows, at = [], 0
    with options.bank.with_suffix(".i16").open("wb") as sink:
        while len(rows) < options.count:
            utterance = draw_utterance(rng, held_out=options.held_out)
            samples = speak(utterance)
            if len(samples) < RATE // 10:
                continue
            sink.write((samples * 32767 / max(1.0, float(np.abs(samples).max()))).astype("<i2").tobytes())
            rows.append(asdict(utterance) | {"start": at, "stop": at + len(samples)})
            at += len(samples)
            if len(rows) % 1000 == 0:
                print(f"{len(rows)} utterances, {at / RATE / 60:.0f} min", flush=True)
                sink.flush()
                options.bank.with_suffix(".json").write_text(json.dumps(rows))
    options.bank.with_suffix(".json").write_text(json.dumps(rows))


if __name__ == "__main__":
    main()
