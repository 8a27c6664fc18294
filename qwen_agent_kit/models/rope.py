"""Rotary position embedding: positions to cosines and sines.

Frequencies are those of transformers 5.23 (modeling_rope_utils.py). ``dynamic`` is made independent of how a prompt is
cut into chunks: position p is rotated as if the sequence ended at p, which is what transformers computes when it
decodes one id at a time, so that a cached prefix stays valid. A prompt longer than the trained length that transformers
prefills at once is rotated there by the whole prompt's length instead.
"""

from __future__ import annotations

import math

import torch

from qwen_agent_kit.models.rope_config import RopeConfig

__all__ = ["Rotary", "rotate"]


class Rotary:
    """Makes the cosines and sines for a run of positions.

    Args:
        rope: What the model says.
        head_dim: Width of a head; even.
    """

    def __init__(self, rope: RopeConfig, head_dim: int) -> None:
        self._rope = rope
        self._exponents = torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim
        self._stretch = head_dim / max(1, head_dim - 2)
        self._fixed = _frequencies(rope, self._exponents, head_dim)
        self._axes = _axes(rope, head_dim // 2)

    def __call__(self, positions: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosine and signed sine.

        Args:
            positions: int64 [n], or [3, n] for m-rope.
            dtype: Of the result.

        Returns:
            Two tensors [n, 1, head_dim]; the first half of the sine is negated, for ``rotate``.
        """
        angles = self._angles(positions)
        cos, sin = angles.cos(), angles.sin()
        if self._rope.attention_factor != 1.0:
            cos, sin = cos * self._rope.attention_factor, sin * self._rope.attention_factor
        cos, sin = torch.cat((cos, cos), -1), torch.cat((-sin, sin), -1)
        return cos.to(dtype).unsqueeze(1), sin.to(dtype).unsqueeze(1)

    def _angles(self, positions: torch.Tensor) -> torch.Tensor:
        if positions.ndim == 1:
            return positions.float().unsqueeze(-1) * self._at(positions)
        if self._axes is None:  # plain rope: the three axes agree for text, and the first counts
            return self._angles(positions[0])
        per_axis = positions.float().unsqueeze(-1) * self._at(positions.amax(0))  # [3, n, head_dim / 2]
        return per_axis.gather(0, self._axes.expand(1, positions.shape[1], -1)).squeeze(0)

    def _at(self, positions: torch.Tensor) -> torch.Tensor:
        """Frequencies [head_dim / 2], or [n, head_dim / 2] where they depend on the position."""
        rope = self._rope
        if rope.kind not in ("dynamic", "qwen_dynamic"):
            return self._fixed
        lengths = (positions + 1).clamp(min=rope.original).double()
        if rope.kind == "dynamic":
            grown = rope.factor * lengths / rope.original - (rope.factor - 1)
        else:  # Qwen 1.0, modeling_qwen.py `get_ntk_alpha`: doubled with each power of two past the trained length
            grown = (2 ** torch.ceil(torch.log2(lengths / rope.original) + 1) - 1).clamp(min=1)
        base = (rope.theta * grown**self._stretch).float()
        return 1.0 / base.unsqueeze(-1) ** self._exponents


def rotate(heads: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotate [n, heads, head_dim] by what ``Rotary`` gave: halves are paired, as in GPT-NeoX."""
    return torch.addcmul(heads * cos, heads.roll(heads.shape[-1] // 2, -1), sin)


def _frequencies(rope: RopeConfig, exponents: torch.Tensor, head_dim: int) -> torch.Tensor:
    plain = 1.0 / (rope.theta**exponents)
    if rope.kind == "linear":
        plain = plain / rope.factor
    elif rope.kind == "yarn":
        plain = _yarn(rope, exponents, head_dim)
    elif rope.kind == "llama3":
        plain = _llama3(rope, plain)
    return plain / torch.tensor(rope.divisors) if rope.divisors else plain


def _yarn(rope: RopeConfig, exponents: torch.Tensor, head_dim: int) -> torch.Tensor:
    """YaRN, arXiv 2309.00071 section 3.2: high frequencies stay, low ones are interpolated, a ramp between."""

    def bound(rotations: float) -> float:
        return head_dim * math.log(rope.original / (rotations * 2 * math.pi)) / (2 * math.log(rope.theta))

    low, high = bound(rope.beta_fast), bound(rope.beta_slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    if low == high:
        high += 0.001
    ramp = ((torch.arange(head_dim // 2, dtype=torch.float32) - low) / (high - low)).clamp(0, 1)
    wave = rope.theta**exponents
    return 1.0 / (rope.factor * wave) * ramp + 1.0 / wave * (1 - ramp)


def _llama3(rope: RopeConfig, plain: torch.Tensor) -> torch.Tensor:
    """Llama 3.1's scaling (meta-llama/llama-models, `apply_scaling`)."""
    wavelength = 2 * math.pi / plain
    smooth = (rope.original / wavelength - rope.low_freq) / (rope.high_freq - rope.low_freq)
    between = (1 - smooth) * plain / rope.factor + smooth * plain
    scaled = torch.where(wavelength > rope.original / rope.low_freq, plain / rope.factor, between)
    return torch.where(wavelength < rope.original / rope.high_freq, plain, scaled)


def _axes(rope: RopeConfig, half: int) -> torch.Tensor | None:
    """Which of the three m-rope axes each frequency follows: int64 [1, 1, half], None for plain rope."""
    if not rope.sections:
        return None
    if not rope.interleaved:  # Qwen2-VL: blocks of time, height, width
        axes = torch.repeat_interleave(torch.arange(3), torch.tensor(rope.sections))
    else:  # Qwen3-VL: height and width take every third frequency, time what is left
        axes = torch.zeros(half, dtype=torch.long)
        axes[1 : rope.sections[1] * 3 : 3] = 1
        axes[2 : rope.sections[2] * 3 : 3] = 2
    return axes.view(1, 1, half)
