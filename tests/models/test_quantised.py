"""Checkpoints that other tools quantised: undone as the tool undoes them, refused where they do not fit together."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from oracle import our_logits
from safetensors.torch import load_file, save_file

from qwen_agent_kit.backends import Backend, MediaBudget, ModelFacts
from qwen_agent_kit.errors import ModelError
from qwen_agent_kit.host.media import LocalMedia
from qwen_agent_kit.models import load_model
from qwen_agent_kit.models.quantised import QuantisedModel, method_for
from qwen_agent_kit.models.safetensors_file import SafetensorsModel

DATA = Path(__file__).parents[1] / "data" / "quantised"
CASES = sorted(path.name for path in DATA.iterdir() if (path / "config.json").is_file())
SHOWN = "model.layers.0.self_attn.q_proj.weight"


def tool_precision(name: str) -> float:
    """What the tool that wrote a checkpoint rounds to when it undoes it; ours undoes in float32."""
    if name.startswith("fp8") or name == "bnb-int8":
        return 2**-20  # float32, and the order of sums
    return 2**-11 if name.startswith(("awq", "bnb")) else 2**-8  # half precision, bfloat16


@pytest.mark.parametrize("name", CASES)
def test_a_foreign_checkpoint_gives_its_own_logits(name: str) -> None:
    """A matrix equals the tool's own undoing to what the tool rounds to, the logits on all of them to twice that."""
    folder = DATA / name
    reference = load_file(folder / "reference.safetensors")
    config = json.loads((folder / "config.json").read_bytes())
    plain = SafetensorsModel(folder, "transformers")
    source = QuantisedModel(plain, method_for(config["quantization_config"]))
    most = tool_precision(name)
    assert off(source.read(SHOWN), reference[SHOWN]) < most
    found = our_logits(load_model(folder).model, reference["ids"].tolist())
    assert off(found, reference["logits"]) < 2 * most


def off(found: torch.Tensor, expected: torch.Tensor) -> float:
    assert found.shape == expected.shape
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize("name", ["gptq-4bit-act", "awq-4bit", "fp8-block", "bnb-nf4-double"])
@pytest.mark.parametrize("scheme", ["int8", "int4"])
def test_a_foreign_checkpoint_is_packed_again(name: str, scheme: str) -> None:
    """Packed into our own schemes, the logits stay near the reference."""
    folder = DATA / name
    reference = load_file(folder / "reference.safetensors")
    found = our_logits(load_model(folder, quant=scheme).model, reference["ids"].tolist())
    assert off(found, reference["logits"]) < (0.05 if scheme == "int8" else 0.35)


@pytest.mark.parametrize("name", ["gptq-4bit-act", "awq-4bit"])
@pytest.mark.parametrize("nested", [False, True], ids=["beside", "inside"])
def test_a_quantised_thinker_is_its_text_model(tmp_path: Path, name: str, nested: bool) -> None:
    """Of an Omni checkpoint, wherever its config.json says how it is quantised; its talker is not looked at."""
    shutil.copytree(DATA / name, tmp_path / "omni")
    folder = tmp_path / "omni"
    config = json.loads((folder / "config.json").read_bytes())
    said = {"quantization_config": config.pop("quantization_config")}
    text = config | {"model_type": "qwen2_5_omni_text"}
    thinker = {"model_type": "qwen2_5_omni_thinker", "text_config": text}
    outer = {"model_type": "qwen2_5_omni", "thinker_config": thinker | (said if nested else {})}
    (folder / "config.json").write_text(json.dumps(outer | ({} if nested else said)))
    tensors = {f"thinker.{key}": value for key, value in load_file(folder / "model.safetensors").items()}
    save_file({**tensors, "talker.lm_head.weight": torch.zeros(2)}, folder / "model.safetensors")
    (folder / "reference.safetensors").unlink()
    expected = our_logits(load_model(DATA / name).model, [1, 2, 3])
    loaded = load_model(folder)
    assert torch.equal(our_logits(loaded.model, [1, 2, 3]), expected)
    media = LocalMedia(Backend("any", frozenset({"text"})), ModelFacts({}), folder, MediaBudget())
    assert media.tower_bytes(loaded.config) == 0


