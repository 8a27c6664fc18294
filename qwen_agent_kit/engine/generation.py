"""What a caller holds of a request in flight: an iterator of ids or of text, and the way to stop it."""

from __future__ import annotations

import asyncio
import queue
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from qwen_agent_kit.backends import Piece, Usage
from qwen_agent_kit.engine.request import End, Request, Token
from qwen_agent_kit.engine.sampling import Logprob
from qwen_agent_kit.errors import EngineError, UsageError

if TYPE_CHECKING:
    from qwen_agent_kit.engine.detokenize import Detokenizer

__all__ = ["Generation"]

LOOK = 1.0
"""Seconds after which a waiting consumer looks whether the engine's thread is still there."""


class Generation:
    """A request in flight; made by ``Engine.submit``.

    Iterate for ids, or ``pieces()`` (``apieces()`` in a coroutine) for text; one of them, once. Closing or dropping the
    iterator, or the generation, cancels the request.

    Raises:
        EngineError: From the iterators, where the engine failed.
    """

    def __init__(
        self, request: Request, detokenizer: Callable[[], Detokenizer], alive: Callable[[], bool], engine: object
    ) -> None:
        self._request = request
        self._detokenizer = detokenizer
        self._alive = alive
        self._engine = engine  # an engine lasts at least as long as its generations
        self._claimed = False

    @property
    def ids(self) -> Sequence[int]:
        """The ids so far, the one that ended the turn included."""
        return self._request.ids

    @property
    def usage(self) -> Usage:
        """What it has cost so far; exact once ``finish_reason`` is set."""
        return self._request.usage()

    @property
    def finish_reason(self) -> str | None:
        """``stop``, ``length``, ``repetition``, ``cancelled`` or ``error``; None while it runs."""
        return self._request.finish_reason

    @property
    def max_tokens(self) -> int:
        """The most ids it may have: what was asked for, or the engine's default, within the context."""
        return self._request.rules.max_tokens

    @property
    def logprobs(self) -> tuple[Logprob, ...] | None:
        """One per id so far, where they were asked for."""
        return tuple(self._request.logprobs) if self._request.rules.sampler.reports else None

    def cancel(self) -> None:
        """Stop within one token; without effect where it has ended."""
        self._request.cancelled = True

    def __del__(self) -> None:
        request = self.__dict__.get("_request")
        if request is not None:
            request.cancelled = True

    def __iter__(self) -> Iterator[int]:
        self._claim()
        return self._each_id()

    def pieces(self) -> Iterator[Piece]:
        """The text, cut where characters end; it ends before a stop string."""
        self._claim()
        return self._each_piece()

    async def apieces(self) -> AsyncIterator[Piece]:
        """``pieces`` for a coroutine; the loop is never blocked."""
        self._claim()
        loop, ready = asyncio.get_running_loop(), asyncio.Event()
        request = self._request

        def wake() -> None:
            try:
                loop.call_soon_threadsafe(ready.set)
            except RuntimeError:  # the loop is closed: nobody reads any more
                request.cancelled = True

        request.wake = wake
        text = self._text()
        try:
            while True:
                ready.clear()
                while (item := self._take_now()) is not None:
                    for piece in self._decoded(item, text):
                        yield piece
                    if isinstance(item, End):
                        return
                await self._woken(loop, ready)
        finally:
            request.wake = None
            self.cancel()

    async def _woken(self, loop: asyncio.AbstractEventLoop, ready: asyncio.Event) -> None:
        """Let others run, then wait for the engine. No ``wait_for``: in Python 3.11 it can swallow a cancellation."""
        timer = loop.call_later(LOOK, ready.set)
        try:
            await asyncio.sleep(0)
            await ready.wait()
        finally:
            timer.cancel()
        self._check()

    # --- shared by the iterators -----------------------------------------------------------------------------------

    def _claim(self) -> None:
        if self._claimed:
            raise UsageError("this generation is already being read", hint="iterate once, for ids or for pieces")
        self._claimed = True

    def _each_id(self) -> Iterator[int]:
        try:
            while not isinstance(item := self._take(), End):
                yield item if isinstance(item, int) else item.id
            self._raise(item)
        finally:
            self.cancel()

    def _each_piece(self) -> Iterator[Piece]:
        text = self._text()
        try:
            while True:
                item = self._take()
                yield from self._decoded(item, text)
                if isinstance(item, End):
                    return
        finally:
            self.cancel()

    def _text(self) -> Detokenizer | None:
        """A detokenizer of the consumer's own, where the engine's thread does not decode anyway."""
        return self._detokenizer() if self._request.rules.text is None else None

    def _decoded(self, item: int | Token | End, text: Detokenizer | None) -> Sequence[Piece]:
        if isinstance(item, int):
            return () if text is None else text.feed(item)
        self._raise(item)
        if item.pieces is not None:
            return item.pieces
        return () if text is None else text.flush()

    def _raise(self, item: Token | End) -> None:
        if isinstance(item, End) and item.error is not None:
            raise item.error

    def _take(self) -> int | Token | End:
        while True:
            try:
                return self._request.out.get(timeout=LOOK)
            except queue.Empty:
                self._check()

    def _take_now(self) -> int | Token | End | None:
        try:
            return self._request.out.get_nowait()
        except queue.Empty:
            return None

    def _check(self) -> None:
        """Nothing came for a while: make sure that somebody is there to send it."""
        if not self._alive() and self._request.out.empty():
            raise EngineError("the engine's thread is gone", code="engine_dead")
