"""transformers' own vision tower, with the checkpoint's weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from qwen_agent_kit import foreign
from qwen_agent_kit.backends import Embeddings, MediaBudget, ModelFacts
from qwen_agent_kit.errors import ModelError
from qwen_agent_kit_vision import numbers

if TYPE_CHECKING:
    import torch

    from qwen_agent_kit_vision.items import Item

__all__ = ["Tower", "footprint"]

_PREFIXES = ("model.visual.", "visual.")
_PLACES = {
    "qwen2_vl": ("Qwen2VLConfig", "qwen2_vl", "Qwen2VisionTransformerPretrainedModel"),
    "qwen2_5_vl": ("Qwen2_5_VLConfig", "qwen2_5_vl", "Qwen2_5_VisionTransformerPretrainedModel"),
    "qwen3_vl": ("Qwen3VLConfig", "qwen3_vl", "Qwen3VLVisionModel"),
}


class Tower:
    """An ``Encoder``. Items are encoded one by one, so that an image's result never depends on its neighbours.

    Args:
        facts: What the model's files say.
        tensors: The checkpoint's tensors by name.
        device: ``cpu``.

    Raises:
        ModelError: Where a tensor is missing or of another shape.
    """

    def __init__(self, facts: ModelFacts, tensors: Mapping[str, Any], device: str) -> None:
        self._image, self._video = numbers.processors(facts.model_type, facts.preprocessor, facts.video)
        self._model = _build(facts, tensors).to(device).eval()
        self._device = device

    def encode(self, items: Sequence[Item]) -> list[Embeddings]:
        """One result an item."""
        return [self._one(item) for item in items]

    def pixel_values(self, item: Item) -> torch.Tensor:
        """float32 [patches, values], as the model's processor makes them."""
        if item.pixels.ndim == 3:
            made = self._image(images=[item.pixels], do_resize=False, return_tensors="pt")
            values: torch.Tensor = made["pixel_values"]
        else:
            made = self._video(
                videos=[item.pixels], do_resize=False, do_sample_frames=False, return_tensors="pt", **_cap(self._video)
            )
            values = made["pixel_values_videos"]
        return values.to(self._device)

    def _one(self, item: Item) -> Embeddings:
        import torch  # a plugin that is listed loads no engine

        grid = torch.tensor([item.grid], device=self._device)
        with torch.inference_mode():
            out = self._model(self.pixel_values(item), grid_thw=grid)
        deep = getattr(out, "deepstack_features", None)
        return Embeddings(out.pooler_output, torch.stack(list(deep)) if deep else None)


def _cap(processor: Any) -> dict[str, Any]:
    return {"cap_pixels_per_frame": False} if hasattr(processor, "cap_pixels_per_frame") else {}


def _build(facts: ModelFacts, tensors: Mapping[str, Any]) -> Any:
    transformers = foreign.transformers()
    config_name, module, name = _PLACES[facts.model_type]
    config = getattr(transformers, config_name)(**_plain(facts.config)).vision_config
    config._attn_implementation = "sdpa"
    place = getattr(transformers.models, module)
    tower = getattr(getattr(place, f"modeling_{module}"), name)(config)
    prefix = next((p for p in _PREFIXES if any(n.startswith(p) for n in tensors)), None)
    if prefix is None:
        raise ModelError("the checkpoint holds no `visual.` tensors", hint="fetch the model again")
    state = {n.removeprefix(prefix): tensors[n].float() for n in tensors if n.startswith(prefix)}
    try:
        tower.load_state_dict(state)
    except RuntimeError as error:
        raise ModelError(f"the vision tower does not fit its tensors: {str(error)[:300]}") from error
    return tower


def _plain(config: Mapping[str, Any]) -> dict[str, Any]:
    """config.json's sizes without what would name code or kernels."""
    return {k: v for k, v in config.items() if not k.startswith("_") and k not in ("auto_map", "transformers_version")}


def footprint(facts: ModelFacts, budget: MediaBudget) -> int:
    """Bytes of the tower in float32, and of what the largest image takes inside it."""
    vision = facts.config.get("vision_config") or {}
    depth = int(vision.get("depth", 32))
    width = int(vision.get("hidden_size", vision.get("embed_dim", 1280)))
    inner = int(vision.get("intermediate_size", 4 * width))
    patch = int(vision.get("patch_size", vision.get("spatial_patch_size", 14)))
    weights = depth * (4 * width * width + 3 * width * inner) + 8 * width * width
    patches = (budget.max_pixels or 1_003_520) // patch**2
    return 4 * (weights + patches * (6 * width + 2 * inner))
