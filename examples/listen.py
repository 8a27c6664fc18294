"""Ask about sound: a clip as a whole, then a longer one in windows that overlap.

python examples/listen.py [clip.wav question]
"""

from __future__ import annotations

import sys

import numpy as np
from qwen_agent_kit_audio import windows

from qwen_agent_kit import Agent, Audio

RATE = 16_000


def glide(start: float, end: float, seconds: float = 1.0) -> np.ndarray:
    """A tone from one pitch to another, with soft ends and a little silence around it."""
    count = int(seconds * RATE)
    ramp = np.minimum(1, np.minimum(np.arange(count), np.arange(count)[::-1]) / 200)
    tone = 0.4 * ramp * np.sin(2 * np.pi * np.cumsum(np.geomspace(start, end, count)) / RATE)
    return np.pad(tone, RATE // 5).astype(np.float32)


def main() -> None:
    agent = Agent()  # no model is named: the small one that hears answers
    if len(sys.argv) == 3:
        print(agent.run(sys.argv[2], audio=sys.argv[1]).output)
        return
    for name, clip in {"first": glide(300, 1800), "second": glide(1800, 300)}.items():
        print(f"{name}:", agent.run("Does the tone rise or fall?", audio=[Audio(clip)]).output)
    silence = np.zeros(2 * RATE, dtype=np.float32)
    long = np.concatenate([silence, glide(1500, 1500, 1.6), silence])
    for start, end, part in windows(Audio(long), duration=len(long) / RATE, seconds=2.0, overlap=0.0):
        print(f"{start:.0f} to {end:.0f} s:", agent.run("What do you hear?", audio=[part]).output)


if __name__ == "__main__":
    main()
