"""bitsandbytes on a card, through its own library: int8 with outliers apart, and nf4 whose scales are quantised again.

Beside each stands what it computes, in plain torch: LLM.int8() (arXiv 2208.07339: rows of weights and of activations in
int8, columns of activations that reach the threshold multiplied apart) and nf4 (arXiv 2305.14314: sixteen values placed
as a normal distribution asks for, a scale per 64 weights, those scales in 8 bits per 256). The references are held
against files that bitsandbytes wrote; the library's kernels have not run on a card here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional as F  # noqa: N812  # the name everyone knows it by

from qwen_agent_kit.errors import UsageError

__all__ = ["THRESHOLD", "int8_on_card", "int8_reference", "nf4_on_card", "nf4_reference", "scale_codes"]

THRESHOLD = 6.0
"""Activations of this size are outliers: the paper's choice."""

BLOCK, NESTED = 64, 256

_NF4 = (
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
    *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
    *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
    *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
)
"""Of the paper's appendix E."""

Product = Callable[[torch.Tensor], torch.Tensor]
Whole = Callable[[], torch.Tensor]


def nf4_reference(weight: torch.Tensor) -> torch.Tensor:
    """A matrix as nf4 with double quantisation keeps it, float32 [N, K]."""
    flat = weight.float().reshape(-1)
    blocks = F.pad(flat, (0, -len(flat) % BLOCK)).view(-1, BLOCK)
    scale = blocks.abs().amax(1)
    values = _nearest(blocks / scale.clamp(min=1e-38).unsqueeze(1), torch.tensor(_NF4, device=weight.device))
    return (values * _twice(scale).unsqueeze(1)).view(-1)[: len(flat)].view(weight.shape)


def _twice(scale: torch.Tensor) -> torch.Tensor:
    """Scales less their mean, in 8 bits per 256 of them, and back."""
    mean = scale.mean()
    groups = F.pad(scale - mean, (0, -len(scale) % NESTED)).view(-1, NESTED)
    largest = groups.abs().amax(1, keepdim=True)
    kept = _nearest(groups / largest.clamp(min=1e-38), scale_codes().to(scale.device)) * largest
    return kept.view(-1)[: len(scale)] + mean


def scale_codes() -> torch.Tensor:
    """The 256 values of the 8-bit scales, ascending: seven decades with twice as many steps in each, 0 and 1."""
    steps = []
    for decade in range(7):
        edges = torch.linspace(0.1, 1.0, 2**decade + 1)
        steps.append((edges[:-1] + edges[1:]) / 2 * 10.0 ** (decade - 6))
    positive = torch.cat(steps)
    return torch.cat((positive, -positive, torch.tensor([0.0, 1.0]))).sort().values


def _nearest(x: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    return values[torch.bucketize(x.contiguous(), (values[:-1] + values[1:]) / 2)]


def int8_reference(x: torch.Tensor, weight: torch.Tensor, threshold: float = THRESHOLD) -> torch.Tensor:
    """``x W^T`` as LLM.int8() computes it, float32 [n, N].

    Args:
        x: [n, K].
        weight: [N, K].
        threshold: Columns of x with a value of at least this size are multiplied in floating point.
    """
    codes, scale = _rows(weight.float())
    given = x.float()
    apart = (given.abs() >= threshold).any(0)
    own, size = _rows(given.masked_fill(apart, 0.0))
    inner = (own.double() @ codes.double().T).float() * size * scale.T  # whole numbers, exact in float64
    return inner + given[:, apart] @ (codes * scale)[:, apart].T


def _rows(matrix: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    largest = matrix.abs().amax(1, keepdim=True).clamp(min=1e-12)
    return (matrix * (127 / largest)).round(), largest / 127


def nf4_on_card(weight: torch.Tensor) -> tuple[torch.Tensor, Whole, Product]:
    """The packed matrix, what unpacks it to bfloat16, and what multiplies by it.

    Raises:
        UsageError: Where the library is not installed.
    """
    library = _library()
    packed, state = library.functional.quantize_4bit(
        weight.to(torch.bfloat16).contiguous(), blocksize=BLOCK, compress_statistics=True, quant_type="nf4"
    )
    return (
        packed,
        lambda: library.functional.dequantize_4bit(packed, state).to(torch.bfloat16),
        lambda x: library.matmul_4bit(x, packed.t(), quant_state=state),
    )


def int8_on_card(weight: torch.Tensor, threshold: float = THRESHOLD) -> tuple[torch.Tensor, Whole, Product]:
    """The same in int8; activations from ``threshold`` on are kept apart.

    Raises:
        UsageError: Where the library is not installed.
    """
    library = _library()
    codes, largest, _ = library.functional.int8_vectorwise_quant(weight.to(torch.float16))
    state = library.MatmulLtState()
    state.CB, state.SCB, state.threshold, state.has_fp16_weights = codes, largest, threshold, False
    scale = (largest.float() / 127).unsqueeze(1)
    return (
        codes,
        lambda: (codes.float() * scale).to(torch.bfloat16),
        lambda x: library.matmul(x.to(torch.float16), codes, state=state).to(torch.bfloat16),
    )


def _library() -> Any:
    try:
        import bitsandbytes
    except ImportError as error:
        raise UsageError(
            "nf4 and llm-int8 on a card need `bitsandbytes`, which is not installed", hint="pip install bitsandbytes"
        ) from error
    return bitsandbytes
