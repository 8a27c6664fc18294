"""The local ``ChatModel``: a prompt, an engine and a parser around one loaded model."""

from __future__ import annotations

import contextlib
import itertools
import statistics
import threading
import uuid
from collections import deque
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal

from qwen_agent_kit import dialects
from qwen_agent_kit.backends import (
    CallDone,
    Capabilities,
    ChatRequest,
    Delta,
    Finish,
    Prompt,
    Sampling,
    SpanBudget,
    Usage,
)
from qwen_agent_kit.catalog import dialect_of
from qwen_agent_kit.errors import QakError, SchemaError, UsageError
from qwen_agent_kit.host.media import check_items, check_pixels
from qwen_agent_kit.messages import Message, Text
from qwen_agent_kit.parse import StreamParser
from qwen_agent_kit.prompt import PromptRenderer, Rendered

if TYPE_CHECKING:
    from qwen_agent_kit.engine import Engine
    from qwen_agent_kit.engine.generation import Generation
    from qwen_agent_kit.host.media import LocalMedia
    from qwen_agent_kit.models import LoadedModel
    from qwen_agent_kit.placement import Plan

__all__ = ["LocalChatModel"]

_RATES = 32
"""Answers whose speed is remembered; their median is what the plan is held against."""

_PROBES = ("a", "1")
"""Two questions: what prompts with either have in common holds for the next one, whatever it is."""

_LEAST = 8
"""Answers with fewer drawn tokens say little about speed."""


