"""How soon a question about a picture or a clip is answered: by a cold ``qak run``, and where the model is open."""

from __future__ import annotations

import statistics
import struct
import subprocess
import sys
import tempfile
import time
import wave
from pathlib import Path

import numpy as np

from qwen_agent_kit.agent import Agent
from qwen_agent_kit.bench.rows import Row
from qwen_agent_kit.errors import UsageError
from qwen_agent_kit.host import Host
from qwen_agent_kit.messages import Audio, Image, Media

__all__ = ["measure"]

_SEEN, _HEARD = "What is left of the red circle?", "What was said?"
_COLD, _WARM = 6.0, 2.0
"""Seconds that are promised."""


def measure(times: int = 5) -> list[Row]:
    """The median of ``times`` answers each, by the models that answer where none is named.

    A cold one is timed from the start of the process to its end. Each resident one has a medium of its own, so that
    none is found again.
    """
    with tempfile.TemporaryDirectory() as folder:
        picture, clip = Path(folder) / "scene.bmp", Path(folder) / "sound.wav"
        picture.write_bytes(_bmp(_scene(0)))
        _write_wav(clip, _sound(0))
        seen, heard = (_SEEN, "--image", str(picture)), (_HEARD, "--audio", str(clip))
        rows = []
        for name, arguments in (("--image", seen), ("--audio", heard)):
            _run(*arguments)  # what is read from disk is in memory then, as after any earlier run
            took = [_run(*arguments) for _ in range(times)]
            rows.append(_row(f"qak run {name}, process start to end", took, _COLD))
    with Host() as host:
        agent = Agent(host=host)
        seen_parts: list[Media] = [Image(_scene(number)) for number in range(times + 1)]
        heard_parts: list[Media] = [Audio(_sound(n), options={"rate": 16_000}) for n in range(times + 1)]
        rows.append(_row("a question about a picture, model open", _resident(agent, _SEEN, seen_parts), _WARM))
        rows.append(_row("a question about a clip, model open", _resident(agent, _HEARD, heard_parts), _WARM))
    return rows


def _row(name: str, took: list[float], limit: float) -> Row:
    return Row(name, statistics.median(took), "s", limit, min(took), max(took))


def _run(*arguments: str) -> float:
    command = [sys.executable, "-m", "qwen_agent_kit", "run", "--quiet", *arguments]
    began = time.perf_counter()
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)  # noqa: S603  # ourselves
    took = time.perf_counter() - began
    if done.returncode or not done.stdout.strip():
        raise UsageError(f"`qak run {arguments[1]}` gave no answer: {done.stderr.strip()[-300:]}")
    return took


def _resident(agent: Agent, question: str, media: list[Media]) -> list[float]:
    took = []
    for part in media:
        began = time.perf_counter()
        agent.run(question, parts=[part])
        took.append(time.perf_counter() - began)
    return took[1:]  # the first opened the model


def _scene(number: int) -> np.ndarray:
    """uint8 [168, 168, 3]: a red disc on white, and a blue square left of it whose size is the number's."""
    scene = np.full((168, 168, 3), 255, dtype=np.uint8)
    y, x = np.mgrid[:168, :168]
    scene[(y - 84) ** 2 + (x - 120) ** 2 < 24**2] = (220, 30, 30)
    side = 16 + number
    scene[84 - side : 84 + side, 44 - side : 44 + side] = (30, 60, 220)
    return scene


def _sound(number: int) -> np.ndarray:
    """float32 [16000]: a second of a tone of its own height."""
    at = np.arange(16_000) / 16_000
    return (0.3 * np.sin(2 * np.pi * (300 + 40 * number) * at)).astype(np.float32)


def _bmp(pixels: np.ndarray) -> bytes:
    """A picture as a BMP file of 24 bits; its width is a multiple of 4, so that no row is padded."""
    height, width = pixels.shape[:2]
    size = pixels.size
    head = struct.pack("<2sIHHIIiiHHIIiiII", b"BM", 54 + size, 0, 0, 54, 40, width, height, 1, 24, 0, size, 0, 0, 0, 0)
    return head + pixels[::-1, :, ::-1].tobytes()


def _write_wav(path: Path, samples: np.ndarray) -> None:
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16_000)
        file.writeframes((samples * 32767).astype("<i2").tobytes())
