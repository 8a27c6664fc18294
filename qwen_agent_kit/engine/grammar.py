"""Grammars while sampling: compiled once, then a mask for every token (https://github.com/guidance-ai/llguidance).

A compiled grammar text gives states; a state masks logits in place, takes the sampled ids and says which are forced.
Near the token limit a state allows only what can still be closed in time, at last only the shortest way out.

llguidance bounds itself (fuel for its lexer, items per row, size of the grammar) and compiles in milliseconds, so
nothing here needs a worker process: a catastrophic pattern ends as an error of the compiler or of a step.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from qwen_agent_kit.engine.closing import Endings, allowed, way_out
from qwen_agent_kit.engine.stack import on_deep_stack
from qwen_agent_kit.engine.vocabulary import Vocabulary, read_vocabulary
from qwen_agent_kit.errors import EngineError, SchemaError

__all__ = ["CompiledGrammar", "GrammarCompiler", "GrammarState"]

LONGEST = 2048
"""Where the shortest way through a grammar has more tokens than this, it counts as endless."""

_CANDIDATES = 32
"""How many of the best tokens are looked at one step ahead where the limit is near."""

_WALKS = 3
"""How many of them may each cost a walk of their own."""


class GrammarCompiler:
    """Compiles grammar texts for one vocabulary; thread-safe.

    Args:
        tokenizer_json: The content of ``tokenizer.json``.
        vocab_size: The width of the logits.
        eos: The ids that end a turn; they are allowed wherever the grammar is complete.
        keep: How many compiled grammars are kept.

    Raises:
        ModelError: For a tokenizer that cannot be read.
    """

    def __init__(self, tokenizer_json: bytes | str, vocab_size: int, eos: Sequence[int], *, keep: int = 64) -> None:
        self.vocabulary = read_vocabulary(tokenizer_json, vocab_size, eos)
        self._keep = keep
        self._lock = threading.Lock()
        self._compiled: OrderedDict[bytes, CompiledGrammar] = OrderedDict()

    def compile(self, text: str) -> CompiledGrammar:
        """The grammar of this text, from the cache where it is there.

        Raises:
            SchemaError: For a text that does not compile, or a grammar that nothing fulfils. Where in a schema the
                fault lies is the business of who wrote the text (``dialects.check``).
        """
        key = hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
        with self._lock:
            found = self._compiled.get(key)
            if found is not None:
                self._compiled.move_to_end(key)
                return found
        made = self._made(text)
        with self._lock:
            self._compiled[key] = made
            while len(self._compiled) > self._keep:
                self._compiled.popitem(last=False)
        return made

    def _made(self, text: str) -> CompiledGrammar:
        from llguidance import LLMatcher, LLParserLimits

        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise SchemaError("the grammar holds half a surrogate pair") from error
        limits = LLParserLimits(max_lexer_states=50_000, step_lexer_fuel=1_000_000, verbose_errors=False)
        matcher = on_deep_stack(lambda: LLMatcher(self.vocabulary.tokenizer, text, log_level=0, limits=limits))
        if matcher.is_error():
            raise SchemaError(f"the grammar does not compile: {_brief(matcher.get_error())}")
        reserve, closers, samples = _note(text)
        return CompiledGrammar(self.vocabulary, matcher, reserve, Endings(self.vocabulary, closers, samples))


def _brief(error: str) -> str:
    """The one line of a compiler's message that says what is wrong, without the schema."""
    lines = [line.strip() for line in error.splitlines()]
    named = next((line.removeprefix("error:").strip() for line in lines if line.startswith("error:")), "")
    first = lines[0].split("failed to compile JSON schema:")[-1].strip() if lines else "unknown"
    return (f"{first.rstrip(':')}: {named}" if named else first)[:200]


