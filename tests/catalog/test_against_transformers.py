"""Parameters against the classes themselves, built without weights."""

from __future__ import annotations

import copy
import json
import warnings

import pytest

from qwen_agent_kit import foreign
from qwen_agent_kit.catalog.released import released
from qwen_agent_kit.placement import shape_from_config

THINKERS = {
    "qwen2_5_omni_thinker": ("Qwen2_5OmniThinkerConfig", "Qwen2_5OmniThinkerForConditionalGeneration"),
    "qwen3_omni_moe_thinker": ("Qwen3OmniMoeThinkerConfig", "Qwen3OmniMoeThinkerForConditionalGeneration"),
}


def _cases():
    """Each configuration once; the smallest of each kind in every run, the others with the large counts."""
    configs = {json.dumps(entry.config, sort_keys=True): entry for entry in released()}
    entries = sorted(configs.values(), key=lambda entry: entry.parameters)
    kinds = set()
    for entry in entries:
        kind = entry.config["model_type"]
        yield pytest.param(entry, id=entry.name, marks=[pytest.mark.full] if kind in kinds else [])
        kinds.add(kind)


def _class(transformers, config):
    if config["model_type"] in THINKERS:
        settings, model = THINKERS[config["model_type"]]
        return getattr(transformers, settings)(**config), getattr(transformers, model)
    settings = transformers.AutoConfig.for_model(**config)
    if "audio_config" in config:
        return settings, transformers.Qwen2AudioForConditionalGeneration
    auto = transformers.AutoModelForImageTextToText if "vision_config" in config else transformers.AutoModelForCausalLM
    return settings, auto.from_config


@pytest.mark.parametrize("entry", list(_cases()))
def test_parameters_equal_the_class(entry):
    """What transformers builds from an entry's configuration has exactly the parameters that the catalogue states."""
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # transformers deprecates its own
        settings, make = _class(foreign.transformers(), copy.deepcopy(dict(entry.config)))
        with torch.device("meta"):
            model = make(settings)
        model.tie_weights()
    assert sum(p.numel() for p in model.parameters()) == entry.parameters
    assert shape_from_config(entry.config).parameters == entry.parameters
