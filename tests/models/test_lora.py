"""LoRA adapters: read as ``peft`` writes them, and computed beside the base model's matrices."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from adapters import merge, write_adapter
from oracle import MODELS, DenseKV, random_prompts, their_logits, their_model
from safetensors.torch import load_file, save_file

from qwen_agent_kit.errors import ModelError
from qwen_agent_kit.models import Adapter, Segment, load_model
from qwen_agent_kit.testing.models import tiny_model_dir

DENSE = [name for name, fields in MODELS.items() if "moe" not in fields["family"]]


def logits_of(model: Any, prompts: list[list[int]], adapters: list[Adapter | None]) -> list[torch.Tensor]:
    """All prompts in one batch, each with its adapter: [n, vocab] of each."""
    segments = [Segment(DenseKV(), 0, len(p), len(p), a) for p, a in zip(prompts, adapters, strict=True)]
    ids = torch.tensor([i for p in prompts for i in p])
    positions = torch.cat([torch.arange(len(p)) for p in prompts])
    return list(torch.split(model.forward_batch(ids, positions, segments), [len(p) for p in prompts]))


@pytest.mark.parametrize("name", DENSE)
def test_it_gives_what_the_merged_model_gives(tmp_path: Path, name: str) -> None:
    """Every dense family: logits equal transformers' with scale * B A added to its weights, to rounding."""
    tiny_model_dir(tmp_path, **MODELS[name])
    theirs = their_model(tmp_path)
    folder = write_adapter(tmp_path / "adapter", theirs)
    loaded, prompts = load_model(tmp_path), random_prompts(2, 500)
    plain = logits_of(loaded.model, prompts, [None, None])
    found = logits_of(loaded.model, prompts, [loaded.adapter(folder)] * 2)
    merge(theirs, folder, 8 / 4)
    for prompt, ours, before in zip(prompts, found, plain, strict=True):
        torch.testing.assert_close(ours, their_logits(theirs, prompt), rtol=2e-3, atol=2e-3)
        assert float((ours - before).abs().max()) > 0.05


@pytest.mark.parametrize(
    ("fields", "scale"),
    [
        ({"lora_alpha": 16}, 4.0),
        ({"use_rslora": True}, 4.0),
        ({"lora_alpha": 1.0, "alpha_pattern": {"q_proj": 4.0}}, 1.0),
        ({"lora_alpha": 1.0, "alpha_pattern": {"layers.1.self_attn.q_proj": 4.0}}, 1.0),
        ({"lora_alpha": 4.0, "alpha_pattern": {"up_proj": 400.0}}, 1.0),
    ],
)
def test_the_scale_is_pefts(tmp_path: Path, fields: dict[str, Any], scale: float) -> None:
    """alpha / r, alpha / sqrt(r) where it is rank-stabilised, and another alpha for modules that a pattern names."""
    tiny_model_dir(tmp_path, "qwen2")
    theirs = their_model(tmp_path)
    folder = write_adapter(tmp_path / "adapter", theirs, targets=["q_proj"], layers=[1], **fields)
    loaded, prompt = load_model(tmp_path), random_prompts(1, 500)[0]
    found = logits_of(loaded.model, [prompt], [loaded.adapter(folder)])[0]
    torch.testing.assert_close(found, their_logits(merge(theirs, folder, scale), prompt), rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("quant", ["fp32", "bf16", "int8", "int4"])
def test_each_sequence_of_a_batch_has_its_own(tmp_path: Path, quant: str) -> None:
    """Two adapters and none, mixed: each sequence gives what it gives alone, and those without the same to the bit."""
    tiny_model_dir(tmp_path, "qwen3")
    theirs = their_model(tmp_path)
    loaded = load_model(tmp_path, quant=quant)
    one, two = (loaded.adapter(write_adapter(tmp_path / str(s), theirs, seed=s)) for s in (1, 2))
    prompts, adapters = random_prompts(5, 500), [one, None, two, one, None]
    together = logits_of(loaded.model, prompts, adapters)
    tolerance = 1e-4 if quant == "fp32" else 0.06
    for prompt, adapter, found in zip(prompts, adapters, together, strict=True):
        alone = logits_of(loaded.model, [prompt], [adapter])[0]
        torch.testing.assert_close(found, alone, rtol=tolerance, atol=tolerance)
    if loaded.model.native is not None:
        without = logits_of(loaded.model, [prompts[1], prompts[4]], [None, None])
        assert torch.equal(together[1], without[0])
        assert torch.equal(together[4], without[1])


def test_a_vision_models_names_are_read(tmp_path: Path) -> None:
    """The decoder of a larger model is called ``model.language_model``; what lies in the tower is refused."""
    tiny_model_dir(tmp_path, "qwen2")
    folder = write_adapter(tmp_path / "adapter", their_model(tmp_path), targets=["q_proj"])
    tensors = load_file(str(folder / "adapter_model.safetensors"))
    moved = {name.replace("model.model.", "model.model.language_model."): t for name, t in tensors.items()}
    save_file(moved, str(folder / "adapter_model.safetensors"))
    assert set(load_model(tmp_path).adapter(folder).updates) == {(0, "qkv"), (1, "qkv")}
    tower = {"base_model.model.visual.blocks.0.attn.qkv.lora_A.weight": torch.zeros(2, 4)}
    save_file({**moved, **tower}, str(folder / "adapter_model.safetensors"))
    with pytest.raises(ModelError, match=r"visual\.blocks.*is not served"):
        load_model(tmp_path).adapter(folder)


A = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
B = A.replace("lora_A", "lora_B")


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({A: torch.zeros(4, 64)}, "has no other half"),
        ({A: torch.zeros(4, 63), B: torch.zeros(64, 4)}, r"is of shape \[4, 63\]; the model asks for \['r', 64\]"),
        ({A: torch.zeros(4, 64), B: torch.zeros(64, 5)}, r"is of shape \[64, 5\]; the model asks for \[64, 4\]"),
        ({A: torch.zeros(64), B: torch.zeros(64, 4)}, r"is of shape \[64\]"),
        ({A: torch.zeros(0, 64), B: torch.zeros(64, 0)}, "is of shape"),
        ({A: torch.full((4, 64), torch.nan), B: torch.zeros(64, 4)}, "something else than finite numbers"),
        ({A: torch.zeros(4, 64, dtype=torch.int64), B: torch.zeros(64, 4)}, "something else than finite numbers"),
        ({A.replace("layers.0", "layers.9"): torch.zeros(4, 64)}, "is of layer 9; the model has 2"),
        ({"base_model.model.lm_head.lora_A.weight": torch.zeros(4, 64)}, "is not served; allowed: q_proj"),
        ({A.replace("lora_A", "lora_magnitude_vector"): torch.zeros(64)}, "is not served"),
        ({A: torch.zeros(4, 64), A.replace("A.weight", "A.default.weight"): torch.zeros(4, 64)}, "there twice"),
        ({}, "holds no tensors"),
    ],
)
def test_tensors_that_do_not_fit_are_named(tmp_path: Path, tensors: dict[str, torch.Tensor], message: str) -> None:
    """Of another model, half there, of a kind that is not served, or no numbers."""
    tiny_model_dir(tmp_path, "qwen2", hidden=64, heads=4)
    folder = write_adapter(tmp_path / "adapter", their_model(tmp_path))
    save_file(tensors, str(folder / "adapter_model.safetensors"))
    with pytest.raises(ModelError, match=message) as error:
        load_model(tmp_path).adapter(folder)
    assert error.value.code == "invalid_adapter"


