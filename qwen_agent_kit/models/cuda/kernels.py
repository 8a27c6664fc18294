"""The Triton kernels behind ``attention``. Imported inside functions, where there is a card: triton is not for CPUs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import triton
import triton.language as tl

_jit: Callable[[Callable[..., Any]], Any] = triton.jit


@_jit
def _store(
    keys: tl.tensor,
    values: tl.tensor,
    k: tl.tensor,
    v: tl.tensor,
    slots: tl.tensor,
    row_stride: tl.tensor,
    width: tl.constexpr,
    pad: tl.constexpr,
) -> None:
    row = tl.program_id(0)
    slot = tl.load(slots + row)
    at = tl.arange(0, pad)
    inside = at < width
    tl.store(keys + slot * width + at, tl.load(k + row * row_stride + at, mask=inside), mask=inside)
    tl.store(values + slot * width + at, tl.load(v + row * row_stride + at, mask=inside), mask=inside)


def store_rows(keys: torch.Tensor, values: torch.Tensor, k: torch.Tensor, v: torch.Tensor, slots: torch.Tensor) -> None:
    """See ``attention.store``."""
    k, v = k.to(keys.dtype).contiguous(), v.to(values.dtype).contiguous()
    width = k.shape[1] * k.shape[2]
    _store[(k.shape[0],)](keys, values, k, v, slots, width, width=width, pad=triton.next_power_of_2(width))


@_jit
def _split(
    q: tl.tensor,
    keys: tl.tensor,
    values: tl.tensor,
    tables: tl.tensor,
    lengths: tl.tensor,
    mixed: tl.tensor,
    most_out: tl.tensor,
    total_out: tl.tensor,
    scale: tl.tensor,
    window: tl.tensor,
    width: tl.tensor,
    kv_heads: tl.constexpr,
    group: tl.constexpr,
    group_pad: tl.constexpr,
    dim: tl.constexpr,
    dim_pad: tl.constexpr,
    page: tl.constexpr,
    splits: tl.constexpr,
) -> None:
    row, head, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    length = tl.load(lengths + row)
    first = tl.maximum(length - window, 0)
    pages = tl.cdiv(length, page)
    each = tl.cdiv(pages - first // page, splits)
    begin = first // page + split * each
    end = tl.minimum(begin + each, pages)
    g, d, n = tl.arange(0, group_pad), tl.arange(0, dim_pad), tl.arange(0, page)
    in_group, in_dim = g < group, d < dim
    rows = (row * kv_heads + head) * group + g
    query = tl.load(q + rows[:, None] * dim + d[None, :], mask=in_group[:, None] & in_dim[None, :], other=0.0)
    most = tl.full([group_pad], float("-inf"), tl.float32)
    total = tl.zeros([group_pad], tl.float32)
    sums = tl.zeros([group_pad, dim_pad], tl.float32)
    for index in range(begin, end):
        block = tl.load(tables + row * width + index).to(tl.int64)
        position = index * page + n
        seen = (position < length) & (position >= first)
        at = ((block * page + n) * kv_heads + head) * dim
        inside = seen[:, None] & in_dim[None, :]
        k = tl.load(keys + at[:, None] + d[None, :], mask=inside, other=0.0)
        v = tl.load(values + at[:, None] + d[None, :], mask=inside, other=0.0)
        scores = tl.dot(query, tl.trans(k), input_precision="ieee") * scale
        scores = tl.where(seen[None, :], scores, float("-inf"))
        top = tl.maximum(most, tl.max(scores, 1))
        kept = tl.exp(most - top)
        weights = tl.exp(scores - top[:, None])
        total = total * kept + tl.sum(weights, 1)
        sums = sums * kept[:, None] + tl.dot(weights.to(v.dtype), v, input_precision="ieee")
        most = top
    out = rows * splits + split
    tl.store(most_out + out, most, mask=in_group)
    tl.store(total_out + out, total, mask=in_group)
    tl.store(mixed + out[:, None] * dim + d[None, :], sums, mask=in_group[:, None] & in_dim[None, :])


@_jit
def _join(
    mixed: tl.tensor,
    most: tl.tensor,
    total: tl.tensor,
    out: tl.tensor,
    dim: tl.constexpr,
    dim_pad: tl.constexpr,
    splits: tl.constexpr,
) -> None:
    row = tl.program_id(0)
    s, d = tl.arange(0, splits), tl.arange(0, dim_pad)
    tops = tl.load(most + row * splits + s)
    shares = tl.exp(tops - tl.max(tops, 0))
    whole = tl.sum(shares * tl.load(total + row * splits + s), 0)
    parts = tl.load(mixed + (row * splits + s)[:, None] * dim + d[None, :], mask=(d < dim)[None, :], other=0.0)
    tl.store(out + row * dim + d, tl.sum(shares[:, None] * parts, 0) / whole, mask=d < dim)


def attend_split(
    q: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    tables: torch.Tensor,
    lengths: torch.Tensor,
    window: int,
    splits: int,
) -> torch.Tensor:
    """See ``attention.attend``; ``splits`` is a power of two."""
    n, heads, dim = q.shape
    page, kv_heads = keys.shape[1], keys.shape[2]
    group, q = heads // kv_heads, q.contiguous()
    mixed = torch.empty(n, heads, splits, dim, dtype=torch.float32, device=q.device)
    most = torch.empty(n, heads, splits, dtype=torch.float32, device=q.device)
    total, out = torch.empty_like(most), torch.empty_like(q)
    wide = max(16, triton.next_power_of_2(dim))
    sizes = {"kv_heads": kv_heads, "group": group, "group_pad": max(16, triton.next_power_of_2(group)), "page": page}
    _split[(n, kv_heads, splits)](
        *(q, keys, values, tables, lengths, mixed, most, total, dim**-0.5, window, tables.shape[1]),
        **sizes,
        dim=dim,
        dim_pad=wide,
        splits=splits,
    )
    _join[(n * heads,)](mixed, most, total, out, dim=dim, dim_pad=wide, splits=splits)
    return out
