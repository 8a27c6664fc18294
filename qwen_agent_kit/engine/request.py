"""One request as the engine's thread sees it: what it was asked, how far it is, what becomes of each id."""

from __future__ import annotations

import itertools
import queue
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from qwen_agent_kit.backends import Piece, Usage
from qwen_agent_kit.engine.budget import SpanCounter
from qwen_agent_kit.engine.cache import Lease
from qwen_agent_kit.engine.content import Content
from qwen_agent_kit.engine.costs import Costs
from qwen_agent_kit.engine.drafts import Drafter
from qwen_agent_kit.engine.live import Live
from qwen_agent_kit.engine.media import Slot
from qwen_agent_kit.engine.repetition import RepetitionWatch
from qwen_agent_kit.engine.sampling import Logprob, Sampler
from qwen_agent_kit.errors import EngineError, QakError

if TYPE_CHECKING:
    from qwen_agent_kit.engine.detokenize import Detokenizer
    from qwen_agent_kit.engine.grammar import GrammarState

__all__ = ["End", "Request", "Rules", "Token"]

MOST_UNREAD = 32_768
"""Ids that may wait for their consumer: 256 KiB, as they are kept anyway."""

MOST_UNREAD_TEXT = 4_096
"""The same where they wait as text: under 1 MiB."""

_NUMBERS = itertools.count()