@pytest.fixture
def copied(tmp_path: Path) -> Any:
    def copy(name: str) -> Path:
        shutil.copytree(DATA / name, tmp_path / name)
        (tmp_path / name / "reference.safetensors").unlink()
        return tmp_path / name

    return copy


@pytest.mark.parametrize("name", ["gptq-4bit-act", "awq-4bit", "fp8-block", "bnb-nf4-double", "ct-int4"])
def test_quantised_checkpoints_in_shards(copied: Any, name: str) -> None:
    """A matrix whose tensors lie in different files is the same matrix."""
    folder = copied(name)
    expected = our_logits(load_model(folder).model, [1, 2, 3])
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    places = {key: f"model-0000{1 + i % 3}-of-00003.safetensors" for i, key in enumerate(sorted(tensors))}
    for place in set(places.values()):
        save_file({key: tensors[key] for key, where in places.items() if where == place}, folder / place)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    assert torch.equal(our_logits(load_model(folder).model, [1, 2, 3]), expected)


@pytest.mark.parametrize("name", ["gptq-4bit-act", "bnb-int8", "fp8-tensor"])
def test_a_quantised_checkpoint_with_a_head_of_its_own(copied: Any, name: str) -> None:
    """An untied head is read beside quantised layers: with twice the embedding as head, logits double."""
    folder = copied(name)
    expected = our_logits(load_model(folder).model, [1, 2, 3])
    tensors = load_file(folder / "model.safetensors")
    save_file({**tensors, "lm_head.weight": tensors["model.embed_tokens.weight"] * 2}, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_bytes())
    (folder / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": False}))
    torch.testing.assert_close(our_logits(load_model(folder).model, [1, 2, 3]), expected * 2)


def test_gptq_zeros_of_zero(copied: Any) -> None:
    """GPTQModel's version 1 files take ones off whole words; a zero of 0 borrows from the next, and is put back."""
    folder = copied("gptq-4bit-v2")
    path = folder / "model.safetensors"
    tensors = load_file(path)
    config = json.loads((folder / "config.json").read_bytes())
    for key in [key for key in tensors if key.endswith("qzeros")]:
        tensors[key] = tensors[key] & 0x0FF0F00F  # every other zero becomes 0, alone, in pairs and at the word's end
        assert (tensors[key] & 0xF0 == 0).any()
    save_file(tensors, path)
    expected = our_logits(load_model(folder).model, [1, 2, 3])
    one = {k: t - 0b00010001000100010001000100010001 if k.endswith("qzeros") else t for k, t in tensors.items()}
    save_file(one, path)
    config["quantization_config"] |= {"checkpoint_format": "gptq", "format": "gptq"}
    (folder / "config.json").write_text(json.dumps(config))
    assert torch.equal(our_logits(load_model(folder).model, [1, 2, 3]), expected)


def test_one_scale_for_a_matrix_may_be_a_scalar(copied: Any) -> None:
    """Some releases write the scale of a whole matrix without axes, and name it ``weight_scale``."""
    folder = copied("fp8-tensor")
    expected = our_logits(load_model(folder).model, [1, 2, 3])
    path = folder / "model.safetensors"
    tensors = {
        key.replace("weight_scale_inv", "weight_scale"): tensor.view(()) if "scale" in key else tensor
        for key, tensor in load_file(path).items()
    }
    save_file(tensors, path)
    assert torch.equal(our_logits(load_model(folder).model, [1, 2, 3]), expected)


@pytest.mark.parametrize("name", ["gptq-4bit-act", "awq-4bit", "fp8-block", "bnb-nf4-double", "bnb-int8", "ct-int4"])
def test_f13_mutated_quantised_checkpoints(copied: Any, name: str) -> None:
    """10 mutations each: refused with a ModelError or loaded, never anything else."""
    assert 0 < mutate(copied(name), range(10)) < 10


@pytest.mark.full
@pytest.mark.parametrize("name", ["gptq-4bit-act", "awq-4bit", "fp8-block", "bnb-nf4-double", "bnb-int8", "ct-int4"])
def test_f13_mutated_quantised_checkpoints_at_length(copied: Any, name: str) -> None:
    """1,000 mutations in all."""
    assert mutate(copied(name), range(1000, 1167)) > 40


def mutate(folder: Path, seeds: range) -> int:
    """Damage the header, or the data, by the seed; how many were refused."""
    path = folder / "model.safetensors"
    whole, refused = path.read_bytes(), 0
    expected = our_logits(load_model(folder).model, [1, 2, 3])
    header = 8 + int.from_bytes(whole[:8], "little")
    for seed in seeds:
        rng = random.Random(seed)
        damaged = bytearray(whole)
        within = header if seed % 2 else len(whole)
        for _ in range(rng.choice((1, 2, 8))):
            damaged[rng.randrange(within)] = rng.choice((0, 0x22, 0x39, 0x7F, 0xFF, rng.randrange(256)))
        if rng.random() < 0.1:
            damaged = damaged[: rng.randrange(len(whole))]
        path.write_bytes(damaged)
        try:
            assert our_logits(load_model(folder).model, [1, 2, 3]).shape == expected.shape
        except ModelError:
            refused += 1
    path.write_bytes(whole)
    assert torch.equal(our_logits(load_model(folder).model, [1, 2, 3]), expected)
    return refused


@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        ("gptq-4bit-act", "scales"),
        ("gptq-4bit-act", "qzeros"),
        ("gptq-4bit-act", "g_idx"),
        ("awq-4bit", "qzeros"),
        ("fp8-block", "weight_scale_inv"),
        ("bnb-nf4-double", "weight.absmax"),
        ("bnb-nf4-double", "weight.quant_map"),
        ("bnb-nf4-double", "weight.quant_state.bitsandbytes__nf4"),
        ("bnb-int8", "SCB"),
        ("ct-int4", "weight_scale"),
    ],
)
def test_f13_tensors_that_do_not_fit_together(copied: Any, name: str, tensor: str) -> None:
    """A companion of another size is refused with the file and a tensor's name."""
    folder = copied(name)
    path = folder / "model.safetensors"
    tensors = load_file(path)
    full = f"{SHOWN.removesuffix('.weight')}.{tensor}"
    tensors[full] = tensors[full].flatten().repeat(2)
    save_file(tensors, path)
    with pytest.raises(ModelError, match=r"`model\.safetensors`") as caught:
        load_model(folder)
    assert SHOWN.removesuffix(".weight") in str(caught.value)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("gptq-4bit-act", {"bits": 3}),
        ("gptq-4bit-act", {"bits": "4"}),
        ("gptq-4bit-act", {"group_size": 0}),
        ("gptq-4bit-act", {"checkpoint_format": "marlin"}),
        ("gptq-4bit-act", {"dynamic": {"x": {"bits": 8}}}),
        ("gptq-4bit-act", {"quant_method": "nothing"}),
        ("awq-4bit", {"version": "gemv"}),
        ("awq-4bit", {"bits": 8}),
        ("fp8-block", {"weight_block_size": [128]}),
        ("fp8-block", {"weight_block_size": [0, 10**9]}),
        ("bnb-int8", {"load_in_8bit": False}),
        ("ct-int4", {"config_groups": {}}),
        ("ct-int4", {"transform_config": {"a": 1}}),
    ],
)
def test_f14_quantisation_fields_are_checked(copied: Any, name: str, change: dict[str, Any]) -> None:
    """A method, width or layout that is not read is refused by its field, before any weight is."""
    folder = copied(name)
    config = json.loads((folder / "config.json").read_bytes())
    config["quantization_config"] |= change
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="quantization_config"):
        load_model(folder)
