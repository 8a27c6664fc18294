"""Qwen2's decoder with the three-axis rotary embedding of Qwen2.5-VL, for rows that share a prefix.

Every row of a batch begins with the same system message. Its states do not depend on what follows, so they are computed
once and every row attends to them: a third of the work less. Tensor names are those of a checkpoint.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812  # its usual name
from torch import Tensor, nn

from training.vision.tower import GatedMLP, RMSNorm, attend, rotate


@dataclass(frozen=True, slots=True)
class DecoderSize:
    """The sizes of a decoder, by their names in ``text_config``."""

    vocab_size: int
    hidden_size: int = 192
    intermediate_size: int = 448
    num_hidden_layers: int = 4
    num_attention_heads: int = 6
    num_key_value_heads: int = 2
    rope_theta: float = 30.0
    mrope_section: tuple[int, int, int] = (2, 7, 7)


class _Attention(nn.Module):
    def __init__(self, size: DecoderSize) -> None:
        super().__init__()
        self.heads, self.kv, self.head = (
            size.num_attention_heads,
            size.num_key_value_heads,
            size.hidden_size // size.num_attention_heads,
        )
        self.q_proj = nn.Linear(size.hidden_size, self.heads * self.head)
        self.k_proj = nn.Linear(size.hidden_size, self.kv * self.head)
        self.v_proj = nn.Linear(size.hidden_size, self.kv * self.head)
        self.o_proj = nn.Linear(self.heads * self.head, size.hidden_size, bias=False)

    def forward(
        self, x: Tensor, angles: tuple[Tensor, Tensor], before: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        b, n, _ = x.shape
        q = self.q_proj(x).view(b, n, self.heads, self.head).transpose(1, 2)
        k = self.k_proj(x).view(b, n, self.kv, self.head).transpose(1, 2)
        v = self.v_proj(x).view(b, n, self.kv, self.head).transpose(1, 2)
        q, k = rotate(q, *angles).to(v.dtype), rotate(k, *angles).to(v.dtype)
        own = (k, v)
        past = 0
        if before is not None:
            past = before[0].shape[2]
            k, v = (torch.cat((old.expand(b, -1, -1, -1), new), 2) for old, new in zip(before, own, strict=True))
        mask = torch.full((n, past + n), -1e4, dtype=q.dtype).triu(past + 1)
        k, v = (y.repeat_interleave(self.heads // self.kv, 1) for y in (k, v))
        y = attend(q, k, v, mask)
        return self.o_proj(y.transpose(1, 2).reshape(b, n, -1)), own


class _Layer(nn.Module):
    def __init__(self, size: DecoderSize) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(size.hidden_size)
        self.post_attention_layernorm = RMSNorm(size.hidden_size)
        self.self_attn = _Attention(size)
        self.mlp = GatedMLP(size.hidden_size, size.intermediate_size, bias=False)

    def forward(
        self, x: Tensor, angles: tuple[Tensor, Tensor], before: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        attended, own = self.self_attn(self.input_layernorm(x), angles, before)
        x = x + attended
        return x + self.mlp(self.post_attention_layernorm(x)), own


class Decoder(nn.Module):
    """Embeddings [b, n, d] and positions [3, b, n] to last states [b, n, d]."""

    def __init__(self, size: DecoderSize) -> None:
        super().__init__()
        self.size = size
        self.embed_tokens = nn.Embedding(size.vocab_size, size.hidden_size)
        nn.init.normal_(self.embed_tokens.weight, std=0.05)
        self.layers = nn.ModuleList(_Layer(size) for _ in range(size.num_hidden_layers))
        self.norm = RMSNorm(size.hidden_size)
        head = size.hidden_size // size.num_attention_heads
        self.inverse = 1.0 / size.rope_theta ** (torch.arange(0, head, 2, dtype=torch.float32) / head)
        self.axis = torch.repeat_interleave(torch.arange(3), torch.tensor(size.mrope_section))

    def angles(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Cosine and sine [b, 1, n, head] of positions [3, b, n]."""
        angles = positions[self.axis].permute(1, 2, 0).float() * self.inverse
        angles = torch.cat((angles, angles), -1)[:, None]
        return angles.cos(), angles.sin()

    def forward(self, prefix: Tensor, rows: Tensor, positions: Tensor) -> Tensor:
        """Last states of ``rows``, each of which follows the token ids ``prefix`` [p]."""
        head = torch.arange(len(prefix)).expand(3, 1, -1)
        x, y = self.embed_tokens(prefix)[None], rows
        at_x, at_y = self.angles(head), self.angles(positions)
        for layer in self.layers:
            x, own = layer(x, at_x, None)
            y, _ = layer(y, at_y, own)
        return self.norm(y)

    def logits(self, states: Tensor) -> Tensor:
        return F.linear(states, self.embed_tokens.weight)

    def official(self) -> dict[str, Tensor]:
        """The weights under the names that a checkpoint has after ``model.``; the head is tied."""
        return dict(self.state_dict())
