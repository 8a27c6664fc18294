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
from qwen_agent_kit.errors import EngineError, UsageError

__all__ = ["Draw", "Logprob", "Sampler", "make_sampler"]

GREEDY_BELOW = 1e-5
"""Temperatures under this are greedy: dividing float32 logits by them overflows."""

FIRST_TRY = 1024
"""How many of the likeliest ids are sorted before a nucleus is looked for in all of them."""

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
        if not math.isfinite(float(logits.max())):  # the maximum is NaN if any is, +inf if any is, -inf if all are
            raise EngineError("the model's logits are not finite", code="invalid_logits")
        raw = logits.clone() if self._logprobs is not None else logits
        for adjust in self._adjust:
            logits = adjust.apply(logits)
        if mask is not None:
            mask(logits)
        chosen = self._greedy(logits) if not self._temperature else self._drawn(logits)
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

    def _greedy(self, logits: torch.Tensor) -> int:
        values = logits.numpy()  # numpy's argmax is ten times as fast as torch's on a CPU
        chosen = int(values.argmax())
        if not math.isfinite(values[chosen]):
            raise _dead_end()
        return chosen

    def _drawn(self, logits: torch.Tensor) -> int:
        top = logits.max()
        if not math.isfinite(float(top)):
            raise _dead_end()
        scores = (logits - top) / self._temperature  # the likeliest is 0, so nothing overflows
        ids, scores = _top_k(scores, self._top_k)
        if self._top_p < 1.0:
            within, scores = _top_p(scores, self._top_p)
            ids = within if ids is None else ids[within]
        if self._min_p > 0.0:  # p >= min_p * max(p), and max(p) is where the score is 0
            scores = scores.masked_fill(scores < math.log(self._min_p), -math.inf)
        index = self._pick(scores)
        return index if ids is None else int(ids[index])

    def _pick(self, scores: torch.Tensor) -> int:
        cumulative = scores.exp().double().cumsum(0).numpy()
        at = int(np.searchsorted(cumulative, self._random.random() * cumulative[-1], side="right"))
        if at < len(cumulative):
            return at
        return int(np.searchsorted(cumulative, cumulative[-1]))  # rounding met the end: the last one with any mass


def _key(seed: int | None) -> int | None:
    """Philox takes no negative seeds; None draws one from the system."""
    return None if seed is None else seed % 2**64


def _dead_end() -> EngineError:
    return EngineError("no token is allowed here: the grammar and `logit_bias` leave nothing", code="no_token_allowed")


def _top_k(scores: torch.Tensor, k: int) -> tuple[torch.Tensor | None, torch.Tensor]:
    """(ids, scores) of the k best and whatever ties with the last; ids None for all."""
    if not 0 < k < scores.numel():
        return None, scores
    least = torch.topk(scores, k).values[-1]
    ids = (scores >= least).nonzero().flatten()
    return ids, scores[ids]


def _top_p(scores: torch.Tensor, p: float) -> tuple[torch.Tensor, torch.Tensor]:
    """(indices, scores), likeliest first, of the smallest set that holds at least the mass ``p``; never empty."""
    mass = scores.softmax(0)
    size = min(FIRST_TRY, scores.numel())
    while True:
        top = torch.topk(mass, size)
        reached = top.values.double().cumsum(0)
        if size == scores.numel() or float(reached[-1]) >= p:
            break
        size = min(size * 8, scores.numel())
    keep = (reached - top.values.double()) < p  # the mass before the first is 0, so it is always kept
    indices = top.indices[keep]
    return indices, scores[indices]


def _logprob(raw: torch.Tensor, chosen: int, alternatives: int) -> Logprob:
    logprobs = raw.log_softmax(0)
    top: tuple[tuple[int, float], ...] = ()
    if alternatives:
        best = torch.topk(logprobs, min(alternatives, logprobs.numel()))
        top = tuple(zip(best.indices.tolist(), best.values.tolist(), strict=True))
    return chosen, float(logprobs[chosen]), top


# --- what changes logits before the draw -------------------------------------------------------------------------


class _Bias:
    def __init__(self, bias: dict[int, float]) -> None:
        self._ids = torch.tensor(list(bias), dtype=torch.long)
        self._values = torch.tensor(list(bias.values()), dtype=torch.float32)

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        return logits.index_add(0, self._ids, self._values)

    def accept(self, token: int) -> None:
        """Constant: nothing to count."""


class _Repetition:
    def __init__(self, penalty: float, vocab: int, prompt: Sequence[int] | np.ndarray) -> None:
        self._penalty = penalty
        self._seen = np.zeros(vocab, dtype=bool)
        if len(prompt):
            ids = np.asarray(prompt)
            self._seen[ids[ids < vocab]] = True

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        ids = torch.from_numpy(np.flatnonzero(self._seen))
        score = logits[ids]
        return logits.index_copy(0, ids, torch.where(score < 0, score * self._penalty, score / self._penalty))

    def accept(self, token: int) -> None:
        self._seen[token] = True


class _Counts:
    """Frequency and presence: ``logit -= count * frequency + (count > 0) * presence``."""

    def __init__(self, frequency: float, presence: float, vocab: int) -> None:
        self._frequency, self._presence = frequency, presence
        self._taken = torch.zeros(vocab)
        self._values = self._taken.numpy()  # the same memory
        self._present: set[int] = set()

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        return logits - self._taken

    def accept(self, token: int) -> None:
        self._values[token] += self._frequency + (0.0 if token in self._present else self._presence)
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
