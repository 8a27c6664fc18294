"""The two feed-forward shapes: one gated MLP, or a router over many (Qwen2-MoE, Qwen3-MoE)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812  # the name everyone knows it by

from qwen_agent_kit.models.linear import Linear
from qwen_agent_kit.models.native.linear import NativeLinear

__all__ = ["MLP", "SparseMLP"]

Add = Callable[[str, torch.Tensor, torch.Tensor], torch.Tensor]
"""Of a matrix's name, what it was multiplied with, and the product."""


class MLP(nn.Module):
    """``down(silu(gate(x)) * up(x))`` with gate and up in one matrix, gate first.

    Args:
        gate_up: [2 * intermediate, hidden].
        down: [hidden, intermediate].
    """

    def __init__(self, gate_up: Linear | NativeLinear, down: Linear | NativeLinear) -> None:
        super().__init__()
        self.gate_up = gate_up
        self.down = down

    def forward(self, x: torch.Tensor, add: Add | None = None) -> torch.Tensor:
        """X [n, hidden]; ``add`` puts what adapters add to a matrix's product."""
        both = self.gate_up(x)
        gate, up = (both if add is None else add("gate_up", x, both)).chunk(2, -1)
        inner = F.silu(gate) * up
        result: torch.Tensor = self.down(inner)
        return result if add is None else add("down", inner, result)


class SparseMLP(nn.Module):
    """Each row goes through its ``top`` experts, weighted, and through the shared expert where there is one.

    Args:
        router: [experts, hidden].
        experts: The MLPs.
        top: How many each row takes.
        normalise: Whether the weights of the chosen sum to 1.
        shared: The shared expert.
        shared_gate: [1, hidden], how much of it.
    """

    def __init__(
        self,
        router: Linear | NativeLinear,
        experts: Sequence[MLP],
        *,
        top: int,
        normalise: bool,
        shared: MLP | None = None,
        shared_gate: Linear | NativeLinear | None = None,
    ) -> None:
        super().__init__()
        self.router = router
        self.experts = nn.ModuleList(experts)
        self.shared = shared
        self.shared_gate = shared_gate
        self._top = top
        self._normalise = normalise

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weights, chosen = self.router(x).float().softmax(-1).topk(self._top, -1)
        if self._normalise:
            weights = weights / weights.sum(-1, keepdim=True)
        weights = weights.to(x.dtype)
        mixed = torch.zeros_like(x)
        for index in chosen.unique().tolist():
            rows, place = torch.where(chosen == index)
            mixed.index_add_(0, rows, self.experts[index](x[rows]) * weights[rows, place, None])
        if self.shared is not None and self.shared_gate is not None:
            mixed += self.shared_gate(x).sigmoid() * self.shared(x)
        return mixed
