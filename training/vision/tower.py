"""Qwen2.5-VL's vision tower for many pictures of one size at once, with transformers' tensor names.

The official module lays all pictures end to end and attends within each by a loop; here they are rows of one tensor,
which is what makes training on a CPU bearable. Every block attends to the whole picture. ``evaluate.py --prove`` holds
it equal to transformers' module.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812  # its usual name
from PIL import Image
from torch import Tensor, nn

PATCH = 14
MERGE = 2
MEAN = np.array((0.48145466, 0.4578275, 0.40821073), np.float32)
STD = np.array((0.26862954, 0.26130258, 0.27577711), np.float32)


@dataclass(frozen=True, slots=True)
class TowerSize:
    """The sizes of a tower, by their names in ``vision_config``."""

    depth: int = 4
    hidden_size: int = 160
    intermediate_size: int = 320
    num_heads: int = 5
    out_hidden_size: int = 192


def patches_of(image: Image.Image) -> np.ndarray:
    """One picture [height, width] as [patches, 588], in the order of the official image processor.

    The official one repeats a still picture in time to [patches, 1176]; the two halves are equal, so the tower here
    takes one of them and the sum of the two halves of the weights.
    """
    pixels = (np.asarray(image, np.float32) / 255 - MEAN) / STD
    rows, columns = pixels.shape[0] // (PATCH * MERGE), pixels.shape[1] // (PATCH * MERGE)
    pixels = pixels.reshape(rows, MERGE, PATCH, columns, MERGE, PATCH, 3)
    return np.ascontiguousarray(pixels.transpose(0, 3, 1, 4, 6, 2, 5)).reshape(-1, 3 * PATCH * PATCH)


def order_of(width: int, height: int) -> tuple[np.ndarray, np.ndarray]:
    """The row and the column of each patch, in the order of ``patches_of``."""
    rows, columns = np.mgrid[: height // PATCH, : width // PATCH]

    def ordered(grid: np.ndarray) -> np.ndarray:
        h, w = grid.shape
        return grid.reshape(h // MERGE, MERGE, w // MERGE, MERGE).transpose(0, 2, 1, 3).reshape(-1)

    return ordered(rows), ordered(columns)


class RMSNorm(nn.Module):
    """Root mean square norm with a weight."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.weight.shape, self.weight.to(x.dtype), 1e-6)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding of ``x`` [..., n, d] by ``cos`` and ``sin`` [n, d]."""
    half = x.shape[-1] // 2
    return x * cos + torch.cat((-x[..., half:], x[..., :half]), -1) * sin


@cache
def _angles(width: int, height: int, head: int) -> tuple[Tensor, Tensor]:
    inverse = 1.0 / 10000.0 ** (torch.arange(0, head // 2, 2, dtype=torch.float32) / (head // 2))
    rows, columns = (torch.tensor(p, dtype=torch.float32) for p in order_of(width, height))
    angles = torch.cat((rows[:, None] * inverse, columns[:, None] * inverse), -1)
    angles = torch.cat((angles, angles), -1)
    return angles.cos(), angles.sin()


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """Attention [b, heads, n, d] written out: torch's fused kernel is ten times slower backwards at these lengths.

    ``mask`` is added to the scores; 0 where attention is allowed.
    """
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    return (scores if mask is None else scores + mask).softmax(-1).to(v.dtype) @ v


class _Attention(nn.Module):
    def __init__(self, size: TowerSize) -> None:
        super().__init__()
        self.heads = size.num_heads
        self.qkv = nn.Linear(size.hidden_size, 3 * size.hidden_size)
        self.proj = nn.Linear(size.hidden_size, size.hidden_size)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        b, n, d = x.shape
        q, k, v = self.qkv(x).view(b, n, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        y = attend(rotate(q, cos, sin).to(v.dtype), rotate(k, cos, sin).to(v.dtype), v)
        return self.proj(y.transpose(1, 2).reshape(b, n, d))


class GatedMLP(nn.Module):
    """SwiGLU."""

    def __init__(self, hidden: int, inner: int, *, bias: bool) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(hidden, inner, bias=bias)
        self.up_proj = nn.Linear(hidden, inner, bias=bias)
        self.down_proj = nn.Linear(inner, hidden, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class _Block(nn.Module):
    def __init__(self, size: TowerSize) -> None:
        super().__init__()
        self.norm1 = RMSNorm(size.hidden_size)
        self.norm2 = RMSNorm(size.hidden_size)
        self.attn = _Attention(size)
        self.mlp = GatedMLP(size.hidden_size, size.intermediate_size, bias=True)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x), cos, sin)
        return x + self.mlp(self.norm2(x))


class _Merger(nn.Module):
    def __init__(self, size: TowerSize) -> None:
        super().__init__()
        wide = size.hidden_size * MERGE**2
        self.ln_q = RMSNorm(size.hidden_size)
        self.mlp = nn.Sequential(nn.Linear(wide, wide), nn.GELU(), nn.Linear(wide, size.out_hidden_size))

    def forward(self, x: Tensor) -> Tensor:
        return self.mlp(self.ln_q(x).view(x.shape[0], -1, x.shape[2] * MERGE**2))


class Tower(nn.Module):
    """Patches [b, n, 588] of pictures of one size to embeddings [b, n / 4, out], and the patches' last states."""

    def __init__(self, size: TowerSize) -> None:
        super().__init__()
        self.size = size
        self.patch = nn.Linear(3 * PATCH * PATCH, size.hidden_size, bias=False)
        self.blocks = nn.ModuleList(_Block(size) for _ in range(size.depth))
        self.merger = _Merger(size)

    def forward(self, patches: Tensor, width: int, height: int) -> tuple[Tensor, Tensor]:
        cos, sin = _angles(width, height, self.size.hidden_size // self.size.num_heads)
        x = self.patch(patches)
        for block in self.blocks:
            x = block(x, cos, sin)
        return self.merger(x), x

    def official(self) -> dict[str, Tensor]:
        """The weights under the names that a Qwen2.5-VL checkpoint has after ``visual.``."""
        found = {name: value for name, value in self.state_dict().items() if not name.startswith("patch.")}
        kernel = self.patch.weight.detach().view(-1, 3, 1, PATCH, PATCH) / 2
        return found | {"patch_embed.proj.weight": kernel.repeat(1, 1, 2, 1, 1)}
