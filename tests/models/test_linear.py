"""Schemes: what a quantised layer may be off by, and shapes that its kernel does not take."""

from __future__ import annotations

import pytest
import torch

from qwen_agent_kit.errors import UsageError
from qwen_agent_kit.models import make_linear
from qwen_agent_kit.placement.kernels import compiler

SHAPES = [(64, 64), (192, 576), (48, 128), (7, 64), (33, 100), (96, 3420)]


def matrix(n: int, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(n * 10_000 + k)
    return torch.randn(n, k, generator=generator) / k**0.5, torch.randn(n, generator=generator)


@pytest.mark.parametrize(("scheme", "most"), [("fp32", 1e-5), ("bf16", 0.01), ("int8", 0.02), ("int4", 0.15)])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("rows", [1, 3, 8, 9, 41])
def test_a_scheme_stays_near_the_exact_product(scheme: str, most: float, shape: tuple[int, int], rows: int) -> None:
    """The error relative to the result's size is that of the scheme, with and without a bias, few rows or many; K that
    is no multiple of 16, where the packed int8 kernel dies, included."""
    weight, bias = matrix(*shape)
    x = torch.randn(rows, shape[1], generator=torch.Generator().manual_seed(rows))
    for b in (None, bias):
        exact = torch.nn.functional.linear(x, weight, b)
        dtype = torch.float32 if scheme == "fp32" else torch.bfloat16
        found = make_linear(weight, b, scheme)(x.to(dtype))
        assert found.shape == exact.shape
        assert found.dtype == dtype
        assert (found.float() - exact).norm() / exact.norm() < most


@pytest.mark.parametrize("scheme", ["fp32", "bf16", "int8", "int4"])
def test_no_rows_are_no_rows(scheme: str) -> None:
    """Nothing times a matrix is nothing: a chunk of a prompt whose logits nobody wants."""
    dtype = torch.float32 if scheme == "fp32" else torch.bfloat16
    assert make_linear(torch.zeros(32, 64), None, scheme)(torch.zeros(0, 64, dtype=dtype)).shape == (0, 32)


@pytest.mark.parametrize("scheme", ["int8", "int4"])
def test_rows_of_zeros_stay_zero(scheme: str) -> None:
    """A row without any weight gives 0, not NaN."""
    layer = make_linear(torch.zeros(32, 64), None, scheme)
    assert layer(torch.randn(2, 64).bfloat16()).abs().max() == 0


def test_int8_takes_a_byte_a_weight_and_int4_about_half() -> None:
    """The bytes are those of the placement's formulae: the native layout has 2 bytes per 32 for scales; torch's int8 2
    per row, its int4 4 per 64. What names a matrix's shape is left out."""
    weight, _ = matrix(256, 512)
    native = compiler() is not None
    int8, int4 = (1 + 2 / 32, 0.5 + 3 / 32) if native else (1 + 2 / 512, 0.5 + 4 / 64)
    bits = {"fp32": 4.0, "bf16": 2.0, "int8": int8, "int4": int4}
    for scheme, each in bits.items():
        kept = [t for t in make_linear(weight, None, scheme).tensors() if t.dtype != torch.int32]
        assert sum(t.nbytes for t in kept) == each * weight.numel()


def test_an_unknown_scheme_is_named() -> None:
    """The error lists what there is."""
    with pytest.raises(UsageError, match=r"'int3'.*fp32, bf16, int8, int4"):
        make_linear(torch.zeros(4, 4), None, "int3")
