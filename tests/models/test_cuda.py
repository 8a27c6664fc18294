"""The card's path without a card: references against dense attention, the whole step against the decoder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import our_greedy
from torch.nn import functional as F  # the name everyone knows it by

from qwen_agent_kit.errors import EngineError, ModelError, PlanError, UsageError
from qwen_agent_kit.models import Decoder, load_model
from qwen_agent_kit.models.cuda.attention import attend, split_reference
from qwen_agent_kit.models.cuda.graphs import DecodeGraphs, Row
from qwen_agent_kit.models.cuda.linear import CardLinear, pack
from qwen_agent_kit.models.cuda.paged import PAGE, PagedKV, PagedPool, tables
from qwen_agent_kit.models.cuda.step import DecodeStep, devices_of, draw, move
from qwen_agent_kit.testing.models import tiny_model_dir

HEADS = st.sampled_from([(4, 4), (8, 2), (14, 2), (6, 1)])
LENGTHS = st.lists(st.sampled_from([1, 2, 63, 64, 65, 127, 128, 130, 200]), min_size=1, max_size=4)
WINDOWS = st.sampled_from([None, 1, 30, 64, 65])


def paged(
    lengths: list[int], heads: int, kv_heads: int, dim: int
) -> tuple[PagedPool, list[PagedKV], torch.Tensor, list[torch.Tensor], list[torch.Tensor]]:
    """A pool in which sequences grew in turn, so that their blocks interleave; their queries, keys and values."""
    generator = torch.Generator().manual_seed(sum(lengths) + heads)
    pool = PagedPool(1 + len(lengths) * 4, kv_heads, dim, ["cpu"], torch.float32)
    sequences = [PagedKV(pool) for _ in lengths]
    keys = [torch.randn(n, kv_heads, dim, generator=generator) for n in lengths]
    values = [torch.randn(n, kv_heads, dim, generator=generator) for n in lengths]
    for start in range(0, max(lengths), 50):
        for kv, k, v in zip(sequences, keys, values, strict=True):
            if len(k) > start:
                kv.write(0, k[start : start + 50], v[start : start + 50], start)
    return pool, sequences, torch.randn(len(lengths), heads, dim, generator=generator), keys, values


@settings(max_examples=60, deadline=None)
@given(lengths=LENGTHS, sizes=HEADS, window=WINDOWS, splits=st.sampled_from([1, 2, 8]))
def test_paged_attention_is_dense_attention(
    lengths: list[int], sizes: tuple[int, int], window: int | None, splits: int
) -> None:
    """Any head counts, window and place of a block's end, whole and in parts: what dense attention gives."""
    heads, kv_heads = sizes
    pool, sequences, q, keys, values = paged(lengths, heads, kv_heads, 16)
    table, count = tables(sequences, 4), torch.tensor(lengths, dtype=torch.int32)
    whole = attend(q, pool.keys[0], pool.values[0], table, count, window)
    parts = split_reference(q, pool.keys[0], pool.values[0], table, count, window, splits)
    for i, (k, v) in enumerate(zip(keys, values, strict=True)):
        near_k, near_v = (t if window is None else t[-window:] for t in (k, v))
        group = heads // kv_heads
        dense = F.scaled_dot_product_attention(
            q[i].view(heads, 1, 16),
            near_k.transpose(0, 1).repeat_interleave(group, 0),
            near_v.transpose(0, 1).repeat_interleave(group, 0),
        ).view(heads, 16)
        torch.testing.assert_close(whole[i], dense, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(parts[i], dense, rtol=1e-5, atol=1e-5)
        assert all(torch.equal(a, b) for a, b in zip(sequences[i].read(0, lengths[i]), (k, v), strict=True))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 300)), max_size=40))
