"""The draw itself: which ids top-k, top-p and min-p leave of a row of logits, and one of them at random.

This runs for every token over vocabularies of 50,000 to 150,000 ids, so little more than one pass is made over all of
them: what can be among the likeliest is found first, and only that is sorted.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

__all__ = ["Values", "draw"]

FIRST_TRY = 1024
"""How many of the likeliest ids are sorted before a nucleus is looked for in more."""

_SLICE = 64

Values = npt.NDArray[np.float32]
Ids = npt.NDArray[np.intp]


def draw(values: Values, temperature: float, top_k: int, top_p: float, min_p: float, chance: float) -> int:
    """An id by the inverse of the cumulative distribution, in float64.

    Args:
        values: Logits [n], the largest finite.
        temperature: Above 0.
        top_k: Only so many of the likeliest, and what ties with the last; all where 0.
        top_p: Only the smallest set that holds this mass.
        min_p: Only ids at least this share as likely as the likeliest.
        chance: From 0 up to 1, not 1 itself.
    """
    ids = _likeliest(values, top_k) if 0 < top_k < len(values) else None
    kept = values if ids is None else values[ids]
    # The likeliest has score 0, so nothing overflows.
    scores = (kept - values.max()) / np.float32(temperature)
    weights = np.exp(scores)
    if top_p < 1.0:
        within = _nucleus(weights, top_p)
        ids = within if ids is None else ids[within]
        scores, weights = scores[within], weights[within]
    if min_p > 0.0:
        weights[scores < math.log(min_p)] = 0
    at = _pick(weights, chance)
    return at if ids is None else int(ids[at])


def _likeliest(values: Values, k: int) -> Ids:
    """The ids of the k largest and whatever ties with the last, in order; those at -inf are left out."""
    least = _reached(values, k)
    ids = np.flatnonzero(values >= least if least > -math.inf else values > -math.inf)
    if len(ids) <= k:
        return ids
    found = values[ids]
    tied: Ids = ids[found >= np.partition(found, len(ids) - k)[len(ids) - k]]
    return tied


def _reached(values: Values, k: int) -> float:
    """A value that at least k reach, and not many more: the k-th largest among the peaks of disjoint slices."""
    slices = len(values) // _SLICE
    if slices < 2 * k:
        return float(np.partition(values, len(values) - k)[len(values) - k])
    peaks = values[: slices * _SLICE].reshape(_SLICE, slices).max(axis=0)
    return float(np.partition(peaks, slices - k)[slices - k])


def _nucleus(weights: Values, p: float) -> Ids:
    """Indices, likeliest first, of the smallest set that holds at least the share p of all weight; never empty."""
    mass = p * float(weights.sum(dtype=np.float64))
    size = FIRST_TRY
    while True:
        ids = _likeliest(weights, size) if size < len(weights) else np.arange(len(weights))
        ids = ids[np.argsort(-weights[ids])]
        reached = np.cumsum(weights[ids], dtype=np.float64)
        if size >= len(weights) or reached[-1] >= mass:
            break
        size *= 8
    return ids[(reached - weights[ids]) < mass]  # the mass before the first is 0, so it is always kept


def _pick(weights: Values, chance: float) -> int:
    cumulative = np.cumsum(weights, dtype=np.float64)
    at = int(np.searchsorted(cumulative, chance * cumulative[-1], side="right"))
    if at < len(cumulative):
        return at
    return int(np.searchsorted(cumulative, cumulative[-1]))  # rounding met the end: the last one with any mass