def _note(text: str) -> tuple[int, list[str], list[str]]:
    """``reserve``, ``closers`` and ``samples`` from the JSON of a first line ``// {...}``; defaults without one."""
    first = text.split("\n", 1)[0]
    note = json.loads(first[3:]) if first.startswith("// {") else {}
    return int(note.get("reserve", 64)), note.get("closers", []), note.get("samples", [])


def _forbid(logits: torch.Tensor, may: np.ndarray) -> None:
    """-inf where ``may`` is false; the way that touches least memory, as this runs for every token."""
    if logits.dtype != torch.float32 or logits.device.type != "cpu":
        logits.masked_fill_(torch.from_numpy(~may).to(logits.device), float("-inf"))
        return
    values, count = logits.detach().numpy(), int(np.count_nonzero(may))
    if count * 8 < may.size:
        ids = np.flatnonzero(may)
        kept = values[ids]
        values.fill(-np.inf)
        values[ids] = kept
    elif (may.size - count) * 8 < may.size:
        values[np.flatnonzero(~may)] = -np.inf
    else:
        np.copyto(values, np.float32(-np.inf), where=~may)


class CompiledGrammar:
    """A grammar that states can be started from; thread-safe.

    Attributes:
        minimum: About the fewest tokens that fulfil it, the end of turn included (an upper bound), or None where no way
            through was found within ``LONGEST``.
    """

    def __init__(self, vocabulary: Vocabulary, matcher: Any, reserve: int, endings: Endings) -> None:
        self.vocabulary, self.reserve, self.endings = vocabulary, reserve, endings
        self._matcher = matcher
        self._lock = threading.Lock()
        self._shortest: list[int] | None = None
        self._known = False

    def start(self) -> GrammarState:
        """A state at the grammar's beginning."""
        way = self._way()
        with self._lock:
            return GrammarState(self, self._matcher.deep_copy(), None if way is None else list(way))

    @property
    def minimum(self) -> int | None:
        way = self._way()
        return None if way is None else len(way)

    def require(self, max_tokens: int) -> None:
        """Refuse a generation that is too short for this grammar before it begins.

        Raises:
            SchemaError: Where the grammar needs more than ``max_tokens``, or nothing fulfils it.
        """
        if self.minimum is None:
            raise SchemaError(f"no text was found that fulfils the grammar within {LONGEST} tokens")
        if self.minimum > max_tokens:
            raise SchemaError(
                f"the grammar needs at least {self.minimum} tokens, max_tokens is {max_tokens}", hint="raise max_tokens"
            )

    def _way(self) -> list[int] | None:
        with self._lock:
            if not self._known:
                self._shortest = way_out(self._matcher, self.vocabulary, self.endings, LONGEST, patience=0.8)
                self._known = True
            return self._shortest


