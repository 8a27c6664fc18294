"""Runs in the decoding child: samples out of sound files. What a header claims is checked before anything is read."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import soundfile
import soxr

__all__ = ["RefusedError", "decode"]

RATE = 16_000
CHANNELS = 16
FORMATS = frozenset({"WAV", "WAVEX", "FLAC", "OGG", "MP3", "AIFF", "AU", "CAF", "W64", "RF64"})


class RefusedError(Exception):
    """A file that is refused, with a code."""

    def __init__(self, message: str, code: str = "invalid_media", hint: str | None = None) -> None:
        super().__init__(message)
        self.code, self.hint = code, hint


def decode(data: bytes, what: str, **options: Any) -> tuple[dict[str, Any], list[np.ndarray]]:
    """``probe`` or ``clip`` of a file."""
    ways: dict[str, Callable[..., tuple[dict[str, Any], list[np.ndarray]]]] = {"probe": probe, "clip": clip}
    return ways[what](data, **options)


def _opened(data: bytes, seconds: float) -> soundfile.SoundFile:
    try:
        file = soundfile.SoundFile(io.BytesIO(data))
    except (soundfile.LibsndfileError, RuntimeError, TypeError):
        raise RefusedError("it is no sound file that can be read") from None
    if file.format not in FORMATS:
        raise RefusedError(f"its format is {file.format}; allowed: WAV, FLAC, OGG, MP3", "unsupported_format")
    if not 1000 <= file.samplerate <= 384_000:
        raise RefusedError(f"it has {file.samplerate} samples a second; allowed: 1000 to 384000")
    if not 1 <= file.channels <= CHANNELS:
        raise RefusedError(f"it has {file.channels} channels; allowed: 1 to {CHANNELS}")
    if file.frames < 1:
        raise RefusedError("it holds no samples")
    if file.frames / file.samplerate > seconds:
        raise RefusedError(
            f"it lasts {file.frames / file.samplerate:.0f} s; allowed: at most {seconds:g}", "too_long", "cut it"
        )
    return file


def probe(data: bytes, seconds: float) -> tuple[dict[str, Any], list[np.ndarray]]:
    """Its length, rate and channels."""
    with _opened(data, seconds) as file:
        facts = {"seconds": file.frames / file.samplerate, "rate": file.samplerate, "channels": file.channels}
    return facts, []


def clip(
    data: bytes, seconds: float, start: float, length: float | None, most: float
) -> tuple[dict[str, Any], list[np.ndarray]]:
    """float32 [n] at 16 kHz, channels averaged: ``length`` seconds from ``start``, at most ``most``."""
    with _opened(data, seconds) as file:
        rate, whole = file.samplerate, file.frames
        first = round(start * rate)
        if first >= whole:
            raise RefusedError(f"it lasts {whole / rate:.2f} s; the clip begins at {start:g}")
        count = whole - first if length is None else min(whole - first, max(1, round(length * rate)))
        if count > round(most * rate):
            raise RefusedError(
                f"{count / rate:.1f} s were asked for; allowed: at most {most:g} at a time",
                "too_long",
                "cut it, as qwen_agent_kit_audio.windows does",
            )
        file.seek(first)
        samples = file.read(count, dtype="float32", always_2d=True)
    if len(samples) < 1:
        raise RefusedError("it is cut off: no samples can be read")
    mono = samples[:, 0] if samples.shape[1] == 1 else samples.mean(axis=1)
    if not np.isfinite(mono).all():
        raise RefusedError("it holds samples that are not finite")
    return {"seconds": whole / rate, "rate": rate}, [resampled(np.clip(mono, -1e4, 1e4), rate)]


def resampled(mono: np.ndarray, rate: int) -> np.ndarray:
    """float32 at 16 kHz by soxr's high quality, as ``librosa.resample`` does by default."""
    if rate == RATE:
        return np.ascontiguousarray(mono, dtype=np.float32)
    made = soxr.resample(mono, rate, RATE, quality="HQ")
    wanted = math.ceil(len(mono) * RATE / rate)
    fitted = np.zeros(wanted, dtype=np.float32)
    fitted[: min(wanted, len(made))] = made[:wanted]
    return fitted
