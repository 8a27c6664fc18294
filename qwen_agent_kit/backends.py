"""The contracts between the agent, the engines and the plugins.

``ChatModel`` (messages in, deltas out) is what the agent, pipelines and servers speak; ``Engine`` (ids in, ids out) is
what the local one stands on; ``Backend`` is what a modality plugin offers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from qwen_agent_kit.errors import UsageError
from qwen_agent_kit.events import ReasoningDelta, TextDelta
from qwen_agent_kit.messages import Media, Message, ToolCall

if TYPE_CHECKING:
    import numpy as np

    from qwen_agent_kit.tools import Tool

__all__ = [
    "Backend",
    "CallDelta",
    "CallDone",
    "Capabilities",
    "ChatModel",
    "ChatRequest",
    "Choice",
    "Delta",
    "Embeddings",
    "Encoder",
    "Engine",
    "EngineSpec",
    "Finish",
    "Generation",
    "MediaSpan",
    "Piece",
    "Prompt",
    "Sampling",
    "SpanBudget",
    "Usage",
]

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
            1909.05858); above 0 to 10.
        presence_penalty: Taken off once for each id generated; -2 to 2.
        frequency_penalty: Taken off per occurrence generated; -2 to 2.
        logit_bias: Added to the logits of ids; -100 to 100.
        logprobs: How many alternatives are reported per token, None for none.
        stop: Strings at which the text ends; they are not part of it.
        seed: Makes drawing repeatable for this request, whatever runs beside it.
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
    ("repetition_penalty", 0.0, 10.0, True),
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


@dataclass(frozen=True, slots=True)
class Usage:
    """What a step, or the sum of several, cost. None is "this engine cannot know", never 0.

    Args:
        prompt_tokens: Positions in the prompt.
        cached_tokens: Of those, positions whose KV was already there.
        computed_tokens: Positions that went through the layers, prompt and generated together.
        generated_tokens: Ids appended after the prompt, forced ones included.
        forced_tokens: Of those, ids that the grammar left no choice about.
        first_token_ms: From submission to the first id.
        prefill_ms: In the layers, for the prompt.
        decode_ms: From the first id to the last.
        tool_ms: Wall time of the tools of the step.
        prefix_break: Why and where reuse of the prefix ended, None where it did not break.
    """

    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    computed_tokens: int | None = None
    generated_tokens: int | None = None
    forced_tokens: int | None = None
    first_token_ms: float | None = None
    prefill_ms: float | None = None
    decode_ms: float | None = None
    tool_ms: float | None = None
    prefix_break: str | None = None

    def __add__(self, other: Usage) -> Usage:
        def add(name: str) -> Any:
            a, b = getattr(self, name), getattr(other, name)
            if name == "prefix_break":
                return b if b is not None else a
            if name == "first_token_ms":
                return a if a is not None else b
            return b if a is None else a if b is None else a + b

        return Usage(**{f.name: add(f.name) for f in fields(self)})

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


# --- messages in, deltas out -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """One step's question to a ``ChatModel``.

    Args:
        messages: The whole history.
        tools: The armed tools.
        tool_choice: ``auto``, ``required``, ``none`` or a tool's name.
        output_schema: The JSON schema that the final text must fulfil.
        thinking: None (the model's default), False, True, or a budget in tokens.
        sampling: Over the model's defaults.
        deadline: On ``time.monotonic()``.
        adapter: The name of a loaded adapter.
        strict: Where False, a schema that the grammar cannot express is validated after the fact instead of refused.
    """

    messages: tuple[Message, ...]
    tools: tuple[Tool, ...] = ()
    tool_choice: str = "auto"
    output_schema: Mapping[str, Any] | None = None
    thinking: bool | int | None = None
    sampling: Sampling = field(default_factory=Sampling)
    deadline: float | None = None
    adapter: str | None = None
    strict: bool = True


@dataclass(frozen=True, slots=True)
class CallDelta:
    """More of a tool call: the name comes once, on the first delta of ``index``, then pieces of the argument text."""

    index: int
    name: str | None = None
    arguments: str = ""


@dataclass(frozen=True, slots=True)
class CallDone:
    """A tool call is complete. A call that was cut off never gets one; its text is in ``Finish.truncated``."""

    index: int
    call: ToolCall


@dataclass(frozen=True, slots=True)
class Finish:
    """The end of a stream, always last.

    Args:
        reason: ``stop``, ``tool_calls``, ``length``, ``repetition``, ``cancelled`` or ``error``.
        usage: What this step cost.
        ids: The sampled ids, where the engine is ours.
        fingerprint: Of the tokenizer that ``ids`` belong to.
        truncated: The raw text of a tool call that was cut off.
        notes: Lines for ``Step.notes``.
        logprobs: One (id, logprob, alternatives) per generated id, where asked for.
    """

    reason: str
    usage: Usage = field(default_factory=Usage)
    ids: tuple[int, ...] | None = None
    fingerprint: str | None = None
    truncated: str = ""
    notes: tuple[str, ...] = ()
    logprobs: tuple[Any, ...] | None = None


Delta = TextDelta | ReasoningDelta | CallDelta | CallDone | Finish


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a ``ChatModel`` can do.

    Args:
        token_ids: It reports sampled ids.
        grammar: It enforces tool and output schemas while sampling.
        tools: It takes tools at all.
        tools_with_schema: It takes tools and an output schema in one request.
        logprobs: It reports logprobs.
        kinds: The part kinds it accepts.
    """

    token_ids: bool = False
    grammar: bool = False
    tools: bool = True
    tools_with_schema: bool = True
    logprobs: bool = False
    kinds: frozenset[str] = frozenset({"text"})


@runtime_checkable
class ChatModel(Protocol):
    """Messages in, deltas out.

    ``stream`` may be called from several threads at once. Closing the iterator cancels the request. Errors are raised
    from the iterator.
    """

    @property
    def name(self) -> str: ...

    @property
    def caps(self) -> Capabilities: ...

    def stream(self, request: ChatRequest) -> Iterator[Delta]: ...

    def check(self, request: ChatRequest) -> None:
        """Raise ``SchemaError`` (with a pointer) where the request's schemas can never be served."""

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class EngineSpec:
    """An engine for model names that start with ``prefix:``; ``open`` gets the rest of the name."""

    prefix: str
    open: Callable[..., ChatModel]


# --- ids in, ids out ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class MediaSpan:
    """A run of placeholder ids. ``item`` is opaque to the engine and goes to ``Encoder.encode``."""

    start: int
    length: int
    digest: str
    item: Any = None


@dataclass(frozen=True, slots=True)
class Prompt:
    """Ids with the media among them; ``positions`` is an int array [3, n] for m-rope, else None."""

    ids: Sequence[int]
    media: tuple[MediaSpan, ...] = ()
    positions: np.ndarray | None = None


@dataclass(frozen=True, slots=True)
class SpanBudget:
    """Ends a span of generated ids: once ``limit`` ids were sampled inside it, ``closing`` is forced.

    Args:
        close: The id that ends the span by itself.
        limit: How many ids the span may have before it is closed.
        closing: The ids that are forced then; they end with, or contain, ``close``.
        open: The id that begins the span, or None where the prompt already did.
    """

    close: int
    limit: int
    closing: tuple[int, ...]
    open: int | None = None


@dataclass(frozen=True, slots=True)
class Piece:
    """Decoded text: never half a character. ``control`` marks the text of one control token."""

    text: str
    control: bool = False


class Generation(Protocol):
    """A request in flight: iterate for ids, or ``pieces()`` for text; one of the two, once."""

    @property
    def ids(self) -> Sequence[int]: ...

    @property
    def usage(self) -> Usage: ...

    @property
    def finish_reason(self) -> str | None: ...

    def __iter__(self) -> Iterator[int]: ...

    def pieces(self) -> Iterator[Piece]: ...

    def cancel(self) -> None: ...


class Engine(Protocol):
    """Ids in, ids out. Thread-safe; one thread of its own owns the model."""

    def submit(
        self,
        prompt: Prompt | Sequence[int],
        sampling: Sampling | None = None,
        *,
        grammar: str | None = None,
        budget: SpanBudget | None = None,
        deadline: float | None = None,
    ) -> Generation: ...

    def close(self) -> None: ...


# --- what a modality plugin offers -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Embeddings:
    """An encoder's output for one item: ``hidden`` [n, d], and per-layer additions ``deepstack`` [k, n, d] or None."""

    hidden: Any
    deepstack: Any = None


class Encoder(Protocol):
    """A vision or audio tower."""

    def encode(self, items: Sequence[Any]) -> list[Embeddings]: ...


@dataclass(frozen=True)
class Backend:
    """A modality: which parts it covers, for which model families, and how it turns parts into placeholders.

    Args:
        name: Unique among installed plugins.
        accepts: The part kinds it covers, ``text`` included.
        families: The catalog families it drives.
        default: The model that is named where a user asks for none of a kind.
        parts: Its own subclasses of ``Media``.
        resident: Whether its model stays loaded beside others.
        widen: ``(part, config, budget) -> (length, digest, item)``.
        positions: ``(ids, spans) -> (positions [3, n], next)``.
        encoder: ``(config, tensors, device) -> Encoder``.
        footprint: ``(config, budget) -> bytes``.
    """

    name: str
    accepts: frozenset[str]
    families: tuple[str, ...] = ()
    default: str | None = None
    parts: tuple[type[Media], ...] = ()
    resident: bool = True
    widen: Callable[..., tuple[int, str, Any]] | None = None
    positions: Callable[..., Any] | None = None
    encoder: Callable[..., Encoder] | None = None
    footprint: Callable[..., int] | None = None


@dataclass(frozen=True, slots=True)
class Choice:
    """A chosen backend's name and why."""

    backend: str
    reason: str
