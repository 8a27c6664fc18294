"""Checkpoints that other tools quantised: undone as the tool undoes them, refused where they do not fit together."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from oracle import our_logits
from safetensors.torch import load_file, save_file

from qwen_agent_kit.errors import ModelError
from qwen_agent_kit.models import load_model
from qwen_agent_kit.models.quantised import QuantisedModel, method_for
from qwen_agent_kit.models.safetensors_file import SafetensorsModel

DATA = Path(__file__).parents[1] / "data" / "quantised"
CASES = sorted(path.name for path in DATA.iterdir() if (path / "config.json").is_file())
SHOWN = "model.layers.0.self_attn.q_proj.weight"


@pytest.mark.parametrize("name", CASES)
def test_a_foreign_checkpoint_gives_its_own_logits(name: str) -> None:
    """A matrix equals the tool's own undoing to the precision of its dtype, the logits equal the model's on it."""
    folder = DATA / name
    reference = load_file(folder / "reference.safetensors")
    config = json.loads((folder / "config.json").read_bytes())
    plain = SafetensorsModel(folder, "transformers")
    source = QuantisedModel(plain, method_for(config["quantization_config"]))
    # The tools undo in half precision or bfloat16; ours is float32.
    torch.testing.assert_close(source.read(SHOWN), reference[SHOWN], rtol=2**-7, atol=2e-4)
    found = our_logits(load_model(folder).model, reference["ids"].tolist())
    torch.testing.assert_close(found, reference["logits"], rtol=1e-2, atol=3e-2)
    assert (found - reference["logits"]).norm() < 1e-2 * reference["logits"].norm()


@pytest.mark.parametrize("name", ["gptq-4bit-act", "awq-4bit", "fp8-block", "bnb-nf4-double"])
@pytest.mark.parametrize("scheme", ["int8", "int4"])
def test_a_foreign_checkpoint_is_packed_again(name: str, scheme: str) -> None:
    """Packed into our own schemes, the logits stay near the reference."""
    folder = DATA / name
    reference = load_file(folder / "reference.safetensors")
    found = our_logits(load_model(folder, quant=scheme).model, reference["ids"].tolist())
    off = (found - reference["logits"]).norm() / reference["logits"].norm()
    assert off < (0.05 if scheme == "int8" else 0.35)


@pytest.fixture
def copied(tmp_path: Path) -> Any:
    def copy(name: str) -> Path:
        shutil.copytree(DATA / name, tmp_path / name)
        (tmp_path / name / "reference.safetensors").unlink()
        return tmp_path / name

    return copy


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
