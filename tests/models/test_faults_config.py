"""F14: a config.json that lies, or asks for code, is refused by field name; nothing is imported or fetched for it."""

from __future__ import annotations

import json
import socket
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen_agent_kit.errors import ModelError
from qwen_agent_kit.models import config_from, load_model
from qwen_agent_kit.testing.models import tiny_model_dir

GOOD: dict[str, Any] = {
    "model_type": "qwen3",
    "vocab_size": 512,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "intermediate_size": 128,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-6,
}
MOE = {**GOOD, "model_type": "qwen3_moe", "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}

WRONG: list[tuple[dict[str, Any], str]] = [
    ({"num_hidden_layers": -3}, "num_hidden_layers"),
    ({"num_hidden_layers": 10**6}, "num_hidden_layers"),
    ({"vocab_size": 10**9}, "vocab_size"),
    ({"vocab_size": None}, "vocab_size"),
    ({"vocab_size": 512.0}, "vocab_size"),
    ({"vocab_size": True}, "vocab_size"),
    ({"vocab_size": "512"}, "vocab_size"),
    ({"vocab_size": 10**400}, "vocab_size"),
    ({"hidden_size": 0}, "hidden_size"),
    ({"hidden_size": 65}, "num_attention_heads"),
    ({"num_attention_heads": 3}, "num_attention_heads"),
    ({"num_attention_heads": 0}, "num_attention_heads"),
    ({"num_key_value_heads": 3}, "num_key_value_heads"),
    ({"num_key_value_heads": 8}, "num_key_value_heads"),
    ({"head_dim": 15}, "head_dim"),
    ({"head_dim": -16}, "head_dim"),
    ({"intermediate_size": -1}, "intermediate_size"),
    ({"intermediate_size": [128]}, "intermediate_size"),
    ({"max_position_embeddings": 2**40}, "max_position_embeddings"),
    ({"rms_norm_eps": float("nan")}, "rms_norm_eps"),
    ({"rms_norm_eps": -1e-6}, "rms_norm_eps"),
    ({"hidden_act": "gelu"}, "hidden_act"),
    ({"tie_word_embeddings": "yes"}, "tie_word_embeddings"),
    ({"model_type": "gpt2"}, "model_type"),
    ({"model_type": None}, "model_type"),
    ({"model_type": ["qwen3"]}, "model_type"),
    ({"rope_theta": 0}, "rope_theta"),
    ({"rope_theta": float("inf")}, "rope_theta"),
    ({"rope_scaling": "yarn"}, "rope_scaling"),
    ({"rope_scaling": {"type": "longrope"}}, "type"),
    ({"rope_scaling": {"rope_type": "yarn", "factor": -2.0}}, "factor"),
    ({"rope_scaling": {"rope_type": "linear"}}, "factor"),
    ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "low_freq_factor"),
    ({"rope_parameters": {"mrope_section": [1, 2, 3]}}, "mrope_section"),
    ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
    ({"use_sliding_window": True, "sliding_window": 0}, "sliding_window"),
    ({"use_sliding_window": True, "sliding_window": 4, "layer_types": ["full_attention"]}, "layer_types"),
    ({"auto_map": {"AutoModelForCausalLM": "modeling_evil.Evil"}}, "auto_map"),
    ({"auto_map": {"AutoConfig": "someone/else--configuration_qwen.QWenConfig"}}, "auto_map"),
    ({"auto_map": {}}, "auto_map"),
    ({"model_type": "qwen", "auto_map": {"AutoConfig": "configuration_qwen.Other"}}, "auto_map"),
    ({"custom_pipelines": {"x": {"impl": "pipe.Pipe"}}}, "custom_pipelines"),
    ({"_attn_implementation_internal": "someone/kernel"}, "_attn_implementation_internal"),
    ({"_attn_implementation_internal": "sdpa"}, "_attn_implementation_internal"),
    ({"_attn_implementation": "someone/kernel:fn"}, "_attn_implementation"),
    ({"attn_implementation": "someone/kernel"}, "attn_implementation"),
    ({"text_config": {**GOOD, "auto_map": {"AutoConfig": "x.Y"}}}, "auto_map"),
    ({"quantization_config": {"quant_method": "gptq"}}, "quantization_config"),
]
WRONG_MOE: list[tuple[dict[str, Any], str]] = [
    ({"num_experts": 0}, "num_experts"),
    ({"num_experts": 10**9}, "num_experts"),
    ({"num_experts_per_tok": 5}, "num_experts_per_tok"),
    ({"moe_intermediate_size": None}, "moe_intermediate_size"),
    ({"decoder_sparse_step": 0}, "decoder_sparse_step"),
    ({"mlp_only_layers": [2]}, "mlp_only_layers"),
    ({"mlp_only_layers": "0"}, "mlp_only_layers"),
    ({"model_type": "qwen2_moe"}, "shared_expert_intermediate_size"),
]