class LocalChatModel:
    """Messages in, deltas out, on an engine of our own. Thread-safe.

    Args:
        name: As users know it.
        loaded: Weights, tokenizer and template.
        engine: The engine that runs them.
        plan: How it was placed.
        dialect: The tool-call dialect; read off the template where "".
        sampling: The model's defaults, over those of its files.
        media: How it takes media, None where it takes text only.
    """

    def __init__(
        self,
        name: str,
        loaded: LoadedModel,
        engine: Engine,
        plan: Plan,
        *,
        dialect: str = "",
        sampling: Sampling | None = None,
        media: LocalMedia | None = None,
    ) -> None:
        if loaded.template is None:
            raise UsageError(
                f"`{name}` has no chat template, so it cannot converse",
                hint="use `load_engine` for plain completion, or an instruct model",
            )
        self.name = name
        self.plan = plan
        self.engine = engine
        self.loaded = loaded
        self._dialect = dialects.get(dialect or dialect_of(loaded.template))
        self._renderer = PromptRenderer(
            loaded.tokenizer_json,
            loaded.template,
            dialect=self._dialect,
            special=loaded.special,
            widen=None if media is None else media.widen,
            placeholders=frozenset() if media is None else media.backend.placeholders,
        )
        self._defaults = (sampling or Sampling()).over(Sampling(**loaded.sampling_defaults))
        self._media = media
        self.backend = "text" if media is None else media.backend.name
        self._kinds = frozenset({"text"}) if media is None else media.kinds
        self.looks_ahead = True
        self._ahead: Generation | None = None
        self._closed = threading.Event()
        self._rates: deque[float] = deque(maxlen=_RATES)

    @property
    def caps(self) -> Capabilities:
        return Capabilities(
            token_ids=True,
            grammar=True,
            tools=True,
            tools_with_schema=True,
            logprobs=True,
            kinds=self._kinds,
            adapters=True,
        )

    @property
    def renderer(self) -> PromptRenderer:
        """Turns messages into ids; benchmarks and tests look at it."""
        return self._renderer

    def stream(self, request: ChatRequest) -> Iterator[Delta]:
        """Run one step.

        Raises:
            UsageError: Where the prompt does not fit the context, or a schema is refused.
            EngineError: Where the engine fails.
        """
        if self._media is not None:
            check_items(request.messages)
        if request.messages:
            self._refuse_endless(request.messages[-1])
        definitions = [tool.definition() for tool in request.tools]
        rendered = self._rendered(request, request.messages, definitions)
        sampling = request.sampling.over(self._defaults)
        grammar, notes = self._grammar(request, definitions, rendered)
        budget, more = self._budget(request.thinking, rendered)
        check_pixels(rendered.media)
        positions = None if self._media is None else self._media.positions(rendered.ids, rendered.media)
        generation = self.engine.submit(
            Prompt(rendered.ids, rendered.media, positions),
            sampling,
            grammar=grammar,
            budget=budget,
            deadline=request.deadline,
            adapter=request.adapter,
        )
        parser = StreamParser(
            self._dialect,
            tools=definitions,
            starts_in_reasoning=rendered.starts_in_reasoning,
            control_tags=frozenset(self._renderer.control),
            parse_calls=request.tool_choice != "none" if definitions else None,
            new_id=_new_call_id,
        )
        called = False
        try:
            for piece in generation.pieces():
                for delta in parser.feed(piece):
                    called = called or isinstance(delta, CallDone)
                    yield delta
            reason = generation.finish_reason or "error"
            deltas, truncated = parser.finish(reason)
            yield from deltas
            called = called or any(isinstance(delta, CallDone) for delta in deltas)
            self._measure(generation.usage)
            yield Finish(
                reason="tool_calls" if called and reason == "stop" else reason,
                usage=generation.usage,
                ids=tuple(generation.ids),
                fingerprint=self._renderer.fingerprint,
                truncated=truncated,
                notes=(*notes, *more, *_hints(rendered)),
                logprobs=generation.logprobs,
            )
        finally:
            generation.cancel()

    def _rendered(
        self, request: ChatRequest, messages: Sequence[Message], definitions: Sequence[dict[str, Any]]
    ) -> Rendered:
        return self._renderer.render(
            messages,
            tools=definitions if request.tool_choice != "none" else [],
            thinking=request.thinking,
            output_schema=request.output_schema,
        )

    def ahead(self, request: ChatRequest) -> None:
        """Compute what the next turn's prompt will begin with, while the engine has nothing else to do.

        A template may render a turn that is over otherwise than it was sampled (Qwen3 leaves its thinking out); what
        follows would otherwise be computed when the next question waits for it. Never raises.

        Args:
            request: The last one, with the assistant's answer at the end of its messages.
        """
        if not self.looks_ahead:
            return
        definitions = [tool.definition() for tool in request.tools]
        with contextlib.suppress(QakError):
            turns = [Message("user", (Text(text),)) for text in _PROBES]
            one, other = (self._rendered(request, (*request.messages, turn), definitions) for turn in turns)
            both = zip(one.ids, other.ids, strict=False)
            ids = [a for a, _ in itertools.takewhile(lambda pair: pair[0] == pair[1], both)]
            positions = None if self._media is None else self._media.positions(ids, one.media)
            self._ahead = self.engine.ahead(Prompt(ids, one.media, positions), adapter=request.adapter)

    def _refuse_endless(self, last: Message) -> None:
        """Millions of characters are refused before seconds go into encoding them."""
        context = self.engine.context
        if (least := self._renderer.least(last)) >= context:
            raise UsageError(
                f"the prompt has at least {least} tokens; allowed: at most {context - 1}",
                hint="shorten it, or open the model with a larger `context` where it was trained for one",
                code="context_length_exceeded",
            )

    def check(self, request: ChatRequest) -> None:
        """Compile the request's schemas, unless they are not strict, and read its adapter.

        Raises:
            SchemaError: Where they can never be served, with a JSON pointer.
            UsageError: For an adapter that is not known.
            ModelError: For an adapter that is refused.
        """
        self.engine.require_adapter(request.adapter)
        if not request.strict:
            return  # what does not compile is validated after the fact, and the step's notes say so
        dialects.check(
            self._dialect,
            [tool.definition() for tool in request.tools],
            request.output_schema,
            compile=self.engine.compile,
            control=self._renderer.control,
            max_tokens=request.sampling.over(self._defaults).max_tokens,
        )

    def _measure(self, usage: Usage) -> None:
        """Hold the plan against how fast the last answers came; forced ids cost no step and do not count."""
        drawn = (usage.generated_tokens or 0) - (usage.forced_tokens or 0) - 1
        if drawn >= _LEAST and usage.decode_ms:
            self._rates.append(drawn * 1000 / usage.decode_ms)
            self.plan = self.plan.compare(decode_tokens_per_second=round(statistics.median(self._rates), 3))

    def close(self) -> None:
        """Stop the engine; requests in flight end with an error."""
        if not self._closed.is_set():
            self._closed.set()
            self.engine.close()

    def _grammar(
        self, request: ChatRequest, definitions: Sequence[dict[str, Any]], rendered: Rendered
    ) -> tuple[str | None, tuple[str, ...]]:
        thinking: Literal["open", "maybe", "no"] = "no"
        if rendered.starts_in_reasoning:
            thinking = "open"
        elif request.thinking is not False and self._dialect.think_open in self._renderer.control:
            thinking = "maybe"
        try:
            text = self._dialect.grammar(
                definitions,
                tool_choice=request.tool_choice,
                output_schema=request.output_schema,
                thinking=thinking,
                control=self._renderer.control,
            )
            if text is not None:
                self.engine.compile(text)
        except SchemaError:
            if request.strict:
                raise
            return None, ("strict=False: the schema is not enforced while sampling, only validated",)
        return text, ()

    def _budget(self, thinking: bool | int | None, rendered: Rendered) -> tuple[SpanBudget | None, tuple[str, ...]]:
        if thinking is None or thinking is False:
            return None, ()
        control = self._renderer.control
        close, opened = control.get(self._dialect.think_close), control.get(self._dialect.think_open)
        if close is None or opened is None:
            what = "thinking=True" if thinking is True else f"the budget of {thinking} tokens"
            return None, (f"`{self.name}` does not think; {what} has no effect",)
        if thinking is True:
            return None, ()
        start = None if rendered.starts_in_reasoning else opened
        return SpanBudget(close=close, limit=thinking, closing=(close,), open=start), ()


def _new_call_id() -> str:
    return f"call_{uuid.uuid4().hex[:12]}"


def _hints(rendered: Rendered) -> tuple[str, ...]:
    return (rendered.prefix_break_hint,) if rendered.prefix_break_hint else ()
