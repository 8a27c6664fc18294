"""What a modality plugin offers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from qwen_agent_kit.messages import Media

__all__ = ["Backend", "Choice", "Embeddings", "Encoder"]


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
