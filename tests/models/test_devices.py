"""Layers on several devices: where a plan puts them, that loading follows it, and that nothing stays behind.

A machine with one device has a second that holds shapes and no values, ``meta``. Most operations on tensors of both are
errors, and where results lie shows the others: a forward over the two tells whether everything moves along. Values are
compared on cards (``tests/gpu``).
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from oracle import our_logits

from qwen_agent_kit.catalog.released import find
from qwen_agent_kit.errors import PlanError, UsageError
from qwen_agent_kit.models import Decoder, load_model
from qwen_agent_kit.models.cuda.step import devices_of
from qwen_agent_kit.placement import Device, Inventory, Wishes, plan_model
from qwen_agent_kit.placement.sources import model_of_entry
from qwen_agent_kit.testing.models import tiny_model_dir

IDS = [5, 100, 200, 7, 9]
GIB = 2**30


class Lists:
    """Keys and values of one sequence, wherever each layer's lie."""

    def __init__(self) -> None:
        self.kept: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def write(self, layer: int, k: torch.Tensor, v: torch.Tensor, start: int) -> None:
        before = self.kept.get(layer)
        self.kept[layer] = (k, v) if before is None else (torch.cat((before[0], k)), torch.cat((before[1], v)))
        assert self.kept[layer][0].shape[0] == start + len(k)

    def read(self, layer: int, end: int) -> tuple[torch.Tensor, torch.Tensor]:
        k, v = self.kept[layer]
        return k[:end], v[:end]

    def slabs(self) -> None:
        return None


@pytest.mark.parametrize("memory", [0, 64 * GIB])
def test_devices_follow_the_plan(memory: int) -> None:
    """32B in bf16: over three cards, or over two and the CPU; each layer where its placement says, in order."""
    found = find("Qwen3-32B")
    assert found is not None
    cards = [Device(f"cuda:{i}", "cuda", 24 * GIB, 24 * GIB) for i in range(2 if memory else 3)]
    here = Inventory((*cards, *([Device("cpu", "cpu", memory, memory)] if memory else [])), 8)
    plan = plan_model(here, model_of_entry(found[0]), Wishes(context=4096, quant="bf16")).require()
    assert [p.device for p in plan.placements] == ["cuda:0", "cuda:1", "cpu" if memory else "cuda:2"]
    devices = devices_of(plan.placements, 64)
    for placed in plan.placements:
        first, last = placed.layers
        assert set(devices[first:last]) == {placed.device}
        assert last > first
    assert len(devices) == 64


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3"])
def test_a_forward_follows_its_layers(tmp_path: Path, kind: str) -> None:
    """Prompt and next position over two devices: keys, values and logits lie where layers and head do."""
    folder = tiny_model_dir(tmp_path, kind, tied=False, layers=4)
    model = load_model(folder, quant="fp32", devices=["cpu", "cpu", "meta", "meta"]).model
    assert isinstance(model, Decoder)
    assert [str(layer.device) for layer in model.layers] == ["cpu", "cpu", "meta", "meta"]
    kv = Lists()
    for start, ids in ((0, IDS), (len(IDS), [3])):
        positions = torch.arange(start, start + len(ids))
        logits = model.forward(torch.tensor(ids), positions, kv, start=start)  # type: ignore[arg-type]
        assert logits.shape == (1, model.config.vocab_size)
        assert str(logits.device) == "meta"
    assert [str(kv.kept[i][0].device) for i in range(4)] == ["cpu", "cpu", "meta", "meta"]


def test_a_tied_head_stays_with_the_embedding(tmp_path: Path) -> None:
    """There is one matrix, on the first device; the last layer's rows go back to it, here without values."""
    folder = tiny_model_dir(tmp_path, "qwen2", tied=True, layers=4)
    model = load_model(folder, quant="fp32", devices=["cpu", "cpu", "meta", "meta"]).model
    assert isinstance(model, Decoder)
    assert model.embedding is not None
    assert model.head.weight is model.embedding
    assert str(model.embedding.device) == "cpu"
    with pytest.raises(NotImplementedError, match="out of meta"):
        model.forward(torch.tensor(IDS), torch.arange(5), Lists(), start=0)  # type: ignore[arg-type]


def test_one_device_is_the_plain_model(tmp_path: Path) -> None:
    """Loaded by a device per layer, all of them the CPU: the same logits, the same bytes."""
    folder = tiny_model_dir(tmp_path, "qwen3")
    plain = load_model(folder, quant="fp32")
    spread = load_model(folder, quant="fp32", devices=["cpu"] * plain.config.layers)
    assert torch.equal(our_logits(spread.model, IDS), our_logits(plain.model, IDS))
    assert spread.model.weight_bytes == plain.model.weight_bytes
    assert spread.digest == plain.digest


def test_what_cannot_be_spread(tmp_path: Path) -> None:
    """Packed schemes and a wrong number of layers are refused before anything is read."""
    folder = tiny_model_dir(tmp_path, "qwen3")
    with pytest.raises(UsageError, match="dense"):
        load_model(folder, quant="int8", devices=["cpu"])
    with pytest.raises(PlanError, match="17 layers"):
        load_model(folder, quant="bf16", devices=["cpu"] * 17)
