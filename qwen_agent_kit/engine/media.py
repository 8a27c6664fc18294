"""What an encoder made of media: kept by digest under a byte budget, and put at its places among a step's rows."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from qwen_agent_kit.backends import Embeddings, Encoder, MediaSpan
from qwen_agent_kit.engine.content import Content
from qwen_agent_kit.errors import EngineError, QakError
from qwen_agent_kit.plugins.guard import describe

if TYPE_CHECKING:
    from qwen_agent_kit.models import Decoder, ForeignDecoder

__all__ = ["MEDIA_BYTES", "MediaCache", "MediaCounters", "Slot", "media_rows"]

MEDIA_BYTES = 2**28
"""The most that kept embeddings take, unless the engine is told otherwise."""

_Key = tuple[str, str]
"""Salt and digest."""


@dataclass
class MediaCounters:
    """Media since the engine was made: encoded anew, found in the cache, and put out of it."""

    encoded: int = 0
    found: int = 0
    evicted: int = 0


class Slot:
    """What a span's ids stand for, as long as its request needs it."""

    __slots__ = ("embeddings",)

    def __init__(self, embeddings: Embeddings) -> None:
        self.embeddings: Embeddings | None = embeddings

    def clear(self) -> None:
        """The request ended; keys and values are all that is left of the medium here."""
        self.embeddings = None


class MediaCache:
    """Encodes each medium once as long as it fits, those that wait at the same time together. Thread-safe.

    One thread of its own encodes: what towers allocate for a moment then stays in one place, however many callers there
    are, and does not tear holes into the memory of each.

    Args:
        encoder: Makes embeddings of items.
        hidden: The decoder's width.
        budget: Bytes.
    """

    def __init__(self, encoder: Encoder, hidden: int, budget: int = MEDIA_BYTES) -> None:
        self.counters = MediaCounters()
        self._encoder, self._hidden, self._budget = encoder, hidden, budget
        self._kept: OrderedDict[_Key, Embeddings] = OrderedDict()
        self._coming: dict[_Key, Future[Embeddings]] = {}
        self._waiting: list[tuple[_Key, MediaSpan]] = []
        self._bytes = 0
        self._lock = threading.Lock()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="qak-encoder")

    @property
    def used_bytes(self) -> int:
        """What the kept embeddings take."""
        return self._bytes

    def close(self) -> None:
        """End the thread, after what it was given; later media are refused."""
        self._thread.shutdown()

    def fill(self, content: Content) -> Content:
        """The content with embeddings in place of the encoder's items; waits until what is missing is encoded.

        Raises:
            EngineError: Where the encoder fails or gives another number of rows than the span has.
        """
        with self._lock:
            wanted = {(content.salt, s.digest): s for s in content.media if s.item is not None}
            here: dict[_Key, Embeddings] = {}
            there: dict[_Key, Future[Embeddings]] = {}
            for key, span in wanted.items():
                if key in self._kept:
                    here[key] = self._kept[key]
                    self._kept.move_to_end(key)
                elif key in self._coming:
                    there[key] = self._coming[key]
                else:
                    there[key] = self._ask(key, span)
                    continue
                self.counters.found += 1
        here |= {key: coming.result() for key, coming in there.items()}
        return replace(content, media=tuple(self._slotted(span, content.salt, here) for span in content.media))

    def _ask(self, key: _Key, span: MediaSpan) -> Future[Embeddings]:
        try:
            self._thread.submit(self._encode_waiting)
        except RuntimeError:
            raise EngineError("the engine was closed", code="engine_closed") from None
        self._waiting.append((key, span))
        coming = self._coming[key] = Future()
        return coming

    def _slotted(self, span: MediaSpan, salt: str, here: Mapping[_Key, Embeddings]) -> MediaSpan:
        return span if span.item is None else replace(span, item=Slot(here[salt, span.digest]))

    # --- the encoding thread ---------------------------------------------------------------------------------------

    def _encode_waiting(self) -> None:
        """Encode all that wait; each of them asked for a turn, so some turns find nothing left to do."""
        with self._lock:
            asked, self._waiting = self._waiting, []
        if not asked:
            return
        made = self._encode([span for _, span in asked])
        with self._lock:
            futures = [self._coming.pop(key) for key, _ in asked]
            for (key, _), one in zip(asked, made, strict=True):
                if not isinstance(one, QakError):
                    self._keep(key, one)
            self._shrink()
        for coming, one in zip(futures, made, strict=True):
            if isinstance(one, QakError):
                coming.set_exception(one)
            else:
                coming.set_result(one)

    def _encode(self, spans: list[MediaSpan]) -> list[Embeddings | QakError]:
        """All together; where that fails each alone, so that it only fails for whom it must."""
        try:
            with torch.inference_mode():
                made = list(self._encoder.encode([span.item for span in spans]))
            if len(made) != len(spans):
                raise _wrong(f"{len(made)} results for {len(spans)} items")
            return [self._checked(span, one) for span, one in zip(spans, made, strict=True)]
        except Exception as error:  # noqa: BLE001  # whatever it is, whoever waits must get it
            if len(spans) > 1:
                return [self._encode([span])[0] for span in spans]
            if isinstance(error, QakError):
                return [error]
            # Its text may quote what it was given, so only the place is told; the error itself is the cause.
            told = describe(error, content=False)
            failed = EngineError(f"encoding media failed with {told}", code="encoder_failed")
            failed.__cause__ = error
            return [failed]

    def _checked(self, span: MediaSpan, one: Embeddings) -> Embeddings:
        if not isinstance(one, Embeddings):
            raise _wrong(f"a {type(one).__name__}; allowed: Embeddings")
        if not isinstance(one.hidden, torch.Tensor):
            kind = f"{type(one.hidden).__module__}.{type(one.hidden).__name__}"
            raise _wrong(f"Embeddings of a {kind}; allowed: a tensor of torch")
        if tuple(one.hidden.shape) != (span.length, self._hidden):
            raise _wrong(f"{list(one.hidden.shape)} for {span.length} ids of width {self._hidden}")
        return one

    def _keep(self, key: _Key, embeddings: Embeddings) -> None:
        self._kept[key] = embeddings
        self._bytes += _size(embeddings)
        self.counters.encoded += 1

    def _shrink(self) -> None:
        while self._bytes > self._budget:
            _, gone = self._kept.popitem(last=False)
            self._bytes -= _size(gone)
            self.counters.evicted += 1


