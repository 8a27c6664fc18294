"""What an agent's runs share: tools, hooks, backends and the way to a model. Made on the first run."""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from qwen_agent_kit.agent.hooks import Hooks
from qwen_agent_kit.agent.limits import Limits
from qwen_agent_kit.backends import Backend, ChatModel, ChatRequest, Choice, Finish, Sampling, Usage
from qwen_agent_kit.errors import UsageError
from qwen_agent_kit.events import TextDelta
from qwen_agent_kit.messages import Media, Message, Part, ToolCall

if TYPE_CHECKING:
    from qwen_agent_kit.host import Host
    from qwen_agent_kit.tools import OutputType, Tool

__all__ = ["Setup"]

Approve = Callable[[ToolCall], bool | str | None]


@dataclass(frozen=True, eq=False)
class Setup:
    """An agent's configuration, resolved. Shared by all its runs; nothing in it changes.

    Args:
        candidates: The eligible models in order: specs, objects, or a single None for the host's default.
        tools: By name.
    """

    candidates: tuple[str | ChatModel | None, ...]
    tools: Mapping[str, Tool]
    system: str | None
    output: OutputType | None
    sampling: Sampling
    limits: Limits
    thinking: bool | int | None
    tool_choice: str
    strict: bool
    adapter: str | None
    approve: Approve | None
    host: Host
    hooks: Hooks
    backends: tuple[Backend, ...]

    @functools.cached_property
    def armed(self) -> tuple[Tool, ...]:
        """The tools in order."""
        return tuple(self.tools.values())

    @property
    def media_types(self) -> tuple[type[Media], ...]:
        """The part types that backends bring."""
        return tuple(part for backend in self.backends for part in backend.parts)

    @functools.cached_property
    def eligible(self) -> tuple[Backend, ...]:
        """The backends that can drive the candidates, as far as that is known before one is opened."""
        from qwen_agent_kit.host.routing import drivers

        return drivers(self.host, self.backends, self.candidates)

    def accepts_later(self, model: ChatModel, kinds: frozenset[str]) -> frozenset[str] | None:
        """The kinds that a conversation of ``kinds`` with ``model`` may come to hold; None where any can be tried."""
        from qwen_agent_kit.host.routing import default_kinds

        if len(self.candidates) > 1:
            return None
        return model.caps.kinds | (default_kinds(self.host, kinds) if self.candidates[0] is None else frozenset())

    def choose(self, messages: Sequence[Message], current: str | None, kinds: frozenset[str]) -> Choice:
        """The backend for the next step, and why."""
        return self.hooks.choose_backend(messages, self.eligible, current, kinds, self.host.resident)

    def model_for(self, choice: Choice, kinds: frozenset[str]) -> ChatModel:
        """The model for a step: the only one, or the first that covers the chosen backend, or at least ``kinds``.

        Raises:
            UsageError: Where none of the eligible models takes ``kinds``; it names the missing kind.
            QakError: What opening a model raises.
        """
        wanted = kinds
        if len(self.candidates) > 1:
            wanted |= next((b.accepts for b in self.eligible if b.name == choice.backend), frozenset())
        refusals: list[UsageError] = []
        for needed in dict.fromkeys((wanted, kinds)):
            for candidate in self.candidates:
                try:
                    return self._open(candidate, needed)
                except UsageError as error:
                    if error.code != "unsupported_kind":
                        raise
                    refusals.append(error)
        raise refusals[-1]

    def _open(self, candidate: str | ChatModel | None, kinds: frozenset[str]) -> ChatModel:
        if candidate is None or isinstance(candidate, str):
            return self.host.open(candidate, kinds=kinds)
        missing = sorted(kinds - candidate.caps.kinds)
        if missing:
            raise UsageError(
                f"`{candidate.name}` takes {sorted(candidate.caps.kinds)}; found a part of kind {missing[0]!r}",
                hint=f"name a model that takes {missing[0]} parts in `model` or `models`",
                code="unsupported_kind",
            )
        return candidate

    def ask(
        self, parts: Sequence[Part], kinds: frozenset[str] | None, deadline: float | None, cancelled: threading.Event
    ) -> tuple[str, Usage]:
        """Put one question to a model and return its text and cost; what ``ToolContext.ask`` stands on.

        Raises:
            UsageError: Where no eligible model takes the parts.
        """
        message = Message("user", tuple(parts))
        needed = kinds_of(message) | (kinds or frozenset())
        backend = self.choose((message,), None, needed)
        request = ChatRequest((message,), sampling=self.sampling, thinking=self.thinking, deadline=deadline)
        stream = self.model_for(backend, needed).stream(request)
        text: list[str] = []
        usage = Usage()
        try:
            for delta in stream:
                if isinstance(delta, TextDelta):
                    text.append(delta.text)
                elif isinstance(delta, Finish):
                    usage = delta.usage
                if cancelled.is_set():
                    break
        finally:
            close(stream)
        return "".join(text), usage


def close(stream: Any) -> None:
    """Close an iterator that can be closed; that is how a request is cancelled."""
    end = getattr(stream, "close", None)
    if end is not None:
        end()


def kinds_of(message: Message) -> frozenset[str]:
    """The part kinds that a model must accept to read a message."""
    return frozenset({"text", *(part.kind for part in message.media)})


def candidates_of(model: Any, models: Sequence[Any]) -> tuple[str | ChatModel | None, ...]:
    """The eligible models.

    Raises:
        UsageError: Where one is neither a name nor a ``ChatModel``.
    """
    given = [value for value in (model, *models) if value is not None]
    for value in given:
        if not isinstance(value, str | os.PathLike | ChatModel):
            raise UsageError(f"a model is a {type(value).__name__}; allowed: a name, a path or a ChatModel")
    return tuple(os.fspath(value) if isinstance(value, os.PathLike) else value for value in given) or (None,)
