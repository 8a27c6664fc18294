"""Sizes of published configurations: parameters, keys and values per token."""

from __future__ import annotations

import pytest
from cases import load

from qwen_agent_kit.catalog.released import find
from qwen_agent_kit.placement import file_bytes, footprint, shape_from_config

CASES = [pytest.param(case, id=case["id"]) for case in load("08_model_configs.jsonl")]


@pytest.mark.parametrize("case", CASES)
def test_sizes_are_exact(case):
    """Parameters, bfloat16 bytes, layers with keys and values, and bytes per token, to the last one."""
    shape = shape_from_config(case["config"])
    assert shape.parameters == case["expected_total_params"]
    assert shape.full_layers == case["full_attention_layers"]
    assert shape.kv_bytes(2) == case["kv_bytes_per_token_bf16"]
    assert file_bytes(shape, "bf16") == case["weight_bytes"]["bf16"]
    parts = footprint(shape, "bf16")
    assert sum(parts.layer_kv(i) for i in range(shape.layers)) == case["kv_bytes_per_token_bf16"]


@pytest.mark.parametrize("case", CASES)
def test_the_catalogue_agrees(case):
    """Where the catalogue has the model, or its instruct sibling, it states the same parameters."""
    name = case["id"].partition("#")[0]
    names = [
        name,
        name.removesuffix("-Base"),
        f"{name}-Instruct",
        f"{name}-Chat",
        name.removesuffix("-Static-PerTensor"),
    ]
    known = next((found for one in names if (found := find(one))), None)
    assert known is not None, f"the catalogue lacks {case['id']}"
    assert known[0].parameters == case["expected_total_params"]
