"""The decoder: token ids to logits, for every Llama-shaped family.

The residual stream and the norms are float32; linear layers and attention run in the scheme's dtype. Nothing here knows
of bits, files, requests or text.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812  # the name everyone knows it by

from qwen_agent_kit.models.config import DecoderConfig
from qwen_agent_kit.models.linear import Linear
from qwen_agent_kit.models.moe import MLP, SparseMLP
from qwen_agent_kit.models.native.linear import NativeLinear
from qwen_agent_kit.models.native.step import NativeStep, native_step
from qwen_agent_kit.models.rope import Rotary, rotate

__all__ = ["Decoder", "KeyValues", "Layer", "Parked", "RMSNorm", "Segment"]


class KeyValues(Protocol):
    """One sequence's keys and values."""

    def write(self, layer: int, k: torch.Tensor, v: torch.Tensor, start: int) -> None:
        """Store k and v [n, kv_heads, head_dim] at positions ``start`` on."""

    def read(self, layer: int, end: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values [end, kv_heads, head_dim] of the first ``end`` positions."""

    def slabs(self) -> tuple[Sequence[torch.Tensor], Sequence[torch.Tensor]] | None:
        """Where keys and values lie, layer by layer; None where it is not in slabs.

        Each slab is a contiguous [kv_heads, capacity, head_dim], all of one capacity, with room for what is
        computed next.
        """


class Parked(Protocol):
    """Layers whose weights are brought in before they run and let go of after."""

    def __contains__(self, layer: int) -> bool: ...

    def bring(self, layer: int) -> None: ...

    def drop(self, layer: int) -> None: ...


@dataclass(frozen=True, slots=True)
class Segment:
    """The rows of one sequence in a batch.

    Args:
        kv: Gets the new keys and values, and gives all so far.
        start: How many positions of the sequence come before.
        count: How many rows are its own.
        wanted: Of how many of them, counted from the last, the logits are wanted.
    """

    kv: KeyValues
    start: int
    count: int
    wanted: int = 1


class RMSNorm(nn.Module):
    """``x / sqrt(mean(x^2) + eps) * weight`` in four operations.

    With d values, ``sqrt(mean(x^2) + eps) = hypot(|x|, sqrt(d eps)) / sqrt(d)``; the last root is kept in the weight.
    ``F.rms_norm`` is eight operations on a CPU and was a fifth of a decode step.

    Args:
        weight: float32, ending in [d].
        eps: As the model says.
        dtype: Of the result.
    """

    def __init__(self, weight: torch.Tensor, eps: float, dtype: torch.dtype) -> None:
        super().__init__()
        size = weight.shape[-1]
        self.weight = weight * math.sqrt(size)
        self._floor = torch.tensor(math.sqrt(size * eps))
        self._dtype = dtype

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
        scaled = x / torch.hypot(length, self._floor) * self.weight
        return scaled if scaled.dtype == self._dtype else scaled.to(self._dtype)


@dataclass(slots=True)
class _Run:
    """One segment as every layer sees it: its rows ``first`` to ``last`` of the batch, and who sees whom."""

    kv: KeyValues
    first: int
    last: int
    start: int
    end: int
    mask: torch.Tensor | None
    near: torch.Tensor | None

    def on(self, device: torch.device) -> _Run:
        """The same for layers on another device."""
        mask, near = (None if t is None else t.to(device) for t in (self.mask, self.near))
        return _Run(self.kv, self.first, self.last, self.start, self.end, mask, near)


@dataclass(slots=True)
class _Step:
    """What every layer of one forward shares."""

    runs: list[_Run]
    cos: torch.Tensor
    sin: torch.Tensor
    query_scale: torch.Tensor | None

    def on(self, device: torch.device) -> _Step:
        """The same for layers on another device."""
        scale = None if self.query_scale is None else self.query_scale.to(device)
        return _Step([run.on(device) for run in self.runs], self.cos.to(device), self.sin.to(device), scale)


class Layer(nn.Module):
    """Attention and feed-forward, each behind its norm.

    Args:
        index: Which layer of the KV it owns.
        config: Sizes.
        attn_norm: Before attention.
        qkv: [(heads + 2 * kv_heads) * head_dim, hidden], queries, keys, values.
        out: [hidden, heads * head_dim].
        mlp_norm: Before the feed-forward.
        mlp: Dense or sparse.
        qk_norm: Over each query and key head, weight [heads + kv_heads, head_dim], or None.
    """

    def __init__(
        self,
        index: int,
        config: DecoderConfig,
        *,
        attn_norm: RMSNorm,
        qkv: Linear | NativeLinear,
        out: Linear | NativeLinear,
        mlp_norm: RMSNorm,
        mlp: MLP | SparseMLP,
        qk_norm: RMSNorm | None,
    ) -> None:
        super().__init__()
        self.attn_norm, self.qkv, self.out = attn_norm, qkv, out
        self.mlp_norm, self.mlp, self.qk_norm = mlp_norm, mlp, qk_norm
        self._index = index
        self._heads, self._kv_heads, self._dim = config.heads, config.kv_heads, config.head_dim
        self.window = config.window if config.sliding and config.sliding[index] else None

    @property
    def device(self) -> torch.device:
        """Where its weights lie."""
        return self.attn_norm.weight.device

    def forward(self, x: torch.Tensor, step: _Step) -> torch.Tensor:
        x = x + self.out(self._attend(self.qkv(self.attn_norm(x)), step))
        result: torch.Tensor = x + self.mlp(self.mlp_norm(x))
        return result

    def _attend(self, qkv: torch.Tensor, step: _Step) -> torch.Tensor:
        """From fused projections to the mixed values [n, heads * head_dim]."""
        n, heads, kv_heads, dim = qkv.shape[0], self._heads, self._kv_heads, self._dim
        qkv = qkv.view(n, heads + 2 * kv_heads, dim)
        qk, v = qkv[:, : heads + kv_heads], qkv[:, heads + kv_heads :]
        if self.qk_norm is not None:
            qk = self.qk_norm(qk)
        qk = rotate(qk, step.cos, step.sin)
        q = qk[:, :heads]
        if step.query_scale is not None:
            q = q * step.query_scale
        k = qk[:, heads:]
        mixed = [self._mix(q[r.first : r.last], k[r.first : r.last], v[r.first : r.last], r) for r in step.runs]
        return mixed[0] if len(mixed) == 1 else torch.cat(mixed)

    def _mix(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, run: _Run) -> torch.Tensor:
        """Attention of one sequence's rows: q [n, heads, head_dim], k and v [n, kv_heads, head_dim]."""
        n, heads, dim = q.shape
        kv_heads = k.shape[1]
        run.kv.write(self._index, k, v, run.start)
        keys, values = run.kv.read(self._index, run.end)
        group = heads // kv_heads
        if n == 1:
            if self.window is not None:
                keys, values = keys[-self.window :], values[-self.window :]
            # The query heads that share a key head are rows of one attention: no key is copied for its group.
            mixed = F.scaled_dot_product_attention(
                q.reshape(1, kv_heads, group, dim),
                keys.transpose(0, 1).unsqueeze(0),
                values.transpose(0, 1).unsqueeze(0),
            )
            return mixed.view(1, heads * dim)
        shape = (kv_heads, group, run.end, dim)
        mixed = F.scaled_dot_product_attention(
            q.reshape(n, kv_heads, group, dim).permute(1, 2, 0, 3),
            keys.transpose(0, 1).unsqueeze(1).expand(shape),
            values.transpose(0, 1).unsqueeze(1).expand(shape),
            attn_mask=run.mask if self.window is None else run.near,
        )
        return mixed.permute(2, 0, 1, 3).reshape(n, heads * dim)


class Decoder(nn.Module):
    """Ids in, logits out. Layers may lie on several devices (``cuda.step.move``); the stream goes from one to the next.

    Args:
        config: What it is made of.
        embedding: [vocab, hidden]; None where the native head holds it.
        layers: In order.
        norm: The last one.
        head: [vocab, hidden].
        dtype: Of activations, keys and values.
        parked: The layers whose weights stay on disk; None for none.
    """

    def __init__(
        self,
        config: DecoderConfig,
        *,
        embedding: torch.Tensor | None,
        layers: list[Layer],
        norm: RMSNorm,
        head: Linear | NativeLinear,
        dtype: torch.dtype,
        parked: Parked | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        self.dtype = dtype
        self.embedding = embedding
        self.layers = nn.ModuleList(layers)
        self.norm = norm
        self.head = head
        self._rotary = Rotary(config.rope, config.head_dim)
        self._parked = parked
        self.head_device: torch.device | None = None
        # A native step runs all layers in one call, between which nothing can be let go of.
        self.native: NativeStep | None = native_step(self) if parked is None else None

    @property
    def kernels(self) -> str:
        """What computes; keys and values that are kept for other processes belong to it."""
        return "torch" if self.native is None else "native"

    @property
    def weight_bytes(self) -> int:
        """What its tensors take, one that is used twice counted once."""
        kept = [*(t for m in self.modules() for t in vars(m).values() if isinstance(t, torch.Tensor))]
        return sum(t.nbytes for t in {t.data_ptr(): t for t in kept}.values())

    def embed(self, ids: torch.Tensor) -> torch.Tensor:
        """The embeddings of ``ids``, float32 [n, hidden]."""
        if self.embedding is not None:
            return F.embedding(ids.to(self.embedding.device), self.embedding).float()
        assert isinstance(self.head, NativeLinear), "only native heads hold an embedding"
        return self.head.rows(ids)

    def forward(
        self,
        ids: torch.Tensor,
        positions: torch.Tensor,
        kv: KeyValues,
        *,
        start: int,
        logits_from: int | None = None,
        embeds: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Compute positions ``start`` to ``start + n`` of a sequence whose earlier ones are in ``kv``.

        Args:
            ids: int64 [n].
            positions: int64 [n], or [3, n] for m-rope.
            kv: Gets the new keys and values, and gives all so far.
            start: How many positions come before.
            logits_from: The first of the n rows whose logits are wanted; the last one where None, none where n.
            embeds: [n, hidden] instead of the embeddings of ``ids``.

        Returns:
            float32 [n - logits_from, vocab].
        """
        wanted = len(ids) - (len(ids) - 1 if logits_from is None else logits_from)
        return self.forward_batch(ids, positions, [Segment(kv, start, len(ids), wanted)], embeds=embeds)

    def forward_batch(
        self,
        ids: torch.Tensor,
        positions: torch.Tensor,
        segments: Sequence[Segment],
        *,
        embeds: torch.Tensor | None = None,
        deepstack: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Compute the next rows of several sequences at once, each over its own keys and values.

        Args:
            ids: int64 [n], the segments' rows one after the other.
            positions: int64 [n], or [3, n] for m-rope.
            segments: Whose rows they are, in order; their counts sum to n.
            embeds: [n, hidden] instead of the embeddings of ``ids``.
            deepstack: [k, n, hidden], added to what the first k layers give (Qwen3-VL).

        Returns:
            float32 [sum of wanted, vocab], in the order of the segments.
        """
        if self.native is not None and deepstack is None:
            given = None if embeds is None else embeds.float().contiguous()
            angles = self._rotary(positions, torch.float32)
            found = self.native(ids, angles, segments, given, self._log_n(segments, torch.float32))
            if found is not None:
                return found
        with torch.inference_mode():
            hidden = self._hidden(ids, positions, segments, embeds, deepstack)
            logits = self.logits(_wanted(hidden, segments))
        # Copied outside inference mode, so that samplers may write into it anywhere.
        return logits.float() if logits.dtype != torch.float32 else logits.clone()

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """What the last layer gave, [n, hidden], to [n, vocab] in the activations' dtype, on the head's device."""
        rows = self.norm(hidden)
        found: torch.Tensor = self.head(rows if self.head_device is None else rows.to(self.head_device))
        return found

    def _hidden(
        self,
        ids: torch.Tensor,
        positions: torch.Tensor,
        segments: Sequence[Segment],
        embeds: torch.Tensor | None,
        deepstack: torch.Tensor | None,
    ) -> torch.Tensor:
        x = self.embed(ids) if embeds is None else embeds.float()
        cos, sin = self._rotary(positions.to(x.device), self.dtype)
        step = _Step(self._runs(segments), cos, sin, self._log_n(segments, self.dtype))
        for index, layer in enumerate(self.layers):
            parked = self._parked if self._parked is not None and index in self._parked else None
            if parked is not None:
                parked.bring(index)
            assert isinstance(layer, Layer), "a decoder has layers of one kind"
            if x.device != layer.device:
                x, step = x.to(layer.device), step.on(layer.device)
            x = layer(x, step)
            if parked is not None:
                parked.drop(index)
            if deepstack is not None and index < len(deepstack):
                x = x + deepstack[index].to(x.device)
        return x

    def _runs(self, segments: Sequence[Segment]) -> list[_Run]:
        window, dtype, first, runs = self.config.window, self.dtype, 0, []
        for s in segments:
            near = None if window is None else _causal(s.count, s.start, window, dtype)
            mask = _causal(s.count, s.start, None, dtype)
            runs.append(_Run(s.kv, first, first + s.count, s.start, s.start + s.count, mask, near))
            first += s.count
        return runs

    def _log_n(self, segments: Sequence[Segment], dtype: torch.dtype) -> torch.Tensor | None:
        """Qwen 1.0's ``use_logn_attn``: queries past the trained length are scaled by its logarithm."""
        trained = self.config.logn_from
        if trained is None or all(s.start + s.count <= trained for s in segments):
            return None
        lengths = torch.cat([torch.arange(s.start + 1, s.start + s.count + 1, dtype=torch.float64) for s in segments])
        scale = (lengths.log() / math.log(trained)).clamp(min=1.0)
        return scale.to(dtype).view(-1, 1, 1)


def _wanted(hidden: torch.Tensor, segments: Sequence[Segment]) -> torch.Tensor:
    """The rows whose logits are wanted."""
    if len(segments) == 1:
        return hidden[len(hidden) - segments[0].wanted :]
    rows, last = [], 0
    for segment in segments:
        last += segment.count
        rows.append(hidden[last - segment.wanted : last])
    return torch.cat(rows)


def _causal(n: int, start: int, window: int | None, dtype: torch.dtype) -> torch.Tensor | None:
    """Which of the positions 0 to start + n each of the n rows sees.

    Returns:
        [n, start + n], 0 where it sees and minus infinity where not; None for one row.
    """
    if n == 1:
        return None
    rows = torch.arange(start, start + n).unsqueeze(1)
    columns = torch.arange(start + n).unsqueeze(0)
    hidden = columns > rows
    if window is not None:
        hidden |= columns <= rows - window
    return torch.zeros(n, start + n, dtype=dtype).masked_fill_(hidden, -torch.inf)