def test_blocks_are_never_shared_or_lost(events: list[tuple[int, int]]) -> None:
    """Growing and releasing in any order: no block in two sequences, none of the first, all free in the end."""
    pool = PagedPool(12, 1, 2, ["cpu"], torch.float32)
    sequences = [PagedKV(pool) for _ in range(5)]
    for which, end in events:
        kv = sequences[which]
        if not end:
            kv.release()
        elif -(-end // PAGE) - len(kv.blocks) > pool.free:
            with pytest.raises(EngineError, match="are free"):
                kv.ensure(end)
        else:
            kv.ensure(end)
        held = [block for kv in sequences for block in kv.blocks]
        assert len(set(held)) == len(held) == 11 - pool.free
        assert 0 not in held
    for kv in sequences:
        kv.release()
    assert pool.free == 11


def small(folder: Path, kind: str = "qwen3") -> Decoder:
    tiny_model_dir(folder, kind)
    model = load_model(folder, quant="fp32").model
    assert isinstance(model, Decoder)
    return model


def test_the_step_generates_what_the_decoder_does(tmp_path: Path) -> None:
    """Three sequences at once, prefilled by the decoder into blocks, padded to four rows, over blocks' ends."""
    model = small(tmp_path)
    config = model.config
    devices = devices_of([Span("cpu", (0, 1)), Span("cpu", (1, config.layers))][: config.layers], config.layers)
    move(model, devices)
    pool = PagedPool(16, config.kv_heads, config.head_dim, devices, torch.float32)
    prompts = [[(i * 7 + n) % 200 for i in range(n)] for n in (3, 60, 64)]
    expected = [our_greedy(model, prompt, 10) for prompt in prompts]
    graphs = DecodeGraphs(DecodeStep(model, pool, devices), config.vocab_size, width=4)
    sequences, found = [], []
    for prompt in prompts:
        kv = PagedKV(pool)
        logits = model.forward(torch.tensor(prompt), torch.arange(len(prompt)), kv, start=0)
        sequences.append(kv)
        found.append([int(logits[-1].argmax())])
    for _ in range(9):
        rows = []
        for kv, prompt, ids in zip(sequences, prompts, found, strict=True):
            length = len(prompt) + len(ids) - 1
            kv.ensure(length + 1)
            rows.append(Row(kv, ids[-1], length))
        for ids, new in zip(found, graphs(rows), strict=True):
            ids.append(new)
    assert found == expected
    for kv in sequences:
        kv.release()
    assert pool.free == 15


def test_a_draw_follows_the_distribution_under_the_mask() -> None:
    """4,000 rows: masked ids are never drawn, the others as often as softmax says; temperature 0 is the largest."""
    n = 4000
    logits = torch.tensor([2.0, 1.0, 3.0, 0.5]).expand(n, 4)
    mask = torch.tensor([0.0, 0.0, -torch.inf, 0.0]).expand(n, 4)
    noise = torch.empty(n, 4).exponential_(generator=torch.Generator().manual_seed(0))
    drawn = draw({"mask": mask, "noise": noise, "temperature": torch.full((n,), 0.7)}, logits)
    wanted = ((logits + mask)[0] / 0.7).softmax(0)
    counts = drawn.bincount(minlength=4)
    assert counts[2] == 0
    kept = wanted > 0
    assert float(((counts - n * wanted)[kept] ** 2 / (n * wanted)[kept]).sum()) < 20
    assert draw({"mask": mask, "noise": noise, "temperature": torch.zeros(n)}, logits).eq(0).all()


@dataclass(frozen=True)
class Span:
    """One line of a plan."""

    device: str
    layers: tuple[int, int]


def test_every_layer_has_one_device() -> None:
    """As the plan placed them; a plan that leaves one out, names one twice, or puts one on disk is refused."""
    assert devices_of([Span("cuda:0", (0, 2)), Span("cuda:1", (2, 3))], 3) == ["cuda:0", "cuda:0", "cuda:1"]
    for spans in (
        [Span("a", (0, 2))],
        [Span("a", (0, 3)), Span("b", (2, 3))],
        [Span("a", (0, 2)), Span("disk", (2, 3))],
    ):
        with pytest.raises(PlanError, match="layer 2"):
            devices_of(spans, 3)


def test_experts_have_no_captured_step(tmp_path: Path) -> None:
    """Their choice would have to be read back: refused, with what to use instead."""
    model = small(tmp_path, "qwen3_moe")
    with pytest.raises(ModelError, match="no captured decode step"):
        DecodeStep(model, PagedPool(2, 1, 2, ["cpu"], torch.float32), ["cpu"])


@pytest.mark.parametrize(("scheme", "bound"), [("bf16", 0.01), ("int8", 0.02), ("int4", 0.15), ("fp8", 0.06)])
@pytest.mark.parametrize("shape", [(64, 128), (40, 70), (1, 33)])
def test_packed_matrices_are_close(scheme: str, bound: float, shape: tuple[int, int]) -> None:
    """Awkward shapes included: the layer is as far from the dense one as its bits, and no kernel runs off a card."""
    torch.manual_seed(0)
    weight, bias, x = torch.randn(shape), torch.randn(shape[0]), torch.randn(5, shape[1])
    layer = CardLinear(weight, bias, scheme)
    assert not layer.kernel
    right = F.linear(x, weight, bias)
    off = layer(x.to(torch.bfloat16)).float() - right
    assert float(off.norm()) < bound * float(right.norm())
    with pytest.raises(UsageError, match="allowed on a card"):
        pack(weight, "int3")
