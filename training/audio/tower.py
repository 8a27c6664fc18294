"""Qwen2-Audio's encoder for a batch of short clips, with transformers' tensor names.

The official module pads every clip to the chunk and masks the padding; this one stops at the longest clip of the batch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812  # its usual name
from torch import Tensor, nn

from training.audio.mel import BANDS, SECONDS
from training.vision.tower import attend


@dataclass(frozen=True, slots=True)
class EncoderSize:
    """The sizes of an encoder, by their names in ``audio_config``."""

    d_model: int = 160
    encoder_layers: int = 4
    encoder_attention_heads: int = 5
    encoder_ffn_dim: int = 480
    max_source_positions: int = SECONDS * 50
    out: int = 192


def lengths_of(frames: Tensor) -> tuple[Tensor, Tensor]:
    """Positions after the convolutions and after pooling, of clips with so many mel frames."""
    inner = (frames - 1) // 2 + 1
    return inner, (inner - 2) // 2 + 1


class _Attention(nn.Module):
    def __init__(self, size: EncoderSize) -> None:
        super().__init__()
        self.heads = size.encoder_attention_heads
        self.k_proj = nn.Linear(size.d_model, size.d_model, bias=False)
        self.v_proj = nn.Linear(size.d_model, size.d_model)
        self.q_proj = nn.Linear(size.d_model, size.d_model)
        self.out_proj = nn.Linear(size.d_model, size.d_model)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        b, n, d = x.shape
        q, k, v = (f(x).view(b, n, self.heads, -1).transpose(1, 2) for f in (self.q_proj, self.k_proj, self.v_proj))
        y = attend(q, k, v, mask)
        return self.out_proj(y.transpose(1, 2).reshape(b, n, d))


class _Layer(nn.Module):
    def __init__(self, size: EncoderSize) -> None:
        super().__init__()
        self.self_attn = _Attention(size)
        self.self_attn_layer_norm = nn.LayerNorm(size.d_model)
        self.fc1 = nn.Linear(size.d_model, size.encoder_ffn_dim)
        self.fc2 = nn.Linear(size.encoder_ffn_dim, size.d_model)
        self.final_layer_norm = nn.LayerNorm(size.d_model)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        x = x + self.self_attn(self.self_attn_layer_norm(x), mask)
        return x + self.fc2(F.gelu(self.fc1(self.final_layer_norm(x))))


class Encoder(nn.Module):
    """Features [b, frames, 128] and the clips' frames [b] to pooled states [b, n, d]; ``projector`` embeds them."""

    def __init__(self, size: EncoderSize) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(BANDS, size.d_model, 3, padding=1)
        self.conv2 = nn.Conv1d(size.d_model, size.d_model, 3, stride=2, padding=1)
        self.register_buffer("positions", _sinusoids(size.max_source_positions, size.d_model))
        self.layers = nn.ModuleList(_Layer(size) for _ in range(size.encoder_layers))
        self.layer_norm = nn.LayerNorm(size.d_model)
        self.projector = nn.Linear(size.d_model, size.out)

    def forward(self, features: Tensor, frames: Tensor) -> Tensor:
        x = F.gelu(self.conv1(features.transpose(1, 2)))
        x = F.gelu(self.conv2(x)).transpose(1, 2)
        x = x + self.positions[: x.shape[1]]
        inner, _ = lengths_of(frames)
        mask = torch.where(torch.arange(x.shape[1]) < inner[:, None], 0.0, -1e4).to(x.dtype)[:, None, None]
        for layer in self.layers:
            x = layer(x, mask)
        x = F.avg_pool1d(x.transpose(1, 2), 2, 2).transpose(1, 2)
        return self.layer_norm(x)

    def official(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The weights under the names after ``audio_tower.`` and after ``multi_modal_projector.``."""
        state = dict(self.state_dict())
        projector = {f"linear.{name}": state.pop(f"projector.{name}") for name in ("weight", "bias")}
        return state | {"embed_positions.weight": state.pop("positions")}, projector


def _sinusoids(length: int, channels: int) -> Tensor:
    inverse = torch.exp(-math.log(10_000) / (channels // 2 - 1) * torch.arange(channels // 2))
    angles = torch.arange(length)[:, None] * inverse[None, :]
    return torch.cat((angles.sin(), angles.cos()), 1)
