"""One request as the engine's thread sees it: what it was asked, how far it is, what becomes of each id."""

from __future__ import annotations

import queue
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from qwen_agent_kit.backends import Piece, Usage
from qwen_agent_kit.engine.budget import SpanCounter
from qwen_agent_kit.engine.cache import Content, Lease, Live
from qwen_agent_kit.engine.repetition import RepetitionWatch
from qwen_agent_kit.engine.sampling import Logprob, Sampler
from qwen_agent_kit.errors import EngineError, QakError

if TYPE_CHECKING:
    from qwen_agent_kit.engine.detokenize import Detokenizer
    from qwen_agent_kit.engine.grammar import GrammarState

__all__ = ["End", "Request", "Rules", "Token"]


@dataclass(frozen=True, slots=True)
class Token:
    """One id on its way to the consumer; ``pieces`` where the engine's thread had to decode it."""

    id: int
    pieces: Sequence[Piece] | None = None


@dataclass(frozen=True, slots=True)
class End:
    """The last thing a consumer gets: the text still held back, or the error."""

    pieces: Sequence[Piece] | None = None
    error: QakError | None = None


@dataclass(frozen=True)
class Rules:
    """What decides the next id and the end.

    Args:
        sampler: Draws ids.
        max_tokens: The most ids to append.
        eos: The ids that end a turn.
        grammar: What the text must follow.
        span: A span that is closed after so many ids.
        text: Where stop strings were asked for, the detokenizer that looks for them.
        watch: Ends a loop.
        deadline: On ``time.monotonic()``.
    """

    sampler: Sampler
    max_tokens: int
    eos: frozenset[int]
    grammar: GrammarState | None = None
    span: SpanCounter | None = None
    text: Detokenizer | None = None
    watch: RepetitionWatch | None = None
    deadline: float | None = None


@dataclass
class Clock:
    """When things happened, on ``time.perf_counter()``."""

    submitted: float = field(default_factory=time.perf_counter)
    first: float | None = None
    last: float | None = None
    prefill: float = 0.0


class Request:
    """Made by the thread that submits; from then on only the engine's thread changes it, except ``cancelled``."""

    def __init__(self, content: Content, rules: Rules) -> None:
        self.content = content
        self.rules = rules
        self.out: queue.SimpleQueue[Token | End] = queue.SimpleQueue()
        self.wake: Callable[[], None] | None = None
        self.cancelled = False
        self.finish_reason: str | None = None
        self.live: Live | None = None
        self.ids: list[int] = []
        self.logprobs: list[Logprob] = []
        self.clock = Clock()
        self._cached: int | None = None
        self._break: str | None = None
        self._computed = 0
        self._forced = 0
        self._drew = False

    @property
    def done(self) -> bool:
        """Whether the end was sent."""
        return self.finish_reason is not None

    @property
    def prefilling(self) -> bool:
        """Whether no logits were drawn from yet."""
        return not self._drew

    @property
    def late(self) -> bool:
        """Whether its deadline has passed."""
        return self.rules.deadline is not None and time.monotonic() >= self.rules.deadline

    def usage(self) -> Usage:
        """What it has cost so far; exact once it is done."""
        clock = self.clock
        since = clock.submitted
        return Usage(
            prompt_tokens=len(self.content.ids),
            cached_tokens=self._cached,
            computed_tokens=self._computed,
            generated_tokens=len(self.ids),
            forced_tokens=self._forced,
            first_token_ms=None if clock.first is None else 1000 * (clock.first - since),
            prefill_ms=1000 * clock.prefill,
            decode_ms=0.0 if clock.first is None or clock.last is None else 1000 * (clock.last - clock.first),
            prefix_break=self._break,
        )

    # --- the engine's thread -------------------------------------------------------------------------------------

    def start(self, lease: Lease) -> None:
        """It was admitted: it owns a sequence now."""
        self.live, self._cached, self._break = lease.live, lease.cached, lease.prefix_break
        self._force()

    def computed(self, positions: int, seconds: float) -> None:
        """So many positions went through the layers."""
        self._computed += positions
        if self.prefilling:
            self.clock.prefill += seconds

    def take(self, logits: torch.Tensor) -> None:
        """Draw the next id from ``logits`` [vocab], and append what is forced after it."""
        self._drew = True
        rules = self.rules
        draw = rules.sampler(logits, self._mask if rules.grammar is not None else None)
        self._append(draw.id, draw.logprob)
        self._force()

    def finish(self, reason: str, error: QakError | None = None) -> None:
        """Send the end; only the first call counts."""
        if self.done:
            return
        self.finish_reason = reason
        text = self.rules.text
        self._send(End(None if text is None or error is not None else text.flush(), error))

    def fail(self, error: BaseException) -> None:
        """End with an error; one that is not ours is wrapped, its text kept out."""
        if not isinstance(error, QakError):
            wrapped = EngineError(f"the model's step failed with {type(error).__name__}", code="step_failed")
            wrapped.__cause__ = error
            error = wrapped
        self.finish("error", error)

    def _mask(self, logits: torch.Tensor) -> None:
        assert self.rules.grammar is not None, "a mask is only asked for under a grammar"
        self.rules.grammar.mask(logits, self.rules.max_tokens - len(self.ids))

    def _force(self) -> None:
        """Append ids that need no logits; they go through the layers together with the next step."""
        while not self.done and (ids := self._due()):
            for token in ids:
                self._forced += 1
                if self._append(token, self.rules.sampler.forced(token)):
                    return

    def _due(self) -> Sequence[int]:
        rules = self.rules
        if rules.span is not None and (closing := rules.span.due()):
            return closing
        return rules.grammar.forced() if rules.grammar is not None else ()

    def _append(self, token: int, logprob: Logprob | None) -> bool:
        """Add an id and hand it over; True where it was the last."""
        rules, live = self.rules, self.live
        assert live is not None, "ids are only appended to a request that was admitted"
        if rules.grammar is not None:
            rules.grammar.accept(token)
        rules.sampler.accept(token)
        if rules.span is not None:
            rules.span.accept(token)
        live.append(token)
        self.ids.append(token)
        if logprob is not None:
            self.logprobs.append(logprob)
        self.clock.last = time.perf_counter()
        if self.clock.first is None:
            self.clock.first = self.clock.last
        self._send(Token(token, None if rules.text is None else rules.text.feed(token)))
        reason = self._reason(token)
        if reason is not None:
            self.finish(reason)
        return reason is not None

    def _reason(self, token: int) -> str | None:
        rules = self.rules
        if token in rules.eos or (rules.text is not None and rules.text.stopped):
            return "stop"
        if rules.grammar is not None and rules.grammar.stopped:
            return "stop"
        if rules.watch is not None and rules.watch.accept(self.ids):
            return "repetition"
        return "length" if len(self.ids) >= rules.max_tokens else None

    def _send(self, item: Token | End) -> None:
        self.out.put(item)
        if self.wake is not None:
            self.wake()
