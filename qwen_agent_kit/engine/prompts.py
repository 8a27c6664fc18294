"""Checks a prompt before it is queued."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from qwen_agent_kit.backends import MediaSpan, Prompt
from qwen_agent_kit.engine.content import Content
from qwen_agent_kit.errors import UsageError

if TYPE_CHECKING:
    from qwen_agent_kit.models import Adapter

__all__ = ["PromptReader"]

Ids = npt.NDArray[np.int32]


class PromptReader:
    """Turns prompts into arrays; thread-safe.

    Turning a list of 60,000 ints into an array takes over a millisecond, comparing it with the last one a tenth: in a
    loop, whose prompts begin with the last prompt's very objects, only what is new is converted.

    Args:
        vocab: How many ids there are.
        media: Whether there is an encoder for them.
    """

    def __init__(self, vocab: int, media: bool = False) -> None:
        self._vocab, self._media = vocab, media
        self._last: tuple[list[int], Ids] = ([], np.empty(0, dtype=np.int32))

    def read(self, prompt: Prompt | Sequence[int], salt: str = "", adapter: Adapter | None = None) -> Content:
        """The prompt as arrays, under the salt and adapter that its keys and values belong to.

        An ``array`` or an ndarray is not walked at all.

        Raises:
            UsageError: For ids outside the vocabulary, no ids, media out of place or positions of a wrong shape.
        """
        if not isinstance(prompt, Prompt):
            prompt = Prompt(prompt)
        ids = self._ids(prompt.ids)
        _check_media(prompt.media, len(ids), self._media)
        if adapter is not None:
            salt = f"{salt}\0{adapter.digest}"  # no salt of a caller's holds a zero
        return Content(ids, tuple(prompt.media), _positions(prompt.positions, len(ids)), salt, adapter)

    def _ids(self, given: Any) -> Ids:
        if not isinstance(given, list):
            return _checked(given, self._vocab)
        before, known = self._last
        n = len(before)
        if n < len(given) and given[:n] == before:
            ids = np.concatenate([known, _checked(given[n:], self._vocab)])
        else:
            ids = _checked(given, self._vocab)
        self._last = (given[:], ids)
        return ids


def _checked(given: Any, vocab: int) -> Ids:
    try:
        ids = np.asarray(given)
    except (TypeError, ValueError, OverflowError) as error:
        raise UsageError("the prompt is no sequence of ids; allowed: whole numbers") from error
    if ids.ndim != 1 or not len(ids):
        raise UsageError(f"the prompt has shape {list(ids.shape)}; allowed: at least one id, in one row")
    if ids.dtype.kind not in "iu":
        raise UsageError(f"the prompt holds {ids.dtype.name}; allowed: whole numbers")
    least, most = int(ids.min()), int(ids.max())
    if least < 0 or most >= vocab:
        raise UsageError(f"the prompt holds ids from {least} to {most}; allowed: 0 to {vocab - 1}")
    return ids.astype(np.int32)


def _check_media(media: Sequence[MediaSpan], n: int, welcome: bool) -> None:
    end = 0
    for span in media:
        if span.item is not None and not welcome:
            raise UsageError("the prompt holds media; this engine runs a model without an encoder for them")
        if span.length < 1 or span.start < end or span.start + span.length > n:
            raise UsageError(
                f"a medium spans {span.length} ids from {span.start}; allowed: in order, apart, within {n} ids"
            )
        end = span.start + span.length


def _positions(given: Any, n: int) -> npt.NDArray[np.int64] | None:
    if given is None:
        return None
    positions = np.asarray(given)
    if positions.shape != (3, n) or positions.dtype.kind not in "iu":
        raise UsageError(f"`positions` is {positions.dtype.name} {list(positions.shape)}; allowed: int [3, {n}]")
    return positions.astype(np.int64)
