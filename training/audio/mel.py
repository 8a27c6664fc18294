"""Whisper's log-mel features (16 kHz, windows of 400, hop 160, 128 bands), equal to the official extractor's."""

from __future__ import annotations

from functools import cache

import numpy as np

RATE = 16_000
HOP = 160
WINDOW = 400
BANDS = 128
SECONDS = 4  # of a chunk; a clip is padded to it with silence


def log_mel(samples: np.ndarray) -> np.ndarray:
    """Features [frames, 128] of a clip padded with silence to ``SECONDS``; only the clip's own come back, and two."""
    frames = -(-len(samples) // HOP)
    padded = np.zeros(min(SECONDS * RATE, len(samples) + 4 * WINDOW), np.float32)
    padded[: len(samples)] = samples[: len(padded)]
    padded = np.pad(padded, WINDOW // 2, mode="reflect")
    count = (len(padded) - WINDOW) // HOP
    windows = np.lib.stride_tricks.as_strided(padded, (count, WINDOW), (HOP * padded.itemsize, padded.itemsize))
    power = np.abs(np.fft.rfft(windows * _hann(), axis=1)) ** 2
    mel = np.log10(np.maximum(power.astype(np.float32) @ _filters(), 1e-10))
    mel = (np.maximum(mel, mel.max() - 8.0) + 4.0) / 4.0
    return mel[: frames + 2]


@cache
def _hann() -> np.ndarray:
    return (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(WINDOW) / WINDOW)).astype(np.float32)


def _to_mel(hertz: np.ndarray) -> np.ndarray:
    return np.where(hertz < 1000, hertz * 3 / 200, 15 + np.log(np.maximum(hertz, 1) / 1000) * 27 / np.log(6.4))


def _to_hertz(mel: np.ndarray) -> np.ndarray:
    return np.where(mel < 15, mel * 200 / 3, 1000 * np.exp((mel - 15) * np.log(6.4) / 27))


@cache
def _filters() -> np.ndarray:
    """Slaney's triangles [201, 128], each of area one."""
    bins = np.linspace(0, RATE / 2, WINDOW // 2 + 1)
    edges = _to_hertz(np.linspace(0, _to_mel(np.array(RATE / 2)), BANDS + 2))
    rising = (bins[:, None] - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - bins[:, None]) / (edges[2:] - edges[1:-1])
    triangles = np.maximum(0, np.minimum(rising, falling))
    return (triangles * 2 / (edges[2:] - edges[:-2])).astype(np.float32)
