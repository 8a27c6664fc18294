"""A model's eyes and ears: the backend that covers its family, its facts, and its tower's weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qwen_agent_kit.backends import Backend, Encoder, MediaBudget, MediaSpan, ModelFacts, Run
from qwen_agent_kit.catalog import family_of
from qwen_agent_kit.errors import MediaError, ModelError, PluginError, UsageError
from qwen_agent_kit.host.joint import asked, media_driver
from qwen_agent_kit.host.plugin_code import code_of
from qwen_agent_kit.media import MediaLimits, stated_pixels
from qwen_agent_kit.messages import Media, Message
from qwen_agent_kit.placement.reading import thinker_of

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
            PluginError: Where the backend fails, or gives no digest.
        """
        if part.kind not in self.kinds:
            raise UsageError(
                f"the model takes {sorted(self.kinds)}; found a part of kind {part.kind!r}", code="unsupported_kind"
            )
        assert self.backend.widen is not None, "checked where it was made"
        made = asked(self.backend, "widen", self.backend.widen, part, self.facts, self.budget)
        if isinstance(made, tuple):
            self._check_digest(made[1])
            return made
        runs = [run for run in made if isinstance(run, Run)]
        if len(runs) < len(made):
            raise MediaError(f"the {part.kind} holds what no installed backend takes for this model")
        for run in runs:
            self._check_digest(run.digest)
        return runs

    def _check_digest(self, digest: Any) -> None:
        """Parts of one digest share what was made of them: one that is none would mix strangers'."""
        if not isinstance(digest, str) or not digest:
            raise PluginError(
                f"`widen` of the backend {self.backend.name!r} gave the digest {digest!r:.80}; allowed: a text",
                hint="hashlib.sha256 of all that the encoder sees, as hexdigest()",
            )

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
        tensors = _Tensors(self.folder)
        naming = tensors.model.naming
        own = {part.name for part, _ in wanted(config, naming)}
        inside = f"{naming.prefix}layers."  # quantised layers have tensors of other names
        others = [name for name in tensors.names.values() if name not in own and not name.startswith(inside)]
        others = [name for name in others if not name.endswith("lm_head.weight")]
        return sum(4 * prod(tensors.model.shape(name) or ()) for name in others)

    def encoder(self, device: str = "cpu") -> Encoder:
        """The tower, read on the first medium."""
        assert self.backend.encoder is not None, "checked where it was made"
        return _Lazy(self.backend, self.facts, self.folder, device)


class _Lazy:
    """An encoder that costs nothing in a conversation of text only."""

    def __init__(self, backend: Backend, facts: ModelFacts, folder: Path, device: str) -> None:
        self._made: Encoder | None = None
        self._from = (backend, facts, folder, device)
        self.version = code_of(backend)

    def encode(self, items: Sequence[Any]) -> list[Any]:
        if self._made is None:  # the engine's media cache calls this under its lock
            backend, facts, folder, device = self._from
            assert backend.encoder is not None, "checked where it was made"
            self._made = backend.encoder(facts, _Tensors(folder), device)
        return self._made.encode(items)


class _Tensors(Mapping[str, Any]):
    """A checkpoint's tensors by name, read on demand; of an Omni model its thinker's, without that word before them."""

    def __init__(self, folder: Path) -> None:
        from qwen_agent_kit.models import SafetensorsModel

        self.model = SafetensorsModel(folder, "transformers")
        names = self.model.names
        thinker = [name for name in names if name.startswith(_THINKER)]
        self.names = {name.removeprefix(_THINKER): name for name in thinker or names}

    def __getitem__(self, name: str) -> Any:
        if name not in self.names:
            raise _NoTensorError(f"the checkpoint has no tensor {name!r}", hint="its encoder needs it")
        return self.model.read(self.names[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)


class _NoTensorError(ModelError, KeyError):
    """What a mapping raises for a name that it lacks, as an error of the kit's."""


_THINKER = "thinker."


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
    backend = media_driver(name, backends)
    if backend is None:
        return None
    files = (path / "preprocessor_config.json", path / "video_preprocessor_config.json")
    images, video = (read_json(file, largest=2**22) if file.is_file() else {} for file in files)
    return LocalMedia(backend, ModelFacts(thinker_of(config), images, video), path, MediaBudget())
