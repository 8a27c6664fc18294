"""From logits to the next id.

Order and definitions follow transformers where it has them (``generation/utils.py``, ``_get_logits_processor``, and the
classes of ``generation/logits_process.py``): logit bias (``SequenceBiasLogitsProcessor`` with single ids), repetition
penalty (``RepetitionPenaltyLogitsProcessor``, over prompt and generated ids), then the frequency and presence penalties
as the OpenAI API defines them (over generated ids), the grammar's mask, temperature, top-k, top-p and min-p
(``TemperatureLogitsWarper``, ``TopKLogitsWarper``, ``TopPLogitsWarper``, ``MinPLogitsWarper``).

Reported logprobs are the log-softmax of the logits as the model gave them, before any of this.

Draws use the inverse of the cumulative distribution in float64 and a counter-based generator of the request's own
(Philox, Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3", SC 2011), so that a seed gives the same ids
whatever runs beside.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from qwen_agent_kit.backends import Sampling
from qwen_agent_kit.engine.draws import Values, draw
from qwen_agent_kit.errors import EngineError, UsageError

__all__ = ["Draw", "Logprob", "Sampler", "make_sampler"]

GREEDY_BELOW = 1e-5
"""Temperatures under this are greedy: dividing float32 logits by them overflows."""

Logprob = tuple[int, float | None, tuple[tuple[int, float], ...]]
"""(id, logprob, alternatives as (id, logprob), likeliest first); the logprob of a forced id is None."""

Mask = Callable[[torch.Tensor], None]


@dataclass(frozen=True, slots=True)
class Draw:
    """One drawn id, with its logprobs where they were asked for."""

    id: int
    logprob: Logprob | None = None


def make_sampler(sampling: Sampling, vocab: int, prompt: Sequence[int] | np.ndarray = ()) -> Sampler:
    """The policy that ``sampling`` describes, built once per request.

    Args:
        sampling: The settings; a temperature of None is greedy.
        vocab: How many logits there are.
        prompt: The ids that the repetition penalty counts as seen.

    Raises:
        UsageError: Where ``logit_bias`` names an id outside the vocabulary.
    """
    for key in sampling.logit_bias or ():
        if key >= vocab:
            raise UsageError(
                f"`logit_bias` names the id {key}; allowed: 0 to {vocab - 1}, the model's vocabulary",
                code="invalid_sampling",
            )
    return Sampler(sampling, vocab, prompt)


class Sampler:
    """Call it with logits for the next id; tell it of every id that was appended with ``accept``."""

    def __init__(self, sampling: Sampling, vocab: int, prompt: Sequence[int] | np.ndarray = ()) -> None:
        temperature = sampling.temperature or 0.0
        self._temperature = temperature if temperature >= GREEDY_BELOW else 0.0
        self._top_k = sampling.top_k or 0
        self._top_p = 1.0 if sampling.top_p is None else sampling.top_p
        self._min_p = sampling.min_p or 0.0
        self._logprobs = sampling.logprobs
        self._random = np.random.Generator(np.random.Philox(_key(sampling.seed)))
        self._adjust = _adjustments(sampling, vocab, prompt)

    def __call__(self, logits: torch.Tensor, mask: Mask | None = None) -> Draw:
        """Draw the next id.

        Args:
            logits: float [vocab]; may be changed.
            mask: The grammar's: sets to -inf, in place, what is not allowed.

        Raises:
            EngineError: Where the logits are not finite, or nothing is allowed.
        """
        logits = logits.detach().float().cpu()
        values = logits.numpy()  # the same memory; numpy's calls cost a tenth of torch's at these sizes
        if not math.isfinite(values.max()):  # the maximum is NaN if any is, +inf if any is, -inf if all are
            raise EngineError("the model's logits are not finite", code="invalid_logits")
        raw = logits.clone() if self._logprobs is not None else logits
        for adjust in self._adjust:
            adjust.apply(values)
        if mask is not None:
            mask(logits)
        chosen = self._greedy(values) if not self._temperature else self._drawn(values)
        return Draw(chosen, None if self._logprobs is None else _logprob(raw, chosen, self._logprobs))

    @property
    def reports(self) -> bool:
        """Whether logprobs were asked for."""
        return self._logprobs is not None

    def accept(self, token: int) -> None:
        """Count an id that was appended, sampled or forced."""
        for adjust in self._adjust:
            adjust.accept(token)

    def forced(self, token: int) -> Logprob | None:
        """What is reported for an id that was appended without being sampled."""
        return None if self._logprobs is None else (token, None, ())

    def _greedy(self, values: Values) -> int:
        chosen = int(values.argmax())
        if not math.isfinite(values[chosen]):
            raise _dead_end()
        return chosen

    def _drawn(self, values: Values) -> int:
        if not math.isfinite(values.max()):
            raise _dead_end()
        chance = self._random.random()
        return draw(values, self._temperature, self._top_k, self._top_p, self._min_p, chance)


def _key(seed: int | None) -> int | None:
    """Philox takes no negative seeds; None draws one from the system."""
    return None if seed is None else seed % 2**64


def _dead_end() -> EngineError:
    return EngineError("no token is allowed here: the grammar and `logit_bias` leave nothing", code="no_token_allowed")


def _logprob(raw: torch.Tensor, chosen: int, alternatives: int) -> Logprob:
    logprobs = raw.log_softmax(0)
    top: tuple[tuple[int, float], ...] = ()
    if alternatives:
        best = torch.topk(logprobs, min(alternatives, logprobs.numel()))
        top = tuple(zip(best.indices.tolist(), best.values.tolist(), strict=True))
    return chosen, float(logprobs[chosen]), top


# --- what changes logits before the draw, in place ---------------------------------------------------------------


class _Bias:
    def __init__(self, bias: dict[int, float]) -> None:
        self._ids = np.array(list(bias), dtype=np.intp)
        self._values = np.array(list(bias.values()), dtype=np.float32)

    def apply(self, values: Values) -> None:
        values[self._ids] += self._values

    def accept(self, token: int) -> None:
        """Constant: nothing to count."""


class _Repetition:
    def __init__(self, penalty: float, vocab: int, prompt: Sequence[int] | np.ndarray) -> None:
        self._penalty = np.float32(penalty)
        self._seen = np.zeros(vocab, dtype=bool)
        if len(prompt):
            ids = np.asarray(prompt)
            self._seen[ids[ids < vocab]] = True

    def apply(self, values: Values) -> None:
        ids = np.flatnonzero(self._seen)
        found = values[ids]
        values[ids] = np.where(found < 0, found * self._penalty, found / self._penalty)

    def accept(self, token: int) -> None:
        self._seen[token] = True


class _Counts:
    """Frequency and presence: ``logit -= count * frequency + (count > 0) * presence``."""

    def __init__(self, frequency: float, presence: float, vocab: int) -> None:
        self._frequency, self._presence = frequency, presence
        self._taken = np.zeros(vocab, dtype=np.float32)
        self._present: set[int] = set()

    def apply(self, values: Values) -> None:
        np.subtract(values, self._taken, out=values)

    def accept(self, token: int) -> None:
        self._taken[token] += self._frequency + (0.0 if token in self._present else self._presence)
        self._present.add(token)


Adjustment = _Bias | _Repetition | _Counts


def _adjustments(sampling: Sampling, vocab: int, prompt: Sequence[int] | np.ndarray) -> list[Adjustment]:
    chosen: list[Adjustment] = []
    if sampling.logit_bias:
        chosen.append(_Bias(dict(sampling.logit_bias)))
    if sampling.repetition_penalty is not None and sampling.repetition_penalty != 1.0:
        chosen.append(_Repetition(sampling.repetition_penalty, vocab, prompt))
    if sampling.frequency_penalty or sampling.presence_penalty:
        chosen.append(_Counts(sampling.frequency_penalty or 0.0, sampling.presence_penalty or 0.0, vocab))
    return chosen