@pytest.mark.parametrize(
    ("base", "change", "field"), [(GOOD, *case) for case in WRONG] + [(MOE, *case) for case in WRONG_MOE]
)
def test_f14_a_wrong_field_is_named(base: dict[str, Any], change: dict[str, Any], field: str) -> None:
    """What was found and what is allowed, without any allocation for it."""
    config_from(base)
    tracemalloc.start()
    try:
        with pytest.raises(ModelError, match=f"`{field}` in `config.json` is .*; allowed: "):
            config_from({**base, **change})
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "field", [name for name in GOOD if name not in ("rms_norm_eps", "head_dim", "num_key_value_heads")]
)
def test_f14_a_missing_field_is_named(field: str) -> None:
    """Fields without a default in transformers have none here."""
    with pytest.raises(ModelError, match=f"`{field}` in `config.json` is missing"):
        config_from({k: v for k, v in GOOD.items() if k != field})


@pytest.mark.parametrize("change", [case for case, _ in WRONG if not any(v != v for v in case.values())])
def test_f14_loading_imports_and_fetches_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any]
) -> None:
    """The same through ``load_model``: no module of the directory is imported and no socket is opened."""
    tiny_model_dir(tmp_path, "qwen3")
    for name in ("modeling_evil.py", "configuration_qwen.py", "x.py", "pipe.py"):
        (tmp_path / name).write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(str(tmp_path))

    def no_socket(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket.socket, "connect", no_socket)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    before = set(sys.modules)
    with pytest.raises(ModelError):
        load_model(tmp_path)
    assert not {"modeling_evil", "configuration_qwen", "x", "pipe"} & (set(sys.modules) - before)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "cannot be read"),
        ("[]", "holds a list"),
        ('{"vocab_size": NaN}', "NaN"),
        ('{"vocab_size": 1e999}', "not finite"),
        ('{"a": 1, "a": 2}', "twice"),
        ("[" * 100_000, "cannot be read"),
        ('{"a": ' + "9" * 5000 + "}", "cannot be read"),
        ("\xff", "cannot be read"),
    ],
)
def test_f14_a_file_that_is_no_configuration(tmp_path: Path, text: str, says: str) -> None:
    """Empty, another type, NaN, infinity, a key twice, nesting, endless digits, other encodings."""
    tiny_model_dir(tmp_path, "qwen3")
    (tmp_path / "config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(ModelError, match=says):
        load_model(tmp_path)


VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.text(max_size=5),
    st.lists(st.integers(-5, 5), max_size=3),
    st.dictionaries(st.sampled_from(["type", "factor", "rope_theta", "mrope_section"]), st.integers(-5, 5), max_size=2),
)
FIELDS = [*MOE, "rope_scaling", "rope_parameters", "rope_theta", "layer_types", "sliding_window", "use_sliding_window"]


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(st.sampled_from([*FIELDS, "mlp_only_layers", "text_config", "hidden_act"]), VALUES, max_size=3))
def test_f14_any_value_is_read_or_refused(change: dict[str, Any]) -> None:
    """Whatever stands in a field, there is a configuration or a ModelError."""
    for base in (GOOD, MOE):
        try:
            config = config_from({**base, **change})
        except ModelError:
            continue
        assert config.heads % config.kv_heads == 0
        assert config.head_dim % 2 == 0


def test_a_description_survives_the_cache() -> None:
    """``to_dict`` through JSON and back is the same description."""
    rope = {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e6, "mrope_section": [2, 3, 3]}
    sliding = {"use_sliding_window": True, "sliding_window": 7}
    for data in (GOOD, MOE, {**GOOD, "rope_scaling": rope}, {**MOE, **sliding, "mlp_only_layers": [1]}):
        config = config_from(data)
        assert type(config).from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_both_generations_of_configuration_mean_the_same() -> None:
    """rope_theta and rope_scaling of transformers 4 equal rope_parameters of transformers 5."""
    old = {**GOOD, "rope_theta": 1e6, "rope_scaling": {"type": "yarn", "factor": 4.0}, "torch_dtype": "bfloat16"}
    new = {**GOOD, "rope_parameters": {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e6}, "dtype": "bfloat16"}
    assert config_from(old) == config_from(new)
