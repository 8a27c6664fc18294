"""Which model is asked for the next step, and what."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from qwen_agent_kit.agent.limits import Meter
from qwen_agent_kit.agent.output import Wanted
from qwen_agent_kit.agent.setup import Setup
from qwen_agent_kit.backends import ChatModel, ChatRequest, Choice, Sampling
from qwen_agent_kit.errors import UsageError
from qwen_agent_kit.messages import Message

if TYPE_CHECKING:
    from qwen_agent_kit.tools import OutputType

__all__ = ["Asking"]


class Asking:
    """Chooses backend and model, and writes the requests of one run.

    Args:
        setup: The agent, resolved.
        output: What the answer must be; None for text.
        meter: What may still be used up.

    Attributes:
        choice: The backend of the last request.
        wanted: How the output is asked of the model of the last request, None for text.
    """

    def __init__(self, setup: Setup, output: OutputType | None, meter: Meter) -> None:
        self.choice = Choice("", "")
        self.wanted: Wanted | None = None
        self._setup = setup
        self._output = output
        self._meter = meter
        self._model: ChatModel | None = None
        self._chosen: tuple[str, frozenset[str]] | None = None

    def request(
        self, messages: Sequence[Message], kinds: frozenset[str], *, first: bool
    ) -> tuple[ChatModel, ChatRequest]:
        """The model for the next step and what to ask it.

        Args:
            messages: The whole conversation.
            kinds: The part kinds in it.
            first: Whether it is the run's first step, for which alone ``tool_choice`` may demand a call.

        Raises:
            UsageError: Where no eligible model takes ``kinds``.
            SchemaError: Where the model can never serve the schemas.
            QakError: What opening the model raises.
        """
        setup = self._setup
        history = tuple(messages)
        self.choice = setup.choose(history, self.choice.backend or None, kinds)
        chosen = (self.choice.backend, kinds)
        new = self._model is None or chosen != self._chosen
        if new:
            self._model, self._chosen = setup.model_for(self.choice, kinds), chosen
        assert self._model is not None, "a model was chosen"
        if new and self._output is not None:
            self.wanted = Wanted(self._output, self._model.caps, setup.tools)
        tools, tool_choice = self._tools(first)
        request = ChatRequest(
            history,
            tools,
            tool_choice,
            self.wanted.request_schema() if self.wanted is not None else None,
            setup.thinking,
            self._sampling(),
            self._meter.deadline,
            setup.adapter,
            setup.strict,
        )
        if new:
            if setup.adapter is not None and not self._model.caps.adapters:
                raise UsageError(f"`{self._model.name}` serves no adapters; found adapter={setup.adapter[:80]!r}")
            self._model.check(request)
        return self._model, request

    @property
    def accepted(self) -> frozenset[str] | None:
        """The kinds that the run's models take; None where that shows only when one is opened."""
        if self._model is None or self._chosen is None:
            return None
        return self._setup.accepts_later(self._model, self._chosen[1])

    def _tools(self, first: bool) -> tuple[tuple[Any, ...], str]:
        setup = self._setup
        tools, tool_choice = setup.armed, setup.tool_choice
        if tool_choice not in ("auto", "none") and not first:
            tool_choice = "auto"
        if self.wanted is not None and self.wanted.tool is not None:
            tools = (*tools, self.wanted.tool)
            tool_choice = "required" if tool_choice in ("auto", "none") else tool_choice
        return tools, tool_choice

    def _sampling(self) -> Sampling:
        """The agent's settings, with a cap on what is left to generate."""
        sampling, left = self._setup.sampling, self._meter.output_left
        if left is None or (sampling.max_tokens is not None and sampling.max_tokens <= left):
            return sampling
        return replace(sampling, max_tokens=max(1, left))