@dataclass(frozen=True, slots=True)
class Token:
    """One id on its way to the consumer with its text, where the engine's thread had to decode it."""

    id: int
    pieces: Sequence[Piece]


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
        forcing: Whether what the grammar forces is appended without being drawn.
    """

    sampler: Sampler
    max_tokens: int
    eos: frozenset[int]
    grammar: GrammarState | None = None
    span: SpanCounter | None = None
    text: Detokenizer | None = None
    watch: RepetitionWatch | None = None
    deadline: float | None = None
    forcing: bool = True


@dataclass
class Clock:
    """When things happened, on ``time.perf_counter()``."""

    submitted: float = field(default_factory=time.perf_counter)
    first: float | None = None
    drawn: float | None = None
    last: float | None = None
    prefill: float = 0.0


class Request:
    """Made by the thread that submits; from then on only the engine's thread changes it, except ``cancelled``."""

    def __init__(self, content: Content, rules: Rules, priority: int = 0, *, ahead: bool = False) -> None:
        self.ahead = ahead  # nobody waits for it: it runs while there is nothing else, and ends where there is
        self.content = content
        self.rules = rules
        self.priority = priority
        self.rank = (-priority, next(_NUMBERS))
        self.out: queue.SimpleQueue[int | Token | End] = queue.SimpleQueue()
        self.wake: Callable[[], None] | None = None
        self.cancelled = False
        self.finish_reason: str | None = None
        self.live: Live | None = None
        self.ids: list[int] = []
        self.logprobs: list[Logprob] = []
        self.clock = Clock()
        self.preemptions = 0
        self._prompt = len(content.ids)
        self._admitted = 0
        self._cached: int | None = None
        self._break: str | None = None
        self._ahead = 0
        self._computed = 0
        self._forced = 0
        self._drafter = Drafter()
        self._drew = False
        self._unsent: list[int | Token | End] = []

    @property
    def done(self) -> bool:
        """Whether the end was sent."""
        return self.finish_reason is not None

    @property
    def prefilling(self) -> bool:
        """Whether ids that it was admitted with are still to be computed."""
        return self.live is not None and self.live.length < self._admitted

    @property
    def late(self) -> bool:
        """Whether its deadline has passed."""
        return self.rules.deadline is not None and time.monotonic() >= self.rules.deadline

    def usage(self) -> Usage:
        """What it has cost so far; exact once it is done."""
        clock = self.clock
        since = clock.submitted
        begun = clock.first if clock.drawn is None else clock.drawn  # what is forced at once comes before the prefill
        return Usage(
            prompt_tokens=self._prompt,
            cached_tokens=self._cached,
            computed_tokens=self._computed,
            generated_tokens=len(self.ids),
            forced_tokens=self._forced,
            first_token_ms=None if clock.first is None else 1000 * (clock.first - since),
            prefill_ms=1000 * clock.prefill,
            decode_ms=0.0 if begun is None or clock.last is None else 1000 * max(0.0, clock.last - begun),
            prefix_break=self._break,
            drafted_tokens=self._drafter.drafted,
            accepted_tokens=self._drafter.accepted,
            ahead_tokens=self._ahead,
        )

    # --- the engine's thread -------------------------------------------------------------------------------------

    def start(self, lease: Lease) -> None:
        """It was admitted, the first time or again: it owns a sequence now."""
        self.live = lease.live
        self._admitted = lease.live.count
        if self._cached is None:
            self._cached, self._break, self._ahead = lease.cached, lease.prefix_break, lease.ahead
            if self.ahead:
                lease.live.ahead = lease.cached
            self._force()

    def preempt(self) -> None:
        """It gives its sequence back, and will go on from the same ids."""
        assert self.live is not None, "only running requests give way"
        self.content = self.live.content()
        self.live = None
        self.preemptions += 1
        self.deliver()

    def draft(self, costs: Costs, rows: int, room: int) -> list[int]:
        """Ids to compute on trial beside ``rows``, at most ``room``."""
        rules, live = self.rules, self.live
        assert live is not None, "only running requests draft"
        most = min(room, rules.max_tokens - len(self.ids) - 1)
        fits = len if rules.grammar is None else rules.grammar.fitting
        return self._drafter.propose(live.ids(0, live.count), costs, rows, most, fits) if most > 0 else []

    def computed(self, positions: int, seconds: float) -> None:
        """So many positions went through the layers."""
        self._computed += positions
        if not self._drew:
            self.clock.prefill += seconds

    def advance(self, rows: torch.Tensor, draft: Sequence[int]) -> None:
        """Draw the next id, and the ones after it as long as the draft comes true.

        Args:
            rows: Logits [1 + len(draft), vocab], the first after the last id.
            draft: What was computed on trial behind that.
        """
        live = self.live
        assert live is not None, "only running requests draw"
        base, row = live.count, 0
        self._drafter.begin(draft)
        while True:
            self.take(rows[row])
            if self.done or not self._drafter.holds:
                break
            row = live.count - base
        self._drafter.end()

    def take(self, logits: torch.Tensor) -> None:
        """Draw the next id from ``logits`` [vocab], and append what is forced after it."""
        self._drew = True
        rules = self.rules
        draw = rules.sampler(logits, self._mask if rules.grammar is not None else None)
        self.clock.drawn = self.clock.drawn or time.perf_counter()
        self._append(draw.id, draw.logprob)
        self._force()

    def finish(self, reason: str, error: QakError | None = None) -> None:
        """Send the end; only the first call counts."""
        if self.done:
            return
        self.finish_reason = reason
        for span in self.content.media:
            if isinstance(span.item, Slot):
                span.item.clear()
        text = self.rules.text
        self._unsent.append(End(None if text is None or error is not None else text.flush(), error))
        self.deliver()

    def deliver(self) -> None:
        """Hand over what was appended.

        That is done once a step, just before the forward: it runs without the interpreter's lock, which consumers that
        wake up would otherwise take from the engine's thread row by row.
        """
        if not self._unsent:
            return
        for item in self._unsent:
            self.out.put(item)
        self._unsent.clear()
        if self.wake is not None:
            self.wake()

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
        return rules.grammar.forced() if rules.grammar is not None and rules.forcing else ()

    def _append(self, token: int, logprob: Logprob | None) -> bool:
        """Add an id and hand it over; True where it was the last."""
        rules, live = self.rules, self.live
        assert live is not None, "ids are only appended to a request that was admitted"
        if rules.grammar is not None:
            rules.grammar.accept(token)
        rules.sampler.accept(token)
        if rules.span is not None:
            rules.span.accept(token)
        if self._drafter.see(token):
            live.length += 1
            self._computed += 1
        live.append(token)
        self.ids.append(token)
        if logprob is not None:
            self.logprobs.append(logprob)
        self.clock.last = time.perf_counter()
        if self.clock.first is None:
            self.clock.first = self.clock.last
        self._unsent.append(token if rules.text is None else Token(token, rules.text.feed(token)))
        unread = self.out.qsize() + len(self._unsent)
        if unread > (MOST_UNREAD if rules.text is None else MOST_UNREAD_TEXT):
            raise EngineError(f"{unread} ids wait for a reader that does not come", code="consumer_stalled")
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
