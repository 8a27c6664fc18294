"""How tokens are drawn, checked where it is said."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from qwen_agent_kit.errors import UsageError

__all__ = ["Sampling"]

MAX_STOPS = 64
MAX_STOP_LENGTH = 4096
MAX_BIASES = 4096
MAX_LOGPROBS = 64


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the next token is drawn. None means the model's default (greedy where it states none).

    Args:
        temperature: 0 is greedy; 0 to 10.
        top_p: Nucleus mass, above 0 to 1.
        top_k: Candidates kept, 0 for all.
        min_p: Least probability relative to the likeliest, 0 to 1.
        repetition_penalty: Divides the positive and multiplies the negative logits of ids seen (CTRL, arXiv
            1909.05858); 0.01 to 10.
        presence_penalty: Taken off once for each id generated; -2 to 2.
        frequency_penalty: Taken off per occurrence generated; -2 to 2.
        logit_bias: Added to the logits of ids; -100 to 100.
        logprobs: How many alternatives are reported per token, None for none.
        stop: Strings at which the text ends; they are not part of it.
        seed: Makes drawing repeatable for this request, whatever runs beside it. Exact in float32; in the other schemes
            kernels round by chunk, so that a warmer cache can tip a near tie.
        max_tokens: The most tokens to generate; None takes the engine's default, which usage reports.

    Raises:
        UsageError: Names the field, what was found and the allowed range.
    """

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: Mapping[int, float] | None = None
    logprobs: int | None = None
    stop: tuple[str, ...] = ()
    seed: int | None = None
    max_tokens: int | None = None

    def __post_init__(self) -> None:
        for name, low, high, open_low in _REALS:
            _check_real(name, getattr(self, name), low, high, open_low)
        for name, least, most in _WHOLES:
            _check_whole(name, getattr(self, name), least, most)
        object.__setattr__(self, "stop", _checked_stops(self.stop))
        if self.logit_bias is not None:
            object.__setattr__(self, "logit_bias", _checked_bias(self.logit_bias))

    def over(self, defaults: Sampling) -> Sampling:
        """These settings, with ``defaults`` where a field was left out."""
        chosen = {f.name: getattr(self, f.name) for f in fields(self)}
        for name, value in chosen.items():
            if value is None or value == ():
                chosen[name] = getattr(defaults, name)
        return Sampling(**chosen)

    def to_dict(self) -> dict[str, Any]:
        """The fields that were set, as JSON data."""
        return {name: value for name, value in asdict(self).items() if value not in (None, ())}


_REALS = (
    ("temperature", 0.0, 10.0, False),
    ("top_p", 0.0, 1.0, True),
    ("min_p", 0.0, 1.0, False),
    ("repetition_penalty", 0.01, 10.0, False),
    ("presence_penalty", -2.0, 2.0, False),
    ("frequency_penalty", -2.0, 2.0, False),
)
_WHOLES = (
    ("top_k", 0, 2**31 - 1),
    ("logprobs", 0, MAX_LOGPROBS),
    ("seed", -(2**63), 2**63 - 1),
    ("max_tokens", 1, 2**31 - 1),
)


def _check_real(name: str, value: Any, low: float, high: float, open_low: bool) -> None:
    if value is None:
        return
    allowed = f"a number {'above' if open_low else 'from'} {low:g} to {high:g}"
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UsageError(f"`{name}` is {_short(value)}; allowed: {allowed}", code="invalid_sampling")
    if not low <= value <= high or (open_low and value == low):
        raise UsageError(f"`{name}` is {_short(value)}; allowed: {allowed}", code="invalid_sampling")


def _check_whole(name: str, value: Any, low: int, high: int) -> None:
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise UsageError(
            f"`{name}` is {_short(value)}; allowed: a whole number from {low} to {high}", code="invalid_sampling"
        )


def _checked_stops(stop: Any) -> tuple[str, ...]:
    if isinstance(stop, str):
        stop = (stop,)
    if not isinstance(stop, list | tuple) or len(stop) > MAX_STOPS:
        raise UsageError(f"`stop` is {_short(stop)}; allowed: at most {MAX_STOPS} strings", code="invalid_sampling")
    for text in stop:
        if not isinstance(text, str) or not 0 < len(text) <= MAX_STOP_LENGTH:
            raise UsageError(
                f"`stop` holds {_short(text)}; allowed: strings of 1 to {MAX_STOP_LENGTH} characters",
                code="invalid_sampling",
            )
    return tuple(stop)


def _checked_bias(bias: Any) -> dict[int, float]:
    if not isinstance(bias, Mapping) or len(bias) > MAX_BIASES:
        raise UsageError(
            f"`logit_bias` is {_short(bias)}; allowed: at most {MAX_BIASES} ids with a bias", code="invalid_sampling"
        )
    checked: dict[int, float] = {}
    for key, value in bias.items():
        if isinstance(key, str) and key.isascii() and key.isdigit() and len(key) < 12:
            key = int(key)
        _check_whole("logit_bias", key, 0, 2**31 - 1)
        if value is None:
            raise UsageError("`logit_bias` holds None; allowed: numbers", code="invalid_sampling")
        _check_real("logit_bias", value, -100.0, 100.0, False)
        checked[key] = float(value)
    return checked


def _short(value: Any) -> str:
    if isinstance(value, Mapping | list | tuple):
        return f"a {type(value).__name__} of {len(value)}"
    if isinstance(value, int) and value.bit_length() > 256:  # Python refuses to print very long ones
        return f"an integer of {value.bit_length()} bits"
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
