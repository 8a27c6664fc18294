"""What a modality plugin offers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from qwen_agent_kit.messages import Media

__all__ = ["Backend", "Choice", "Embeddings", "Encoder", "MediaBudget", "ModelFacts", "Run", "Share", "Slice"]


@dataclass(frozen=True, slots=True)
class Embeddings:
    """An encoder's output for one item: ``hidden`` [n, d], and per-layer additions ``deepstack`` [k, n, d] or None."""

    hidden: Any
    deepstack: Any = None


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What a model directory says about its media.

    Args:
        config: config.json; of an Omni model the ``thinker_config`` in it.
        preprocessor: preprocessor_config.json, empty where there is none.
        video: video_preprocessor_config.json, empty where there is none.
    """

    config: Mapping[str, Any]
    preprocessor: Mapping[str, Any] = field(default_factory=dict)
    video: Mapping[str, Any] = field(default_factory=dict)

    @property
    def model_type(self) -> str:
        """As config.json names it."""
        return str(self.config.get("model_type", ""))


@dataclass(frozen=True, slots=True)
class MediaBudget:
    """What one medium may take of the model; a part's ``options`` may ask for less or more within the file's limits.

    Args:
        max_pixels: Of an image after resizing, or of one frame; the model's own where None.
        seconds: Of sound; the model's own where None.
    """

    max_pixels: int | None = None
    seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Run:
    """One of several runs of placeholders that stand for one part, as the frames of a video with their times between.

    Args:
        length: How many placeholders.
        digest: Of this run alone.
        item: What the encoder gets.
        before: What is written before them: control tokens of the vocabulary, and text.
        after: What is written after them.
        token: The control token that its placeholders are; the template's own where "".
    """

    length: int
    digest: str
    item: Any
    before: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    token: str = ""


@dataclass(frozen=True, slots=True)
class Share:
    """One of several runs, made by another backend: the sound of a video among its frames.

    Only a model that several backends drive together has such; they may give a ``Share`` wherever a ``Run`` may stand.

    Args:
        part: What the backend of its kind widens, once however many shares it has.
        start: The first of its placeholders.
        stop: Behind the last one, None for all that are left; where none is left there is no run.
        after: What is written after them, or after the run before where there is none.
        token: The control token that its placeholders are.
    """

    part: Media
    start: int = 0
    stop: int | None = None
    after: tuple[str, ...] = ()
    token: str = ""


@dataclass(frozen=True, slots=True)
class Slice:
    """The item of a run that stands for some of an item's placeholders: the item is encoded whole, and once.

    Args:
        item: What the encoder gets.
        start: The first of its placeholders.
        stop: Behind the last one.
    """

    item: Any
    start: int
    stop: int


class Encoder(Protocol):
    """A vision or audio tower.

    One that has a ``version``, a text, tells its versions apart by it: keys and values that another one led to are not
    taken from the disk. What ``Backend.encoder`` makes needs none, its code is told apart by the kit.
    """

    def encode(self, items: Sequence[Any]) -> list[Embeddings]: ...


@dataclass(frozen=True)
class Backend:
    """A modality: which parts it covers, for which model families, and how it turns parts into placeholders.

    Where several backends name one family and cover different media, they drive its models together: each takes the
    parts of its kinds.

    Args:
        name: Unique among installed plugins.
        accepts: The part kinds it covers, ``text`` included.
        families: The catalog families it drives; for models of a plugin's own, their ``model_type``.
        default: The model that answers where none is named, the conversation holds its kinds, and no catalog entry's
            ``default_for`` covers them: a catalog name, a path, ``engine:spec`` or a hub id. It counts where it is on
            this machine; it is never fetched unasked.
        parts: Its own subclasses of ``Media``.
        resident: Whether its model stays loaded beside others.
        widen: ``(part, facts, budget) -> (length, digest, item)``, with ``ModelFacts`` and ``MediaBudget``; length is 1
            or more. The digest, a text, covers the content and all that changes what the encoder makes of it.
            Or a list of ``Run`` and ``Share``, for a part whose placeholders are parted by text or by another part's.
        positions: ``(ids, spans) -> (positions [3, n], next)`` for models with m-rope; None for plain positions. Spans
            may hold items of other backends; those count like text.
        encoder: ``(facts, tensors, device) -> Encoder``; ``tensors`` maps the checkpoint's names to tensors, read on
            demand.
        footprint: ``(facts, budget) -> bytes``: the towers and what they need for the largest medium of the budget.
            None for those of the catalog's families, which the plan counts from config.json to the byte.
        placeholders: Control tokens that stand for its parts in a chat template, besides those of Qwen's own models.
    """

    name: str
    accepts: frozenset[str]
    families: tuple[str, ...] = ()
    default: str | None = None
    parts: tuple[type[Media], ...] = ()
    resident: bool = True
    widen: Callable[..., tuple[int, str, Any] | Sequence[Run | Share]] | None = None
    positions: Callable[..., Any] | None = None
    encoder: Callable[..., Encoder] | None = None
    footprint: Callable[..., int] | None = None
    placeholders: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Choice:
    """A chosen backend's name and why."""

    backend: str
    reason: str
