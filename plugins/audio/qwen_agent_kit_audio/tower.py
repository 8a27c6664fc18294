"""transformers' own audio tower and projector, with the checkpoint's weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from qwen_agent_kit import foreign
from qwen_agent_kit.backends import Embeddings, MediaBudget, ModelFacts
from qwen_agent_kit.errors import ModelError

if TYPE_CHECKING:
    import torch

    from qwen_agent_kit_audio.items import Item

__all__ = ["Tower", "extractor", "footprint"]


def extractor(facts: ModelFacts) -> Any:
    """Transformers' feature extractor as the model's files set it."""
    transformers = foreign.transformers()
    own = ("processor_class", "feature_extractor_type", "auto_map")
    given = {key: value for key, value in facts.preprocessor.items() if key not in own}
    bins = (facts.config.get("audio_config") or {}).get("num_mel_bins", 128)
    return transformers.WhisperFeatureExtractor(**{"feature_size": bins, **given})


class Tower:
    """An ``Encoder``. Clips are encoded one by one, so that a clip's result never depends on its neighbours.

    Args:
        facts: What the model's files say.
        tensors: The checkpoint's tensors by name.
        device: ``cpu``.

    Raises:
        ModelError: Where a tensor is missing or of another shape.
    """

    def __init__(self, facts: ModelFacts, tensors: Mapping[str, Any], device: str) -> None:
        transformers = foreign.transformers()
        own = {k: v for k, v in facts.config.items() if not k.startswith("_") and k != "auto_map"}
        config = transformers.Qwen2AudioConfig(**own)
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
        return [self._one(item) for item in items]

    def _one(self, item: Item) -> Embeddings:
        import torch  # a plugin that is listed loads no engine

        features, frames = self.features(item)
        heard = (frames - 1) // 2 + 1
        with torch.inference_mode():
            places = (features.shape[-1] - 2) // 2 + 1
            padded = torch.arange(places, device=self._device) >= heard
            mask = torch.zeros(1, 1, places, places, device=self._device).masked_fill_(
                padded, torch.finfo(torch.float32).min
            )
            hidden = self._tower(features, attention_mask=mask).last_hidden_state
            return Embeddings(self._projector(hidden)[0, : item.length])


def _filled(module: Any, tensors: Mapping[str, Any], prefix: str) -> Any:
    start = next((p for p in (f"model.{prefix}", prefix) if any(n.startswith(p) for n in tensors)), None)
    if start is None:
        raise ModelError(f"the checkpoint holds no `{prefix}` tensors", hint="fetch the model again")
    try:
        module.load_state_dict({n.removeprefix(start): tensors[n].float() for n in tensors if n.startswith(start)})
    except RuntimeError as error:
        raise ModelError(f"`{prefix}` does not fit its tensors: {str(error)[:300]}") from error
    return module.eval()


def footprint(facts: ModelFacts, budget: MediaBudget) -> int:
    """Bytes of the tower in float32, and of what a clip of 30 s takes inside it."""
    del budget
    audio = facts.config.get("audio_config") or {}
    layers, width = int(audio.get("encoder_layers", 32)), int(audio.get("d_model", 1280))
    inner, heads = int(audio.get("encoder_ffn_dim", 5120)), int(audio.get("encoder_attention_heads", 20))
    return 4 * (layers * (4 * width * width + 2 * width * inner) + 1500 * (4 * width + inner) + heads * 1500 * 1500)
