"""What a model said in one step, put together from its deltas."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from qwen_agent_kit.backends import CallDelta, CallDone, Delta, Finish
from qwen_agent_kit.errors import EngineError
from qwen_agent_kit.events import ReasoningDelta, TextDelta
from qwen_agent_kit.messages import Message, Part, Reasoning, Text, TokenLog, ToolCall

__all__ = ["Heard"]


class Heard:
    """Collects deltas; ``message`` is what they make up."""

    def __init__(self) -> None:
        self.finish: Finish | None = None
        self.deltas = 0
        self._parts: list[Part] = []
        self._run: list[str] = []
        self._thought = False

    def add(self, delta: Delta) -> TextDelta | ReasoningDelta | None:
        """Take a delta; returns it where it is an event as well.

        Raises:
            EngineError: Where the model breaks the contract of ``ChatModel.stream``.
        """
        if self.finish is not None:
            raise EngineError(f"the model sent a {type(delta).__name__} after its Finish")
        self.deltas += 1
        if isinstance(delta, TextDelta | ReasoningDelta):
            thought = isinstance(delta, ReasoningDelta)
            if thought is not self._thought:
                self._flush()
                self._thought = thought
            self._run.append(delta.text)
            return delta
        if isinstance(delta, CallDone):
            self._flush()
            self._parts.append(delta.call)
        elif isinstance(delta, Finish):
            self.finish = delta
        elif not isinstance(delta, CallDelta):
            raise EngineError(f"the model sent a {type(delta).__name__}; allowed: the members of Delta")
        return None

    def message(self, renamed: Iterator[ToolCall] | None = None) -> Message:
        """The assistant's message; ``renamed`` replaces its calls in order. A call that was cut off is raw text."""
        self._flush()
        finish = self.finish or Finish("cancelled")
        parts = [next(renamed) if renamed and isinstance(p, ToolCall) else p for p in self._parts]
        if finish.truncated:
            last = parts[-1] if parts else None
            if isinstance(last, Text):
                parts[-1] = replace(last, text=last.text + finish.truncated)
            else:
                parts.append(Text(finish.truncated))
        log = None
        if finish.ids is not None and finish.fingerprint is not None:
            log = TokenLog(finish.ids, finish.fingerprint)
        return Message("assistant", tuple(parts), log)

    @property
    def calls(self) -> list[ToolCall]:
        """The complete calls, in order."""
        return [part for part in self._parts if isinstance(part, ToolCall)]

    def _flush(self) -> None:
        if self._run:
            text = "".join(self._run)
            self._run = []
            if text:
                self._parts.append(Reasoning(text) if self._thought else Text(text))
