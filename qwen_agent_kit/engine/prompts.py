"""Checks a prompt before it is queued."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from qwen_agent_kit.backends import MediaSpan, Prompt
from qwen_agent_kit.engine.cache import Content
from qwen_agent_kit.errors import UsageError

__all__ = ["read_prompt"]


def read_prompt(prompt: Prompt | Sequence[int], vocab: int) -> Content:
    """The prompt as arrays. Ids in an ``array`` or an ndarray are not walked one by one.

    Raises:
        UsageError: For ids outside the vocabulary, no ids, media out of place or positions of a wrong shape.
    """
    if not isinstance(prompt, Prompt):
        prompt = Prompt(prompt)
    ids = _ids(prompt.ids, vocab)
    _check_media(prompt.media, len(ids))
    return Content(ids, tuple(prompt.media), _positions(prompt.positions, len(ids)))


def _ids(given: Any, vocab: int) -> npt.NDArray[np.int32]:
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


def _check_media(media: Sequence[MediaSpan], n: int) -> None:
    end = 0
    for span in media:
        if span.item is not None:
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
