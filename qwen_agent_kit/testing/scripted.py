"""``ScriptedModel``: a ``ChatModel`` that says what the test wrote."""

from __future__ import annotations

import itertools
import json
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from qwen_agent_kit.backends import CallDelta, CallDone, Capabilities, ChatRequest, Delta, Finish
from qwen_agent_kit.errors import UsageError
from qwen_agent_kit.events import ReasoningDelta, TextDelta
from qwen_agent_kit.messages import Reasoning, Text, ToolCall

__all__ = ["ScriptedModel"]

_DELTAS = (TextDelta, ReasoningDelta, CallDelta, CallDone, Finish)


class ScriptedModel:
    """Answers each request with the next turn of a script.

    Args:
        turns: One per request: a string, a ``Text``, ``Reasoning`` or ``ToolCall``, an exception to raise, a callable
            ``(request) -> turn``, a list of these, or a list that also holds ready ``Delta`` values (a ``Finish`` among
            them ends the turn). One callable in place of the list answers every request. Turns are taken one by one, so
            that an endless generator will do.
        caps: What the model claims to be able to do.
        chunk: How many characters a text delta has.
        name: As the run reports it.

    A ``ToolCall`` may leave its id empty: it is numbered. Usage is all None, "this engine cannot know". Several threads
    may ask at once; each gets one turn.

    Attributes:
        requests: What was asked, in order.
        cancelled: How many streams were closed before their end.

    Raises:
        AssertionError: From the iterator, where a request comes and no turn is left.
    """

    def __init__(
        self,
        turns: Iterable[Any] | Callable[[ChatRequest], Any] = (),
        *,
        caps: Capabilities | None = None,
        chunk: int = 8,
        name: str = "scripted",
    ) -> None:
        if isinstance(turns, str):
            turns = (turns,)
        if not callable(turns) and not isinstance(turns, Iterable):
            raise UsageError(f"`turns` is a {type(turns).__name__}; allowed: a list of turns, or a function")
        self.requests: list[ChatRequest] = []
        self.cancelled = 0
        self._every = turns if callable(turns) else None
        self._turns: Iterator[Any] = iter(()) if callable(turns) else iter(turns)
        self._caps = caps or Capabilities()
        self._chunk = max(1, chunk)
        self._name = name
        self._calls = 0
        self._lock = threading.Lock()

    @property
    def name(self) -> str:
        return self._name

    @property
    def caps(self) -> Capabilities:
        return self._caps

    def check(self, request: ChatRequest) -> None:
        """Every schema can be served by a script."""

    def close(self) -> None:
        """Nothing is held."""

    def stream(self, request: ChatRequest) -> Iterator[Delta]:
        """The next turn as deltas."""
        with self._lock:
            self.requests.append(request)
            turn = self._every if self._every is not None else next(self._turns, _END)
        if turn is _END:
            raise AssertionError(f"ScriptedModel got request {len(self.requests)}, and its script has no turn for it")
        ended = False
        try:
            for delta in self._deltas(turn, request):
                ended = isinstance(delta, Finish)
                yield delta
                if ended:
                    return
        except GeneratorExit:
            if not ended:
                with self._lock:
                    self.cancelled += 1
            raise

    def assert_complete(self) -> None:
        """Assert that every turn was asked for.

        Raises:
            AssertionError: Says how many are left (at most 1,000 are counted).
        """
        with self._lock:
            left = list(itertools.islice(self._turns, 1000))
            self._turns = itertools.chain(left, self._turns)
        assert not left, f"{len(left)} turns of the script were never asked for, after {len(self.requests)} requests"

    def _deltas(self, turn: Any, request: ChatRequest) -> Iterator[Delta]:
        """The deltas of one turn, closed by a ``Finish``."""
        index = 0
        for item in self._flat(turn, request):
            if isinstance(item, _DELTAS):
                index += isinstance(item, CallDone)
                yield item
            elif isinstance(item, ToolCall):
                yield from self._call(item, index)
                index += 1
            else:
                text = item.text
                make = ReasoningDelta if isinstance(item, Reasoning) else TextDelta
                for start in range(0, len(text), self._chunk):
                    yield make(text[start : start + self._chunk])
        yield Finish("tool_calls" if index else "stop")

    def _call(self, call: ToolCall, index: int) -> Iterator[Delta]:
        if not call.id:
            with self._lock:
                self._calls += 1
                call = ToolCall(f"call_{self._calls}", call.name, call.arguments, call.error)
        yield CallDelta(index, call.name)
        if call.error is None:
            yield CallDelta(index, None, json.dumps(dict(call.arguments), default=repr))
        yield CallDone(index, call)

    def _flat(self, turn: Any, request: ChatRequest) -> Iterator[Any]:
        """``turn`` as text, reasoning, calls and deltas; callables called, exceptions raised."""
        if isinstance(turn, BaseException) or (isinstance(turn, type) and issubclass(turn, BaseException)):
            raise turn
        if isinstance(turn, str):
            yield Text(turn)
        elif isinstance(turn, Text | Reasoning | ToolCall | TextDelta | ReasoningDelta | CallDelta | CallDone | Finish):
            yield turn
        elif callable(turn):
            yield from self._flat(turn(request), request)
        elif isinstance(turn, Sequence | Iterator):
            for item in turn:
                yield from self._flat(item, request)
        else:
            kind = type(turn).__name__
            raise AssertionError(f"a turn of the script is {kind}; allowed: text, calls, deltas, exceptions, callables")


_END = object()
