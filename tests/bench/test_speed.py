"""``qak bench decode``, ``prefill``, ``load`` and ``quality``: what they count, on tiny models and without peers."""

from __future__ import annotations

from pathlib import Path

import gguf
import pytest
import torch

from qwen_agent_kit.bench import quality, shapes, speed
from qwen_agent_kit.bench.compare import compared, named, turns
from qwen_agent_kit.bench.convert import requantised
from qwen_agent_kit.errors import UsageError
from qwen_agent_kit.models import load_model
from qwen_agent_kit.testing.models import tiny_model_dir


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A vocabulary that holds every id that a measurement draws."""
    return tiny_model_dir(tmp_path_factory.mktemp("tiny"), "qwen3", vocab_size=40_000, layers=1)


def test_decode_and_prefill_give_medians_between_least_and_most(folder: Path) -> None:
    """One row per side and length, in tokens per second, and for decoding the share of the memory's bandwidth."""
    rows = [
        *speed.decode(str(folder), pairs=2, tokens=4, context=8),
        *speed.prefill(str(folder), pairs=2, tokens="8,16"),
        *speed.decode(str(folder), pairs=2, tokens=24, context=8, threads=1, clock="cpu"),
    ]
    assert [row.unit for row in rows] == ["tok/s", "share", "tok/s", "tok/s", "tok/s"]
    assert "processor time" in rows[4].name
    kept = sum(t.nbytes for t in load_model(folder, quant="int8").model.head.tensors())
    assert f"{kept / 1e6:.0f} MB a token" in rows[1].name  # one layer, as wide as nothing beside the vocabulary
    for row in rows:
        assert row.least is not None
        assert row.most is not None
        assert 0 < row.least <= row.value <= row.most


def test_load_counts_from_the_process_start(folder: Path) -> None:
    """Importing torch and opening the model are in the time, and torch's own size in the memory."""
    seconds, memory = speed.load(str(folder), pairs=1)
    assert seconds.unit == "s"
    assert seconds.value > 0.2
    assert memory.unit == "MiB"
    assert 50 < memory.value < 4000


def test_quality_is_perfect_beside_itself_and_worse_for_fewer_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """bf16 is off by nothing; int4 by more than int8; a text that is longer than a window."""
    whole = quality.text_ids
    monkeypatch.setattr(quality, "text_ids", lambda loaded: whole(loaded)[:1200])
    folder, found = tiny_model_dir(tmp_path, "qwen3"), {}
    for quant in ("bf16", "int8", "int4"):
        rows = {row.name.split(",")[0]: row for row in quality.quality(str(folder), quant)}
        found[quant] = rows["KL to bf16"].value
    assert found["bf16"] == pytest.approx(0, abs=1e-6)
    assert 0 < found["int8"] < found["int4"]


@pytest.mark.real
def test_the_text_is_long_enough(smollm2_gguf: Path) -> None:
    """At least 4,000 tokens of the model whose figures are given."""
    assert len(quality.text_ids(load_model(smollm2_gguf, quant="int8"))) >= 4000


def test_ratios_are_taken_pair_by_pair_in_alternating_order() -> None:
    """The first turn does not count; the order turns round; ours is over the other, or the other over ours."""

    class Side:
        def __init__(self, name: str, step: int) -> None:
            self.name, self.step, self.value = name, step, 0

    order = []

    def once(side: Side) -> float:
        order.append(side.name)
        side.value += side.step
        return side.value

    found = turns([Side("ours", 2), Side("theirs", 1)], 3, once)
    assert order == ["ours", "theirs", "theirs", "ours", "ours", "theirs", "theirs", "ours"]
    assert found == {"ours": [4, 6, 8], "theirs": [2, 3, 4]}
    for over, expected in ((True, 2.0), (False, 0.5)):
        last = list(compared("x", "s", found, ours_over=over))[-1]
        assert (last.value, last.least, last.most) == (expected, expected, expected)


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0"])
def test_a_random_model_of_a_shape_opens(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """It is read as any GGUF file, is already in its class, is made once, and gives finite logits."""
    sizes = shapes._Sizes(layers=2, hidden=64, heads=4, kv_heads=2, intermediate=96, vocab=512)
    monkeypatch.setitem(shapes.SHAPES, "small", sizes)
    path = shapes.random_gguf("small", kind)
    assert shapes.random_gguf("small", kind) == path
    assert requantised(path, kind) == path
    kinds = {t.name: t.tensor_type.name for t in gguf.GGUFReader(path).tensors if len(t.shape) > 1}
    assert kinds.pop("token_embd.weight") == "Q8_0"
    assert set(kinds.values()) == {kind}
    loaded = load_model(path, quant="int8")
    assert loaded.config.layers == 2
    assert torch.isfinite(loaded.model.embed(torch.arange(512))).all()


def test_mistakes_are_named() -> None:
    """An engine, a length, a scheme."""
    with pytest.raises(UsageError, match=r"'vllm'; allowed: transformers, .*llama.cpp"):
        named("vllm", "int8")
    with pytest.raises(UsageError, match=r"'many'; allowed: whole numbers from 1 to 8192"):
        speed.prefill("unused", tokens="many")
    with pytest.raises(UsageError, match=r"'fp32'; allowed: int8, int4, bf16"):
        quality.quality("unused", "fp32")
