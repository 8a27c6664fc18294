"""transformers' own audio towers, with the checkpoint's weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from qwen_agent_kit import foreign
from qwen_agent_kit.backends import Embeddings, Encoder, ModelFacts
from qwen_agent_kit.errors import ModelError
from qwen_agent_kit_audio.items import OMNI

if TYPE_CHECKING:
    import torch

    from qwen_agent_kit_audio.items import Item

__all__ = ["OmniTower", "Tower", "extractor", "tower"]

LONGEST = 3000
"""Frames of a clip of 30 s."""


def extractor(facts: ModelFacts) -> Any:
    """Transformers' feature extractor as the model's files set it."""
    transformers = foreign.transformers()
    own = ("processor_class", "feature_extractor_type", "image_processor_type", "auto_map")
    given = {key: value for key, value in facts.preprocessor.items() if key not in own}
    bins = (facts.config.get("audio_config") or {}).get("num_mel_bins", 128)
    window = {"chunk_length": 300} if facts.model_type == OMNI else {}
    return transformers.WhisperFeatureExtractor(**{"feature_size": bins, **window, **given})


def tower(facts: ModelFacts, tensors: Mapping[str, Any], device: str) -> Encoder:
    """The tower of the model's family; see ``Tower``."""
    return (OmniTower if facts.model_type == OMNI else Tower)(facts, tensors, device)


class Tower:
    """An ``Encoder``. Short clips that come together go through the tower together.

    Args:
        facts: What the model's files say.
        tensors: The checkpoint's tensors by name.
        device: ``cpu``.

    Raises:
        ModelError: Where a tensor is missing or of another shape.
    """

    def __init__(self, facts: ModelFacts, tensors: Mapping[str, Any], device: str) -> None:
        transformers = foreign.transformers()
        config = transformers.Qwen2AudioConfig(**_plain(facts.config))
        config.audio_config._attn_implementation = "sdpa"
        module = transformers.models.qwen2_audio.modeling_qwen2_audio
        self._tower = _filled(module.Qwen2AudioEncoder(config.audio_config), tensors, "audio_tower.").to(device)
        self._projector = _filled(module.Qwen2AudioMultiModalProjector(config), tensors, "multi_modal_projector.")
        self._projector.to(device)
        self._extractor, self._device = extractor(facts), device

    def features(self, item: Item) -> tuple[torch.Tensor, int]:
        """float32 [1, bins, 3000], and how many frames the clip fills."""
        made = self._extractor(
            item.samples,
            sampling_rate=16_000,
            return_attention_mask=True,
            padding="max_length",
            return_tensors="pt",
        )
        return made["input_features"].to(self._device), int(made["attention_mask"].sum())

    def encode(self, items: Sequence[Item]) -> list[Embeddings]:
        """One result an item."""
        made: list[Embeddings] = []
        while len(made) < len(items):
            made += self._together(items[len(made) : len(made) + self._most])
        return made

    @property
    def _most(self) -> int:
        """How many clips take no more than the one of 30 s that the plan counts."""
        return max(1, LONGEST // int(self._extractor.nb_max_frames))

    def _together(self, items: Sequence[Item]) -> list[Embeddings]:
        import torch  # a plugin that is listed loads no engine

        heard = [self.features(item) for item in items]
        features = torch.cat([one for one, _ in heard])
        filled = torch.tensor([(frames - 1) // 2 + 1 for _, frames in heard], device=self._device)
        with torch.inference_mode():
            places = (features.shape[-1] - 2) // 2 + 1
            padded = torch.arange(places, device=self._device) >= filled[:, None, None, None]
            mask = torch.zeros(len(items), 1, places, places, device=self._device).masked_fill_(
                padded, torch.finfo(torch.float32).min
            )
            hidden = self._projector(self._tower(features, attention_mask=mask).last_hidden_state)
            # A copy each: what is kept of one must not hold the memory of all, nor of its own silence.
            return [Embeddings(one[: item.length].clone()) for one, item in zip(hidden, items, strict=True)]


class OmniTower:
    """An ``Encoder`` for Qwen2.5-Omni, which hears two seconds at a time; arguments as of ``Tower``."""

    def __init__(self, facts: ModelFacts, tensors: Mapping[str, Any], device: str) -> None:
        transformers = foreign.transformers()
        config = transformers.Qwen2_5OmniThinkerConfig(**_plain(facts.config)).audio_config
        config._attn_implementation = "sdpa"
        module = transformers.models.qwen2_5_omni.modeling_qwen2_5_omni
        self._tower = _filled(module.Qwen2_5OmniAudioEncoder(config), tensors, "audio_tower.").to(device)
        self._extractor, self._device = extractor(facts), device

    def features(self, item: Item) -> torch.Tensor:
        """float32 [bins, frames], as many frames as the clip fills."""
        # The silence that transformers puts behind a clip, as far as the last frame's window reaches into it.
        hop, window = self._extractor.hop_length, self._extractor.n_fft
        made = self._extractor(
            item.samples,
            sampling_rate=16_000,
            return_attention_mask=True,
            padding="max_length",
            max_length=-(-(len(item.samples) + window) // hop) * hop,
            return_tensors="pt",
        )
        features: torch.Tensor = made["input_features"][0, :, : int(made["attention_mask"].sum())]
        return features.to(self._device)

    def encode(self, items: Sequence[Item]) -> list[Embeddings]:
        """One result an item."""
        return [self._one(item) for item in items]

    def _one(self, item: Item) -> Embeddings:
        import torch  # a plugin that is listed loads no engine

        features = self.features(item)
        with torch.inference_mode():
            frames = torch.tensor([features.shape[1]], device=self._device)
            return Embeddings(self._tower(features, feature_lens=frames).last_hidden_state)


def _plain(config: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in config.items() if not k.startswith("_") and k != "auto_map"}


def _filled(module: Any, tensors: Mapping[str, Any], prefix: str) -> Any:
    start = next((p for p in (f"model.{prefix}", prefix) if any(n.startswith(p) for n in tensors)), None)
    if start is None:
        raise ModelError(f"the checkpoint holds no `{prefix}` tensors", hint="fetch the model again")
    try:
        module.load_state_dict({n.removeprefix(start): tensors[n].float() for n in tensors if n.startswith(start)})
    except RuntimeError as error:
        raise ModelError(f"`{prefix}` does not fit its tensors: {str(error)[:300]}") from error
    return module.eval()
