"""The kernels, the packed linears and the captured step on a card; skipped only where there is none."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from oracle import our_greedy

from qwen_agent_kit.models import Decoder, load_model
from qwen_agent_kit.models.cuda.attention import attend, attend_reference, store, store_reference
from qwen_agent_kit.models.cuda.bnb import int8_reference, nf4_reference
from qwen_agent_kit.models.cuda.graphs import DecodeGraphs, Row
from qwen_agent_kit.models.cuda.linear import CardLinear
from qwen_agent_kit.models.cuda.paged import PAGE, PagedKV, PagedPool
from qwen_agent_kit.models.cuda.step import DecodeStep, move
from qwen_agent_kit.testing.models import tiny_model_dir

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA card")


@pytest.mark.parametrize(("heads", "kv_heads", "dim"), [(4, 4, 64), (14, 2, 64), (28, 4, 128), (6, 1, 80)])
@pytest.mark.parametrize("window", [None, 1, 100])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_kernels_equal_their_references(
    heads: int, kv_heads: int, dim: int, window: int | None, dtype: torch.dtype
) -> None:
    """Attention and writing, at lengths around the blocks' ends."""
    torch.manual_seed(0)
    lengths = torch.tensor([1, 63, 64, 65, 500, 1000], dtype=torch.int32, device="cuda")
    blocks = 16 * len(lengths)
    keys, values = torch.randn(2, blocks, PAGE, kv_heads, dim, device="cuda", dtype=dtype)
    table = torch.randperm(blocks, device="cuda").view(len(lengths), 16).int()
    q = torch.randn(len(lengths), heads, dim, device="cuda", dtype=dtype)
    close = {"rtol": 1e-4, "atol": 1e-4} if dtype == torch.float32 else {"rtol": 0.02, "atol": 0.02}
    found = attend(q, keys, values, table, lengths, window)
    torch.testing.assert_close(found, attend_reference(q, keys, values, table, lengths, window), **close)
    slots, rows = torch.randperm(blocks * PAGE, device="cuda")[:77], torch.randn(2, 77, kv_heads, dim, device="cuda")
    copies = [keys.clone(), values.clone()]
    store(*copies, *rows, slots)
    store_reference(keys, values, *rows, slots)
    assert torch.equal(copies[0], keys)
    assert torch.equal(copies[1], values)


def test_the_captured_step_generates_what_the_cpu_does(tmp_path: Path) -> None:
    """float32, captured once and replayed, the layers on one card or on all there are."""
    tiny_model_dir(tmp_path, "qwen3")
    cpu = load_model(tmp_path, quant="fp32").model
    assert isinstance(cpu, Decoder)
    prompt = list(range(60))
    expected = our_greedy(cpu, prompt, 12)
    cards = torch.cuda.device_count()
    for spread in {1, cards}:
        model = load_model(tmp_path, quant="fp32").model
        assert isinstance(model, Decoder)
        devices = [f"cuda:{i * spread // model.config.layers}" for i in range(model.config.layers)]
        move(model, devices)
        pool = PagedPool(8, model.config.kv_heads, model.config.head_dim, devices, torch.float32)
        graphs = DecodeGraphs(DecodeStep(model, pool, devices), model.config.vocab_size, width=4)
        kv, found = PagedKV(pool), []
        for at in range(len(prompt) + 11):
            kv.ensure(at + 1)
            (new,) = graphs([Row(kv, prompt[at] if at < len(prompt) else found[-1], at)])
            if at >= len(prompt) - 1:
                found.append(new)
        assert found == expected


@pytest.mark.parametrize("scheme", ["bf16", "int8", "int4", "fp8", "nf4", "llm-int8"])
@pytest.mark.parametrize("shape", [(4096, 3584), (1000, 3420)])
def test_linears_are_as_unpacked(scheme: str, shape: tuple[int, int]) -> None:
    """Whichever kernel was found right, one row to 300: close to the dense product, awkward shapes included."""
    torch.manual_seed(0)
    weight = torch.randn(shape, device="cuda") / 30
    layer = CardLinear(weight, None, scheme)
    for n in (1, 2, 17, 300):
        x = torch.randn(n, shape[1], device="cuda", dtype=torch.bfloat16)
        right = x.float() @ weight.T
        assert float((layer(x).float() - right).norm()) < 0.15 * float(right.norm())


def test_bitsandbytes_is_its_reference() -> None:
    """nf4 with double quantisation and int8 with outliers apart, by the library on the card: what plain torch says."""
    torch.manual_seed(0)
    weight = (torch.randn(512, 1024) / 30).bfloat16().float()
    x = torch.randn(17, 1024).bfloat16().float()
    x[:, 5] = 40.0
    given = x.to("cuda", torch.bfloat16)
    for scheme, right in (("nf4", x @ nf4_reference(weight).T), ("llm-int8", int8_reference(x, weight))):
        layer = CardLinear(weight.to("cuda"), None, scheme)
        assert layer.kernel
        assert float((layer(given).float().cpu() - right).norm()) < 0.02 * float(right.norm())


def test_a_model_over_all_cards_and_the_cpu_answers_as_on_the_cpu(tmp_path: Path) -> None:
    """Loaded by a device per layer, prompt and positions after it: the CPU's own logits."""
    tiny_model_dir(tmp_path, "qwen3", layers=4)
    cpu = load_model(tmp_path, quant="fp32").model
    assert isinstance(cpu, Decoder)
    last = f"cuda:{torch.cuda.device_count() - 1}"
    spread = load_model(tmp_path, quant="fp32", devices=["cuda:0", "cuda:0", last, "cpu"]).model
    assert isinstance(spread, Decoder)
    prompt = list(range(60))
    pools = [
        PagedKV(PagedPool(8, m.config.kv_heads, m.config.head_dim, d, torch.float32))
        for m, d in ((cpu, ["cpu"] * 4), (spread, ["cuda:0", "cuda:0", last, "cpu"]))
    ]
    found = []
    for model, kv in zip((cpu, spread), pools, strict=True):
        kv.ensure(len(prompt))
        found.append(model.forward(torch.tensor(prompt), torch.arange(len(prompt)), kv, start=0).cpu())
    assert torch.allclose(*found, atol=1e-3)
