"""The short way to the end of a grammar, found by walking a copy of the matcher.

A grammar's masks say what may come next, not how far the end is. So a copy is walked greedily: the end of turn where it
is allowed, what is forced, then whatever closes most. The walk is an upper bound on what is left, never a proof of the
least; where one order of preference runs in circles the next is tried.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import numpy as np

from qwen_agent_kit.engine.vocabulary import Vocabulary

__all__ = ["allowed", "way_out"]

_ORDERS = ("outside", "inside", "patterned", "random", "random", "random", "random")


def allowed(matcher: Any, vocabulary: Vocabulary) -> np.ndarray:
    """Which ids may come next, bool [size]. After an error of the matcher only the end of turn may."""
    bits = np.frombuffer(matcher.compute_bitmask(), dtype=np.uint8)
    return np.unpackbits(bits, count=vocabulary.size, bitorder="little").view(np.bool_)


def way_out(matcher: Any, vocabulary: Vocabulary, closers: Sequence[Sequence[int]], limit: int) -> list[int] | None:
    """Ids that take a copy of ``matcher`` to its end, the end of turn included; None where none was found.

    Args:
        matcher: An ``llguidance.LLMatcher``; it is not changed.
        vocabulary: Its vocabulary.
        closers: Runs of ids that end free text.
        limit: The most ids the way may have.
    """
    best: list[int] | None = None
    for seed, order in enumerate(_ORDERS):
        if best is not None and order == "random":
            break
        found = _walk(matcher.deep_copy(), vocabulary, closers, limit if best is None else len(best) - 1, order, seed)
        if found is not None:
            best = found
            if order == "outside" or len(best) <= 2:
                break
    return best


def _walk(
    matcher: Any, vocabulary: Vocabulary, closers: Sequence[Sequence[int]], limit: int, order: str, seed: int
) -> list[int] | None:
    way: list[int] = []
    choice = random.Random(seed)  # noqa: S311  # a walk that can be repeated, nothing secret
    while len(way) < limit:
        if matcher.is_accepting():
            return [*way, vocabulary.eos[0]]
        run = _next(matcher, vocabulary, closers, order, choice)
        if not run or len(way) + len(run) >= limit or not matcher.consume_tokens(run):
            return None
        way += run
    return None


def _next(
    matcher: Any, vocabulary: Vocabulary, closers: Sequence[Sequence[int]], order: str, choice: random.Random
) -> list[int]:
    forced: list[int] = matcher.compute_ff_tokens()
    if forced:
        return forced
    may = allowed(matcher, vocabulary)
    for closer in closers:
        if may[closer[0]] and matcher.validate_tokens(list(closer)) == len(closer):
            return list(closer)
    ids = np.flatnonzero(may)
    if matcher.is_error() or not ids.size:
        return []
    if order == "random":
        return [_drawn(ids, may, vocabulary, choice)]
    string = vocabulary.backslash is not None and may[vocabulary.backslash]
    ranks = vocabulary.inside if string and order == "outside" else getattr(vocabulary, order)
    return [int(ids[ranks[ids].argmin()])]


def _drawn(ids: np.ndarray, may: np.ndarray, vocabulary: Vocabulary, choice: random.Random) -> int:
    """The quote where it ends a string, else any single character, so that no pattern holds the walk for ever."""
    best = int(ids[vocabulary.inside[ids].argmin()])
    singles = vocabulary.singles[may[vocabulary.singles]]
    if vocabulary.inside[best] < 200 or not singles.size:
        return best
    return int(singles[choice.randrange(singles.size)])
