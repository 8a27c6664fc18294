"""Messages in, deltas out: what the agent, pipelines and servers speak."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from qwen_agent_kit.backends.sampling import Sampling
from qwen_agent_kit.backends.usage import Usage
from qwen_agent_kit.events import ReasoningDelta, TextDelta
from qwen_agent_kit.messages import Message, ToolCall

if TYPE_CHECKING:
    from qwen_agent_kit.tools import Tool

__all__ = ["CallDelta", "CallDone", "Capabilities", "ChatModel", "ChatRequest", "Delta", "EngineSpec", "Finish"]


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
        adapters: It serves LoRA adapters by name.
    """

    token_ids: bool = False
    grammar: bool = False
    tools: bool = True
    tools_with_schema: bool = True
    logprobs: bool = False
    kinds: frozenset[str] = frozenset({"text"})
    adapters: bool = False


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
