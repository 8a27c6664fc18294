"""What bitsandbytes computes on a card, as plain torch: held against files that it wrote."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from qwen_agent_kit.errors import UsageError
from qwen_agent_kit.models.cuda.bnb import int8_reference, nf4_reference, scale_codes
from qwen_agent_kit.models.cuda.linear import CardLinear
from qwen_agent_kit.testing.models import tiny_model_dir, tiny_tokenizer

DATA = Path(__file__).parents[1] / "data" / "quantised"


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    """The weights that were quantised, as ``data/quantised/make.py`` makes them, in half precision."""
    folder = tiny_model_dir(
        tmp_path_factory.mktemp("base"),
        "qwen2",
        tokenizer_json=tiny_tokenizer(280),
        seed=3,
        hidden=128,
        heads=4,
        kv_heads=2,
        layers=1,
        context=512,
        tied=True,
    )
    return {name: tensor.half() for name, tensor in load_file(folder / "model.safetensors").items()}


def test_nf4_is_what_bitsandbytes_wrote(original: dict[str, torch.Tensor]) -> None:
    """Each matrix of its file, undone by itself, is ours from the original: codes and scales alike."""
    expected = load_file(DATA / "bnb-nf4-double" / "reference.safetensors")
    written = load_file(DATA / "bnb-nf4-double" / "model.safetensors")
    compared = [name for name in expected if name in original]
    assert compared
    for name in compared:
        assert torch.equal(nf4_reference(original[name]).half().float(), expected[name].half().float())
    codes = next(tensor for name, tensor in written.items() if name.endswith("nested_quant_map"))
    assert torch.allclose(scale_codes(), codes, rtol=0, atol=1e-7)


def test_int8_is_what_bitsandbytes_wrote(original: dict[str, torch.Tensor]) -> None:
    """Its rows, multiplied by unit vectors, which int8 holds exactly."""
    expected = load_file(DATA / "bnb-int8" / "reference.safetensors")
    compared = [name for name in expected if name in original]
    assert compared
    for name in compared:
        columns = int8_reference(torch.eye(original[name].shape[1]), original[name]).T
        assert torch.allclose(columns, expected[name], rtol=0, atol=1e-6)


def test_outliers_are_multiplied_apart() -> None:
    """One large activation spoils its row in int8, and not where its column is kept apart."""
    torch.manual_seed(0)
    x, weight = torch.randn(5, 256), torch.randn(64, 256) / 16
    x[:, 17] = 80.0
    right = x @ weight.T
    apart, together = (float((int8_reference(x, weight, t) - right).norm() / right.norm()) for t in (6.0, 1e9))
    assert apart < 0.012
    assert together > 2 * apart


@pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is not None, reason="says what happens without it")
@pytest.mark.parametrize("scheme", ["nf4", "llm-int8"])
def test_without_the_library(scheme: str) -> None:
    """The error names it."""
    with pytest.raises(UsageError, match="bitsandbytes"):
        CardLinear(torch.randn(64, 64), None, scheme)
