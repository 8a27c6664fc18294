"""A model's eyes and ears: the backend that covers its family, its facts, and its tower's weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qwen_agent_kit.backends import Backend, Encoder, MediaBudget, MediaSpan, ModelFacts, Run
from qwen_agent_kit.catalog import family_of
from qwen_agent_kit.errors import MediaError, UsageError
from qwen_agent_kit.media import MediaLimits, stated_pixels
from qwen_agent_kit.messages import Media, Message

if TYPE_CHECKING:
    import numpy as np

    from qwen_agent_kit.models import DecoderConfig, ForeignConfig

__all__ = ["LocalMedia", "check_items", "media_of"]


@dataclass(frozen=True)
class LocalMedia:
    """How one model takes media.

    Args:
        backend: The plugin's.
        facts: What the model's files say.
        folder: With the weights.
        budget: Of the plan.
    """

    backend: Backend
    facts: ModelFacts
    folder: Path
    budget: MediaBudget

    @property
    def kinds(self) -> frozenset[str]:
        """The part kinds that the model takes: those of its family that the backend covers."""
        family = family_of(self.facts.model_type)
        return self.backend.accepts if family is None else self.backend.accepts & family.kinds

    def widen(self, part: Media) -> tuple[int, str, Any] | list[Run]:
        """See ``Backend.widen``.

        Raises:
            UsageError: For a kind that the model does not take.
            MediaError: For a medium that is refused.
        """
        if part.kind not in self.kinds:
            raise UsageError(
                f"the model takes {sorted(self.kinds)}; found a part of kind {part.kind!r}", code="unsupported_kind"
            )
        assert self.backend.widen is not None, "checked where it was made"
        return self.backend.widen(part, self.facts, self.budget)

    def positions(self, ids: Sequence[int], spans: Sequence[MediaSpan]) -> np.ndarray | None:
        """int64 [3, n] for m-rope, None for plain positions."""
        if self.backend.positions is None or not spans:
            return None
        positions: np.ndarray | None = self.backend.positions(ids, spans)[0]
        return positions

    def tower_bytes(self, config: DecoderConfig | ForeignConfig) -> int:
        """Of what the files hold besides the decoder of ``config``, in float32, as encoders run."""
        from qwen_agent_kit import models
        from qwen_agent_kit.models.packing import wanted

        if not isinstance(config, models.DecoderConfig):
            return 0  # transformers' modules hold what there is
        model = models.SafetensorsModel(self.folder, "transformers")
        own = {part.name for part, _ in wanted(config, model.naming)}
        shapes = [model.shape(name) for name in model.names if name not in own and not name.endswith("lm_head.weight")]
        return sum(4 * prod(shape or ()) for shape in shapes)

    def encoder(self, device: str = "cpu") -> Encoder:
        """The tower, read on the first medium."""
        assert self.backend.encoder is not None, "checked where it was made"
        return _Lazy(self.backend, self.facts, self.folder, device)


class _Lazy:
    """An encoder that costs nothing in a conversation of text only."""

    def __init__(self, backend: Backend, facts: ModelFacts, folder: Path, device: str) -> None:
        self._made: Encoder | None = None
        self._from = (backend, facts, folder, device)

    def encode(self, items: Sequence[Any]) -> list[Any]:
        if self._made is None:  # the engine's media cache calls this under its lock
            backend, facts, folder, device = self._from
            assert backend.encoder is not None, "checked where it was made"
            self._made = backend.encoder(facts, _Tensors(folder), device)
        return self._made.encode(items)


class _Tensors(Mapping[str, Any]):
    """A checkpoint's tensors by name, read on demand."""

    def __init__(self, folder: Path) -> None:
        from qwen_agent_kit.models import SafetensorsModel

        self._model = SafetensorsModel(folder, "transformers")

    def __getitem__(self, name: str) -> Any:
        if self._model.shape(name) is None:
            raise KeyError(name)
        return self._model.read(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._model.names)

    def __len__(self) -> int:
        return len(self._model.names)


def check_items(messages: Sequence[Message], limits: MediaLimits | None = None) -> None:
    """Refuse a request of too many media before one is opened.

    Raises:
        MediaError: Where it has more than ``limits.items``, or its pictures state more than ``limits.stated_pixels``.
    """
    limits = limits or MediaLimits()
    media = [part for message in messages for part in message.media]
    if len(media) > limits.items:
        raise MediaError(f"the conversation holds {len(media)} media; allowed: at most {limits.items}", code="too_many")
    total = sum(stated_pixels(part) for part in media if part.kind == "image")
    if total > limits.stated_pixels:
        raise MediaError(
            f"the conversation's pictures state {total} pixels together; allowed: at most {limits.stated_pixels}",
            hint="scale them down, or send fewer at a time",
            code="too_large",
        )


def check_pixels(spans: Sequence[MediaSpan], limits: MediaLimits | None = None) -> None:
    """Refuse a request whose media have too many pixels together, before one is encoded.

    Raises:
        MediaError: Where they have more than ``limits.total_pixels``.
    """
    most = (limits or MediaLimits()).total_pixels
    total = sum(int(getattr(span.item, "total_pixels", 0)) for span in spans)
    if total > most:
        raise MediaError(
            f"the conversation's media have {total} pixels together; allowed: at most {most}",
            hint="give each less, as in Image(path, options={'max_pixels': 500_000})",
            code="too_large",
        )


def media_of(path: Path, backends: Sequence[Backend]) -> LocalMedia | None:
    """How the model at ``path`` takes media, None for one of text only or whose family no installed backend drives.

    Raises:
        ModelError: Where a file that describes it is broken.
    """
    from qwen_agent_kit.models import read_json

    if not path.is_dir() or not (path / "config.json").is_file():
        return None
    config = read_json(path / "config.json", largest=2**22)
    kind = str(config.get("model_type", ""))
    family = family_of(kind)
    if family is not None and family.kinds == {"text"}:
        return None
    name = kind if family is None else family.name  # a plugin's own models are named by their type
    fitting = [b for b in backends if name in b.families and b.widen and b.encoder]
    if not fitting:
        return None
    files = (path / "preprocessor_config.json", path / "video_preprocessor_config.json")
    images, video = (read_json(file, largest=2**22) if file.is_file() else {} for file in files)
    backend = min(fitting, key=lambda b: (len(b.accepts), b.name))
    return LocalMedia(backend, ModelFacts(config, images, video), path, MediaBudget())
