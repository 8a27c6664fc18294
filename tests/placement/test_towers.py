"""Models that see and hear: the plan counts their encoders, whether or not a plugin is there to load them."""

from __future__ import annotations

import json
from importlib.util import find_spec
from math import prod
from pathlib import Path

import pytest
from safetensors import safe_open

from qwen_agent_kit.placement import make_plan

NAMES = ("miniature-vl", "miniature-audio")


def folder(name: str) -> Path:
    found = find_spec("qwen_agent_kit_miniatures_weights")
    assert found is not None
    assert found.submodule_search_locations is not None
    return Path(found.submodule_search_locations[0]) / name


@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_of_a_miniature_is_planned(name: str) -> None:
    """Parameters, and those of the encoder, are those of the file; the encoder is counted in float32."""
    with safe_open(folder(name) / "model.safetensors", "pt") as file:
        counts = {key: prod(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118  # no mapping
    tower = sum(n for key, n in counts.items() if not key.startswith(("model.", "language_model.", "lm_head.")))
    if name == "miniature-vl":
        tower = sum(n for key, n in counts.items() if "visual." in key)
    made = make_plan(name, folder(name), quant="bf16")
    assert made.parameters == sum(counts.values())
    assert made.tower_bytes == 4 * tower > 0
    kinds = json.loads((folder(name) / "config.json").read_bytes())
    assert (made.max_pixels is not None) == ("vision_config" in kinds)
    assert (made.audio_seconds is not None) == ("audio_config" in kinds)