@dataclass
class GrammarState:
    """Where one generation stands in its grammar; used by one thread.

    Args:
        grammar: What it was started from.
        matcher: Its own ``llguidance.LLMatcher``.
    """

    grammar: CompiledGrammar
    matcher: Any
    _way: list[int] | None = None
    _check_at: int = field(default=1 << 60)
    _ahead: dict[int, list[int]] = field(default_factory=dict)

    @property
    def stopped(self) -> bool:
        """Whether the end of turn was taken, or nothing else may come."""
        return bool(self.matcher.is_stopped())

    @property
    def accepting(self) -> bool:
        """Whether what was taken so far is complete."""
        return bool(self.matcher.is_accepting())

    def accept(self, token: int) -> None:
        """Take a sampled or forced id.

        Raises:
            EngineError: For an id that the grammar does not allow here, or a grammar that became too complex.
        """
        if not self.matcher.consume_token(token):
            raise EngineError(f"token {token} does not fit the grammar: {_brief(self.matcher.get_error())}")
        if self._way and self._way[0] == token:
            self._way = self._way[1:]
        self._way = self._ahead.pop(token, self._way)
        self._ahead.clear()

    def forced(self) -> list[int]:
        """The ids that must come next, in the tokenisation that the tokenizer itself gives; often none."""
        ids: list[int] = self.matcher.compute_ff_tokens()
        return ids

    def fitting(self, ids: Sequence[int]) -> int:
        """How many of ``ids`` could come next, one after the other."""
        return int(self.matcher.validate_tokens(list(ids)))

    def mask(self, logits: torch.Tensor, remaining: int) -> None:
        """Set the logits of what may not come next to -inf, in place.

        Args:
            logits: [vocabulary], floating; float32 on the CPU is fastest.
            remaining: How many tokens may still be sampled, this one and the end of turn included.

        Raises:
            EngineError: Where the grammar became too complex at this place.
        """
        may = allowed(self.matcher, self.grammar.vocabulary)
        if self.matcher.is_error():
            raise EngineError(f"the grammar cannot go on: {_brief(self.matcher.get_error())}")
        if remaining <= self._check_at:
            may = self._guarded(may, logits, remaining)
        _forbid(logits, may)

    def _guarded(self, may: np.ndarray, logits: torch.Tensor, remaining: int) -> np.ndarray:
        """Of what may come next, what can still be closed within ``remaining`` tokens."""
        way = self._way_out(remaining)
        if way is None:
            self._check_at = remaining - 8
            return may
        slack, reserve = remaining - len(way), self.grammar.reserve
        if slack > reserve:
            self._check_at = remaining - max(1, (slack - reserve) // (reserve + 1))
            return may
        self._check_at = remaining
        kept = np.zeros_like(may)
        if slack > 0 or self.accepting:
            kept[self._closable(may, logits, remaining)] = True
        if not kept.any():
            kept[way[0]] = True
        return kept

    def _way_out(self, limit: int) -> list[int] | None:
        """A way to the end from here: the last one where it still leads there, else a new one."""
        if self._way is not None and self._leads(self._way, limit):
            return self._way
        vocabulary, endings = self.grammar.vocabulary, self.grammar.endings
        self._way = way_out(self.matcher, vocabulary, endings, limit, patience=0.3) or way_out(
            self.matcher, vocabulary, endings, 2 * limit + 64, patience=0.3
        )
        return self._way

    def _leads(self, way: list[int], limit: int) -> bool:
        return bool(way) and len(way) <= limit and self.matcher.validate_tokens(way) == len(way)

    def _closable(self, may: np.ndarray, logits: torch.Tensor, remaining: int) -> list[int]:
        """The likeliest ids after which the grammar can still be closed in time."""
        ids = np.flatnonzero(may)
        values = logits.detach().float().cpu().numpy()[ids]
        few = min(_CANDIDATES, ids.size)
        best = ids[np.argpartition(-values, few - 1)[:few]]
        kept, walks = [], _WALKS
        for token in sorted(best.tolist(), key=lambda i: -float(logits[i])):
            fits, walked = self._fits(token, remaining - 1, walk=walks > 0)
            walks -= walked
            if fits:
                kept.append(token)
        return kept

    def _fits(self, token: int, remaining: int, *, walk: bool) -> tuple[bool, bool]:
        """Whether the grammar can be closed within ``remaining`` tokens after ``token``; whether that took a walk."""
        if token in self.grammar.vocabulary.eos:
            return True, False
        ahead = self.matcher.deep_copy()
        if not ahead.consume_token(token):
            return False, False
        way = self._way or []
        # Text that was complete before and after may be cut anywhere: only a call or a value needs its end of turn.
        if ahead.is_accepting() and (remaining >= 1 or self.accepting):
            return True, False
        for known in (way, way[1:]):
            if known and len(known) <= remaining and ahead.validate_tokens(known) == len(known):
                return True, False
        if not walk:
            return False, False
        found = way_out(ahead, self.grammar.vocabulary, self.grammar.endings, remaining, patience=0.1)
        if found is not None:
            self._ahead[token] = found
        return found is not None, True