@pytest.mark.parametrize(
    "fields",
    [
        {"peft_type": "IA3"},
        {"use_dora": True},
        {"bias": "all"},
        {"lora_bias": True},
        {"modules_to_save": ["lm_head"]},
        {"lora_alpha": "8"},
        {"lora_alpha": 1e300},
        {"alpha_pattern": {"(a+)+$": 3}},
        {"alpha_pattern": [3]},
        {"alpha_pattern": {"q_proj": None}},
    ],
)
def test_a_configuration_that_means_something_else_is_refused(tmp_path: Path, fields: dict[str, Any]) -> None:
    """Its field is named; nothing is computed otherwise than it was trained."""
    tiny_model_dir(tmp_path, "qwen2")
    folder = write_adapter(tmp_path / "adapter", their_model(tmp_path), **fields)
    with pytest.raises(ModelError, match=next(iter(fields))):
        load_model(tmp_path).adapter(folder)


@pytest.mark.parametrize("missing", ["adapter_config.json", "adapter_model.safetensors"])
def test_a_missing_file_is_named(tmp_path: Path, missing: str) -> None:
    """Also where there is a pickle in its place, which is not read."""
    tiny_model_dir(tmp_path, "qwen2")
    folder = write_adapter(tmp_path / "adapter", their_model(tmp_path))
    (folder / missing).unlink()
    (folder / "adapter_model.bin").write_bytes(b"\x80\x04.")
    with pytest.raises(ModelError, match=missing):
        load_model(tmp_path).adapter(folder)


def test_layers_of_experts_take_attention_only(tmp_path: Path) -> None:
    """Their queries are adapted as others'; an adapter for an expert is refused by its tensor."""
    tiny_model_dir(tmp_path, "qwen3_moe")
    theirs = their_model(tmp_path)
    loaded, prompt = load_model(tmp_path), random_prompts(1, 500)[0]
    folder = write_adapter(tmp_path / "adapter", theirs, targets=["q_proj", "o_proj"])
    found = logits_of(loaded.model, [prompt], [loaded.adapter(folder)])[0]
    torch.testing.assert_close(found, their_logits(merge(theirs, folder, 2.0), prompt), rtol=2e-3, atol=2e-3)
    name = "base_model.model.model.layers.0.mlp.up_proj.lora_A.weight"
    save_file({name: torch.zeros(2, 64)}, str(folder / "adapter_model.safetensors"))
    with pytest.raises(ModelError, match="a layer of experts"):
        loaded.adapter(folder)


def test_another_file_is_another_adapter(tmp_path: Path) -> None:
    """The digest is of both files: keys and values of one never serve the other."""
    tiny_model_dir(tmp_path, "qwen2")
    theirs, loaded = their_model(tmp_path), load_model(tmp_path)
    digests = {loaded.adapter(write_adapter(tmp_path / str(s), theirs, seed=s)).digest for s in (1, 2)}
    config = tmp_path / "1" / "adapter_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "lora_alpha": 9}))
    digests.add(loaded.adapter(tmp_path / "1").digest)
    assert len(digests) == 3
