"""The short way to the end of a grammar, found by walking a copy of the matcher.

A grammar's masks say what may come next, not how far the end is. So a copy is walked greedily: the end of turn where it
is allowed, what is forced, then whatever closes most. The walk is an upper bound on what is left, never a proof of the
least; where one order of preference runs in circles the next is tried.
"""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from qwen_agent_kit.engine.vocabulary import CLOSING, Vocabulary

__all__ = ["Endings", "allowed", "way_out"]

_ORDERS = ("outside", "inside", "patterned", "random", "random", "random")

_RANDOM = 160
"""The most ids of a walk without preferences."""


class Endings:
    """Texts that may end something, as runs of ids.

    Args:
        vocabulary: Tokenises them.
        closers: What ends free text.
        samples: Texts that fulfil a pattern; from inside a string each of their ends is tried, the shortest first.
    """

    def __init__(self, vocabulary: Vocabulary, closers: Sequence[str] = (), samples: Sequence[str] = ()) -> None:
        def ids(text: str) -> list[int]:
            run: list[int] = vocabulary.tokenizer.tokenize_str(text)
            return run

        ends = sorted(dict.fromkeys(text[i:] for text in samples for i in range(len(text))), key=len)
        # A quote fits the middle of raw text too, where it ends nothing; a whole end tag fits nothing else.
        quoted = [text for text in ends if text.endswith('"')]
        self.closers = [ids(text) for text in (*closers, *ends) if text and text not in quoted]
        self.samples = [ids(text) for text in quoted]


def allowed(matcher: Any, vocabulary: Vocabulary) -> np.ndarray:
    """Which ids may come next, bool [size]. After an error of the matcher only the end of turn may."""
    bits = np.frombuffer(matcher.compute_bitmask(), dtype=np.uint8)
    return np.unpackbits(bits, count=vocabulary.size, bitorder="little").view(np.bool_)


def way_out(matcher: Any, vocabulary: Vocabulary, endings: Endings, limit: int, *, patience: float) -> list[int] | None:
    """Ids that take a copy of ``matcher`` to its end, the end of turn included; None where none was found.

    Args:
        matcher: An ``llguidance.LLMatcher``; it is not changed.
        vocabulary: Its vocabulary.
        endings: Texts that may end something.
        limit: The most ids the way may have.
        patience: Seconds that the search may take; catastrophic patterns make each step slow.
    """
    best: list[int] | None = None
    until = time.monotonic() + patience
    for seed, order in enumerate(_ORDERS):
        if (best is not None and order == "random") or time.monotonic() > until:
            break
        most = min(limit, _RANDOM) if order == "random" else limit if best is None else len(best) - 1
        found = _walk(matcher.deep_copy(), vocabulary, endings, most, order, seed, until)
        if found is not None:
            best = found
            if order == "outside" or len(best) <= 2:
                break
    return best


def _walk(
    matcher: Any, vocabulary: Vocabulary, endings: Endings, limit: int, order: str, seed: int, until: float
) -> list[int] | None:
    way: list[int] = []
    choice = random.Random(seed)  # noqa: S311  # a walk that can be repeated, nothing secret
    while len(way) < limit and time.monotonic() < until:
        if matcher.is_accepting():
            return [*way, vocabulary.eos[0]]
        run = _next(matcher, vocabulary, endings, order, choice)
        if not run or len(way) + len(run) >= limit or not matcher.consume_tokens(run):
            return None
        way += run
    return None


def _next(matcher: Any, vocabulary: Vocabulary, endings: Endings, order: str, choice: random.Random) -> list[int]:
    forced: list[int] = matcher.compute_ff_tokens()
    if forced:
        return forced
    may = allowed(matcher, vocabulary)
    if matcher.is_error():
        return []
    run = _fitting(matcher, may, endings.closers)
    if run:
        return run
    ids = np.flatnonzero(may)
    if not ids.size:
        return []
    ranks = vocabulary.inside if may[vocabulary.marks].any() else vocabulary.outside
    ranks = {"inside": vocabulary.inside, "patterned": vocabulary.patterned}.get(order, ranks)
    best = int(ids[ranks[ids].argmin()])
    if ranks[best] < CLOSING:
        return [best]
    run = _fitting(matcher, may, endings.samples)
    return run or [best if order != "random" else _drawn(ids, may, vocabulary, choice)]


def _fitting(matcher: Any, may: np.ndarray, runs: Sequence[list[int]]) -> list[int]:
    """The first run that may come next as a whole."""
    return next((run for run in runs if may[run[0]] and matcher.validate_tokens(run) == len(run)), [])


def _drawn(ids: np.ndarray, may: np.ndarray, vocabulary: Vocabulary, choice: random.Random) -> int:
    """Any single character, so that no pattern holds the walk for ever."""
    singles = vocabulary.singles[may[vocabulary.singles]]
    of = singles if singles.size else ids
    return int(of[choice.randrange(of.size)])
