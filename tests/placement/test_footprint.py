"""Predicted bytes against what is packed."""

from __future__ import annotations

import pytest

from qwen_agent_kit.errors import UsageError
from qwen_agent_kit.placement import SCHEMES, shape_from_config, weight_bytes
from qwen_agent_kit.placement.hardware import device_sizes, parse_bytes
from qwen_agent_kit.testing.random_model import random_tensors

BASE = {"num_hidden_layers": 2, "vocab_size": 5000, "max_position_embeddings": 512}
EXPERTS = {"moe_intermediate_size": 256, "num_experts": 8, "num_experts_per_tok": 2}
MODELS = {
    "llama": {"hidden_size": 576, "num_attention_heads": 9, "num_key_value_heads": 3, "intermediate_size": 1536},
    "qwen": {"hidden_size": 512, "num_attention_heads": 4, "intermediate_size": 2048, "no_bias": True},
    "qwen2": {"hidden_size": 896, "num_attention_heads": 14, "num_key_value_heads": 2, "intermediate_size": 4864},
    "qwen3": {
        "hidden_size": 512,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 128,
        "intermediate_size": 1500,
    },
    "qwen2_moe": {
        "hidden_size": 512,
        "num_attention_heads": 8,
        "intermediate_size": 1536,
        **EXPERTS,
        "shared_expert_intermediate_size": 512,
    },
    "qwen3_moe": {
        "hidden_size": 512,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 64,
        "intermediate_size": 1536,
        **EXPERTS,
    },
}
LARGE = {
    "qwen2": ("Qwen2.5-0.5B-Instruct", {}),
    "qwen3": ("Qwen3-0.6B", {"num_hidden_layers": 12}),
    "qwen3_moe": ("Qwen3-30B-A3B", {"num_hidden_layers": 2, "num_experts": 16, "vocab_size": 50000}),
    "qwen2_moe": ("Qwen1.5-MoE-A2.7B-Chat", {"num_hidden_layers": 3, "num_experts": 8, "vocab_size": 50000}),
    "llama": ("SmolLM2-360M-Instruct", {}),
}


def packed(config, scheme: str) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in random_tensors(config, scheme).values())


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("kind", MODELS)
def test_predicted_bytes_are_packed(kind: str, tied: bool, scheme: str) -> None:
    """For every architecture and scheme the planner counts what packing makes, within a thousandth."""
    config = {"model_type": kind, **BASE, **MODELS[kind], "tie_word_embeddings": tied}
    assert weight_bytes(shape_from_config(config), scheme) == pytest.approx(packed(config, scheme), rel=1e-3)


@pytest.mark.full
@pytest.mark.parametrize("scheme", ["bf16", "int8", "int4"])
@pytest.mark.parametrize("kind", LARGE)
def test_predicted_bytes_are_packed_in_large_models(kind: str, scheme: str) -> None:
    """The same for models of hundreds of megabytes, in released shapes."""
    from qwen_agent_kit.catalog.released import find

    name, changes = LARGE[kind]
    config = {**find(name)[0].config, **changes}
    assert weight_bytes(shape_from_config(config), scheme) == pytest.approx(packed(config, scheme), rel=1e-2)


def test_sizes_as_people_write_them() -> None:
    """GiB is 2**30, GB is 10**9, and a bare number is GiB; cards are counted or named."""
    assert parse_bytes("24GiB") == parse_bytes("24") == 24 * 2**30
    assert parse_bytes("16 gb") == 16 * 10**9
    assert parse_bytes("512MiB") == 2**29
    assert device_sizes("2x24GiB, 16GiB") == [("24 GiB card", 24 * 2**30)] * 2 + [("16 GiB card", 16 * 2**30)]
    assert device_sizes("RTX 4090") == [("rtx 4090", 24 * 2**30)]
    for wrong in ("", "two", "-1GiB", "0x24", "24GiB x 2", "1e400"):
        with pytest.raises(UsageError):
            device_sizes(wrong)