def _wrong(gave: str) -> EngineError:
    return EngineError(f"the encoder gave {gave}", code="encoder_failed")


def _size(embeddings: Embeddings) -> int:
    return sum(t.nbytes for t in (embeddings.hidden, embeddings.deepstack) if t is not None)


def media_rows(
    parts: Sequence[tuple[Sequence[MediaSpan], int, int]], ids: torch.Tensor, model: Decoder | ForeignDecoder
) -> dict[str, torch.Tensor]:
    """The embeddings of a step whose rows meet media, as keyword arguments of ``Decoder.forward_batch``; else none.

    Args:
        parts: Per sequence its media, its first row's position, and its number of rows.
        ids: int64 [n], of all rows.
        model: Has the embedding of ids.
    """
    places: list[tuple[int, int, int, Embeddings]] = []  # row, first, last of the span's own rows
    row = 0
    for media, start, rows in parts:
        for span in media:
            first, last = max(span.start, start), min(span.start + span.length, start + rows)
            if first < last and isinstance(span.item, Slot):
                assert span.item.embeddings is not None, "a request that runs still has its embeddings"
                places.append((row + first - start, first - span.start, last - span.start, span.item.embeddings))
        row += rows
    if not places:
        return {}
    embeds = model.embed(ids)
    result: dict[str, Any] = {"embeds": embeds}
    depth = max(0 if e.deepstack is None else len(e.deepstack) for *_, e in places)
    if depth:
        result["deepstack"] = embeds.new_zeros(depth, *embeds.shape)
    for at, first, last, one in places:
        embeds[at : at + last - first] = one.hidden[first:last]
        if one.deepstack is not None:
            result["deepstack"][: len(one.deepstack), at : at + last - first] = one.deepstack[:, first:last]
    return result
