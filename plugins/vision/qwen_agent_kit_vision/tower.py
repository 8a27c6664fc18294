"""transformers' own vision tower, with the checkpoint's weights."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from qwen_agent_kit import foreign
from qwen_agent_kit.backends import Embeddings, ModelFacts
from qwen_agent_kit.errors import ModelError
from qwen_agent_kit_vision import numbers

if TYPE_CHECKING:
    import torch

    from qwen_agent_kit_vision.items import Item

__all__ = ["Tower"]

LARGEST = 1_003_520
"""Pixels of an image where the plan says nothing."""
PACKED = LARGEST // 14**2
"""Patches of images that run together."""
_PREFIXES = ("model.visual.", "visual.")
_PLACES = {
    "qwen2_vl": ("Qwen2VLConfig", "qwen2_vl", "Qwen2VisionTransformerPretrainedModel"),
    "qwen2_5_vl": ("Qwen2_5_VLConfig", "qwen2_5_vl", "Qwen2_5_VisionTransformerPretrainedModel"),
    "qwen2_5_omni_thinker": ("Qwen2_5OmniThinkerConfig", "qwen2_5_omni", "Qwen2_5OmniVisionEncoder"),
    "qwen3_vl": ("Qwen3VLConfig", "qwen3_vl", "Qwen3VLVisionModel"),
}


class Tower:
    """An ``Encoder``. Items that come together are packed into one run of the tower, which keeps them apart.

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
        return [one for run in _runs(items) for one in self._packed(run)]

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

    def _packed(self, items: Sequence[Item]) -> list[Embeddings]:
        import torch  # a plugin that is listed loads no engine

        grids = torch.tensor([item.grid for item in items], device=self._device)
        with torch.inference_mode():
            out = self._model(torch.cat([self.pixel_values(item) for item in items]), grid_thw=grids)
        deep = getattr(out, "deepstack_features", None)
        stack = torch.stack(list(deep)) if deep else None
        made, start = [], 0
        for end in accumulate(item.length for item in items):
            # A copy each: what is kept of one must not hold the memory of all.
            above = None if stack is None else stack[:, start:end].clone()
            made.append(Embeddings(out.pooler_output[start:end].clone(), above))
            start = end
        return made


def _runs(items: Sequence[Item]) -> list[list[Item]]:
    """Neighbours that run together: no more patches than the largest image that the plan counts, or one alone."""
    runs: list[list[Item]] = []
    filled = 0
    for item in items:
        patches = math.prod(item.grid)
        if not runs or filled + patches > PACKED:
            runs.append([])
            filled = 0
        runs[-1].append(item)
        filled += patches
    return runs


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
