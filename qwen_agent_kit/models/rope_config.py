"""How positions become rotations, as data, read from ``rope_parameters`` (transformers 5) or ``rope_scaling`` (4)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from qwen_agent_kit.models.fields import Fields

__all__ = ["RopeConfig", "rope_from"]

_KINDS = ("default", "linear", "dynamic", "yarn", "llama3")


@dataclass(frozen=True)
class RopeConfig:
    """A rotary embedding.

    Args:
        kind: ``default``, ``linear``, ``dynamic``, ``yarn``, ``llama3``, or ``qwen_dynamic`` (Qwen 1.0).
        theta: The base.
        factor: By how much the context is stretched.
        original: Positions before stretching.
        attention_factor: Multiplies cosine and sine.
        beta_fast: YaRN: rotations above which a frequency stays as it is.
        beta_slow: YaRN: rotations below which it is fully interpolated.
        truncate: YaRN: whether the bounds of the ramp are rounded outwards.
        low_freq: Llama 3's ``low_freq_factor``.
        high_freq: Llama 3's ``high_freq_factor``.
        sections: How many frequencies each of the three m-rope axes takes, empty for plain positions.
        interleaved: Whether those are interleaved (Qwen3-VL) instead of in blocks.
        divisors: One divisor per frequency (GGUF ``rope_freqs``), empty for none.
    """

    kind: str = "default"
    theta: float = 10000.0
    factor: float = 1.0
    original: int = 0
    attention_factor: float = 1.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    low_freq: float = 1.0
    high_freq: float = 4.0
    sections: tuple[int, ...] = ()
    interleaved: bool = False
    divisors: tuple[float, ...] = ()

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> RopeConfig:
        """Read what ``dataclasses.asdict`` wrote."""
        known = {f.name for f in fields(cls)}
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in data.items() if k in known}
        return cls(**values)


def rope_from(given: Fields, head_dim: int, positions: int) -> RopeConfig:
    """Read the rope fields of a config.json.

    Args:
        given: The decoder's fields.
        head_dim: Width of a head.
        positions: ``max_position_embeddings``.

    Raises:
        ModelError: Names the field that is wrong.
    """
    name = "rope_scaling" if given.data.get("rope_scaling") else "rope_parameters"
    rope = given.part(name)
    theta = rope.real("rope_theta", 1.0, 1e12, given.real("rope_theta", 1.0, 1e12, 10000.0))
    kind = rope.text("rope_type", rope.text("type", "default"))
    if kind == "mrope":  # Qwen2-VL's name for the default frequencies over three axes
        kind = "default"
    if kind not in _KINDS:
        rope.refuse("rope_type" if rope.has("rope_type") else "type", ", ".join(_KINDS))
    for fields_ in (rope, given):
        if fields_.real("partial_rotary_factor", 0.0, 1.0, 1.0) != 1.0:
            fields_.refuse("partial_rotary_factor", "1.0")
    values = {"kind": kind, "theta": theta, **_sections(rope, head_dim)}
    if kind == "default":
        return RopeConfig(**values)
    original = rope.whole("original_max_position_embeddings", 1, 2**28, positions)
    if kind == "dynamic":
        original = positions  # transformers stretches from what the config calls the model's length
    stretch = positions / original if kind == "yarn" else None
    values |= {"original": original, "factor": rope.real("factor", 1.0, 1e6, stretch)}
    if kind == "yarn":
        values |= _yarn(rope, values["factor"])
    if kind == "llama3":
        values |= {
            "low_freq": rope.real("low_freq_factor", 1e-3, 1e6),
            "high_freq": rope.real("high_freq_factor", 1e-3, 1e6),
        }
        if values["low_freq"] >= values["high_freq"]:
            rope.refuse("high_freq_factor", "above `low_freq_factor`")
    return RopeConfig(**values)


def _sections(rope: Fields, head_dim: int) -> dict[str, Any]:
    sections = rope.wholes("mrope_section", 0, head_dim, 3)
    if sections and (len(sections) != 3 or sum(sections) != head_dim // 2):
        rope.refuse("mrope_section", f"three whole numbers whose sum is {head_dim // 2}")
    return {"sections": sections, "interleaved": rope.flag("mrope_interleaved", False)}


def _yarn(rope: Fields, factor: float) -> dict[str, Any]:
    """YaRN (arXiv 2309.00071) with the optional fields of transformers' ``_compute_yarn_parameters``."""
    scale = rope.real("mscale", 0.0, 1e3, 0.0)
    scale_all = rope.real("mscale_all_dim", 0.0, 1e3, 0.0)
    inferred = _mscale(factor, scale) / _mscale(factor, scale_all) if scale and scale_all else _mscale(factor, 1.0)
    return {
        "attention_factor": rope.real("attention_factor", 0.0, 1e3, inferred),
        "beta_fast": rope.real("beta_fast", 0.0, 1e6, 0.0) or 32.0,
        "beta_slow": rope.real("beta_slow", 0.0, 1e6, 0.0) or 1.0,
        "truncate": rope.flag("truncate", True),
    }


def _mscale(factor: float, scale: float) -> float:
    return 0.1 * scale * math.log(factor) + 1.0 if factor > 1 else 1.0
