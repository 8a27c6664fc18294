"""Decode attention over paged keys and values, and writing into them: Triton on a card, torch elsewhere.

The torch functions are the specification. ``attend_reference`` gathers; ``split_reference`` computes as the kernel
does: each part of the history by itself, with its maximum and sum, then all parts together.
"""

from __future__ import annotations

import torch

__all__ = ["attend", "attend_reference", "split_reference", "store", "store_reference"]

SPLITS = 8
"""Parts of one sequence's history that are computed side by side; one row alone would leave most of a card idle."""

NO_WINDOW = 2**30


def store(keys: torch.Tensor, values: torch.Tensor, k: torch.Tensor, v: torch.Tensor, slots: torch.Tensor) -> None:
    """Write rows into a layer's pool.

    Args:
        keys: [blocks, page, kv_heads, head_dim].
        values: The same.
        k: [n, kv_heads, head_dim].
        v: The same.
        slots: int64 [n], block * page + offset of each row.
    """
    if keys.is_cuda:
        from qwen_agent_kit.models.cuda.kernels import store_rows

        store_rows(keys, values, k, v, slots)
    else:
        store_reference(keys, values, k, v, slots)


def store_reference(
    keys: torch.Tensor, values: torch.Tensor, k: torch.Tensor, v: torch.Tensor, slots: torch.Tensor
) -> None:
    """See ``store``."""
    keys.flatten(0, 1)[slots] = k.to(keys.dtype)
    values.flatten(0, 1)[slots] = v.to(values.dtype)


def attend(
    q: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    tables: torch.Tensor,
    lengths: torch.Tensor,
    window: int | None = None,
) -> torch.Tensor:
    """One query row per sequence over its history, scaled by the root of its width.

    Args:
        q: [n, heads, head_dim].
        keys: [blocks, page, kv_heads, head_dim].
        values: The same.
        tables: int32 [n, most blocks], the blocks of each sequence in order.
        lengths: int32 [n], positions of each, the query's own included; at least 1.
        window: How many of the last positions are seen; all where None.

    Returns:
        [n, heads, head_dim].
    """
    if q.is_cuda:
        from qwen_agent_kit.models.cuda.kernels import attend_split

        mixed: torch.Tensor = attend_split(
            q, keys, values, tables, lengths, NO_WINDOW if window is None else window, SPLITS
        )
        return mixed
    return attend_reference(q, keys, values, tables, lengths, window)


def _scores(
    q: torch.Tensor, keys: torch.Tensor, tables: torch.Tensor, lengths: torch.Tensor, window: int | None
) -> torch.Tensor:
    """float32 [n, kv_heads, group, most positions], minus infinity where a position is not seen."""
    n, heads, dim = q.shape
    gathered = keys[tables.long()].flatten(1, 2).float()  # [n, positions, kv_heads, head_dim]
    kv_heads = gathered.shape[2]
    grouped = q.float().view(n, kv_heads, heads // kv_heads, dim)
    scores: torch.Tensor = torch.einsum("nhgd,nphd->nhgp", grouped, gathered) / dim**0.5
    at = torch.arange(gathered.shape[1], device=q.device)
    seen = at < lengths.unsqueeze(1)
    if window is not None:
        seen &= at >= lengths.unsqueeze(1) - window
    return torch.where(seen[:, None, None], scores, -torch.inf)


def attend_reference(
    q: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    tables: torch.Tensor,
    lengths: torch.Tensor,
    window: int | None = None,
) -> torch.Tensor:
    """See ``attend``."""
    weights = _scores(q, keys, tables, lengths, window).softmax(-1)
    gathered = values[tables.long()].flatten(1, 2).float()
    return torch.einsum("nhgp,nphd->nhgd", weights, gathered).reshape(q.shape).to(q.dtype)


def split_reference(
    q: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    tables: torch.Tensor,
    lengths: torch.Tensor,
    window: int | None = None,
    splits: int = SPLITS,
) -> torch.Tensor:
    """The same in ``splits`` parts, each with its maximum and sum (flash decoding), put together at the end."""
    scores = _scores(q, keys, tables, lengths, window)
    gathered = values[tables.long()].flatten(1, 2).float()
    most, total, mixed = [], [], []
    for part in torch.arange(scores.shape[-1], device=q.device).tensor_split(splits):
        own = scores[..., part]
        top = own.amax(-1, keepdim=True) if len(part) else scores.new_full((*scores.shape[:-1], 1), -torch.inf)
        weights = torch.exp(own - top.masked_fill(top == -torch.inf, 0.0))
        most.append(top)
        total.append(weights.sum(-1, keepdim=True))
        mixed.append(torch.einsum("nhgp,nphd->nhgd", weights, gathered[:, part]))
    shares = torch.exp(torch.stack(most) - torch.stack(most).amax(0))
    whole: torch.Tensor = (shares * torch.stack(mixed)).sum(0) / (shares * torch.stack(total)).sum(0)
    return whole.reshape(q.shape).to(q.dtype)
