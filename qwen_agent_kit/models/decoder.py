"""The decoder: token ids to logits, for every Llama-shaped family.

The residual stream and the norms are float32; linear layers and attention run in the scheme's dtype. Nothing here knows
of bits, files, requests or text.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
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
from qwen_agent_kit.models.segments import KeyValues, Run, Segment, Step, adapted_rows, causal, wanted_rows

__all__ = ["Decoder", "Layer", "Parked", "RMSNorm"]


class Parked(Protocol):
    """Layers whose weights are brought in before they run and let go of after."""

    def __contains__(self, layer: int) -> bool: ...

    def bring(self, layer: int) -> None: ...

    def drop(self, layer: int) -> None: ...


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

    def forward(self, x: torch.Tensor, step: Step) -> torch.Tensor:
        if not step.adapted:
            x = x + self.out(self._attend(self.qkv(self.attn_norm(x)), step))
            plain: torch.Tensor = x + self.mlp(self.mlp_norm(x))
            return plain
        add, index = step.add, self._index
        given = self.attn_norm(x)
        mixed = self._attend(add(index, "qkv", given, self.qkv(given)), step)
        x = x + add(index, "out", mixed, self.out(mixed))
        given = self.mlp_norm(x)
        result: torch.Tensor = x + (
            self.mlp(given, partial(add, index)) if isinstance(self.mlp, MLP) else self.mlp(given)
        )
        return result

    def _attend(self, qkv: torch.Tensor, step: Step) -> torch.Tensor:
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

    def _mix(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, run: Run) -> torch.Tensor:
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
        if self.native is not None and any(s.adapter is not None for s in segments):
            if any(s.adapter is None for s in segments):  # the others keep the native step, and their very results
                return forward_apart(self, ids, positions, segments, embeds=embeds, deepstack=deepstack)
        elif self.native is not None and deepstack is None:
            given = None if embeds is None else embeds.float().contiguous()
            angles = self._rotary(positions, torch.float32)
            found = self.native(ids, angles, segments, given, self._log_n(segments, torch.float32))
            if found is not None:
                return found
        with torch.inference_mode():
            hidden = self._hidden(ids, positions, segments, embeds, deepstack)
            logits = self.logits(wanted_rows(hidden, segments))
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
        scale = self._log_n(segments, self.dtype)
        step = Step(self._runs(segments), cos, sin, scale, adapted_rows(segments))
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

    def _runs(self, segments: Sequence[Segment]) -> list[Run]:
        window, dtype, first, runs = self.config.window, self.dtype, 0, []
        for s in segments:
            near = None if window is None else causal(s.count, s.start, window, dtype)
            mask = causal(s.count, s.start, None, dtype)
            runs.append(Run(s.kv, first, first + s.count, s.start, s.start + s.count, mask, near))
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


def forward_apart(
    model: Decoder,
    ids: torch.Tensor,
    positions: torch.Tensor,
    segments: Sequence[Segment],
    **more: torch.Tensor | None,
) -> torch.Tensor:
    """The same in two forwards: the sequences without adapters, then those with one."""
    counts = [s.count for s in segments]
    rows, logits = torch.split(torch.arange(sum(counts)), counts), [torch.empty(0)] * len(segments)
    for adapted in (False, True):
        chosen = [i for i, s in enumerate(segments) if (s.adapter is not None) == adapted]
        here = torch.cat([rows[i] for i in chosen])
        given = {name: None if t is None else t[..., here, :] for name, t in more.items()}
        some = [segments[i] for i in chosen]
        found = model.forward_batch(ids[here], positions[..., here], some, **given)
        for i, part in zip(chosen, torch.split(found, [s.wanted for s in some]), strict=True):
            logits[i] = part
    return torch.cat(logits)
