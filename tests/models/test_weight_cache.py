"""Packed weights: warm equals cold, a damaged cache is made again, and a cache that cannot be written stops nothing."""

from __future__ import annotations

import json
import os
import shutil
import stat
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from gguf_files import write_gguf
from oracle import our_greedy, our_logits
from safetensors import safe_open

from qwen_agent_kit.errors import ModelError, UsageError
from qwen_agent_kit.models import WeightCache, load_model
from qwen_agent_kit.models import load as loading
from qwen_agent_kit.testing.models import tiny_model_dir

PROMPT = [5, 100, 200, 300, 7, 9]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tiny_model_dir(tmp_path / "model", "qwen3_moe")


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def packed(cache: Path) -> Path:
    (found,) = cache.glob("*.safetensors")
    return found


@pytest.mark.parametrize("quant", ["fp32", "bf16", "int8", "int4"])
def test_warm_equals_cold(folder: Path, cache: Path, quant: str) -> None:
    """Without a cache, filling one and from a full one, everything is equal, and the digest with it."""
    cold, filled, warm = (load_model(folder, quant=quant, cache=c) for c in (None, cache, cache))
    expected = our_logits(cold.model, PROMPT)
    for other in (filled, warm):
        assert torch.equal(our_logits(other.model, PROMPT), expected)
        for name in ("config", "tokenizer_json", "template", "special", "eos", "sampling_defaults", "digest", "scheme"):
            assert getattr(other, name) == getattr(cold, name), name
    assert warm.model.weight_bytes == cold.model.weight_bytes


def test_a_warm_start_reads_no_source(folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is mapped from the cache does not open the checkpoint again, and answers as what was read from it."""
    expected = our_logits(load_model(folder, cache=cache).model, PROMPT)

    def never(*args: object) -> None:
        raise AssertionError("the checkpoint was opened")

    monkeypatch.setattr(loading, "SafetensorsModel", never)
    monkeypatch.setattr(loading, "read_text_files", never)
    assert torch.equal(our_logits(load_model(folder, cache=cache).model, PROMPT), expected)


def test_each_scheme_and_source_has_its_own_entry(folder: Path, cache: Path) -> None:
    """Two schemes are two entries; changed weights are another source, and both stay right."""
    before = our_logits(load_model(folder, cache=cache).model, PROMPT)
    load_model(folder, quant="bf16", cache=cache)
    assert len(list(cache.glob("*.json"))) == 2
    tiny_model_dir(folder, "qwen3_moe", seed=1)
    after = our_logits(load_model(folder, cache=cache).model, PROMPT)
    assert not torch.allclose(before, after)
    assert len(list(cache.glob("*.json"))) == 3
    tiny_model_dir(folder, "qwen3_moe")
    assert torch.equal(our_logits(load_model(folder, cache=cache).model, PROMPT), before)


def test_files_are_private_and_plain_safetensors(folder: Path, cache: Path) -> None:
    """0700 and 0600; the library reads what we wrote; nothing else is left."""
    loaded = load_model(folder, cache=cache)
    assert stat.S_IMODE(cache.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in cache.iterdir()} == {0o600}
    with safe_open(packed(cache), "pt") as file:
        assert torch.equal(file.get_tensor("embedding"), loaded.model.embedding)
    assert not [path for path in cache.iterdir() if path.name.startswith(".")]


def _flip(path: Path, at: int) -> None:
    raw = bytearray(path.read_bytes())
    raw[at] ^= 1
    path.write_bytes(raw)


DAMAGE = {
    "header": lambda w, d: _flip(w, 30),
    "header length": lambda w, d: _flip(w, 1),
    "cut": lambda w, d: w.write_bytes(w.read_bytes()[:-9]),
    "longer": lambda w, d: w.write_bytes(w.read_bytes() + b"x"),
    "weights gone": lambda w, d: w.unlink(),
    "description gone": lambda w, d: d.unlink(),
    "description flipped": lambda w, d: _flip(d, 500),
    "description cut": lambda w, d: d.write_bytes(d.read_bytes()[:100]),
    "description of another kind": lambda w, d: d.write_bytes(b"[]"),
    "empty": lambda w, d: w.write_bytes(b""),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_a_damaged_entry_is_made_again(folder: Path, cache: Path, what: str) -> None:
    """Whatever is cut, flipped or gone in header, size or description, the model is right and the entry whole again."""
    expected = our_logits(load_model(folder, cache=cache).model, PROMPT)
    weights = packed(cache)
    DAMAGE[what](weights, weights.with_suffix(".json"))
    assert torch.equal(our_logits(load_model(folder, cache=cache).model, PROMPT), expected)
    assert WeightCache(cache).verify() == []


def test_damage_in_the_data_is_found_by_verify(folder: Path, cache: Path) -> None:
    """The data's checksum is not read at each start; `verify` reads it, and `forget` makes room for a new one."""
    load_model(folder, cache=cache)
    weights = packed(cache)
    _flip(weights, weights.stat().st_size - 100)
    (problem,) = WeightCache(cache).verify()
    assert "the data do not match" in problem
    WeightCache(cache).forget(weights.stem)
    load_model(folder, cache=cache)
    assert WeightCache(cache).verify() == []


def test_damaged_digest_notes_are_read_over(folder: Path, cache: Path) -> None:
    """The notes of what was hashed may be anything; the digest stays the same."""
    digest = load_model(folder, cache=cache).digest
    for text in (b"", b"{}", b"[1]", b'{"stamp": 1, "sha256": "x"}', b"\xff"):
        for note in cache.glob("*.digest"):
            note.write_bytes(text)
        assert load_model(folder, cache=cache).digest == digest


def test_f51_a_cache_that_cannot_be_written_stops_nothing(
    folder: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A full disk while packing, and a cache directory that is a file: the model opens, one warning says why."""
    expected = our_logits(load_model(folder).model, PROMPT)

    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        assert torch.equal(our_logits(load_model(folder, cache=cache).model, PROMPT), expected)
    assert "No space left on device" in caplog.text
    assert not [path for path in cache.iterdir() if path.suffix != ".digest"]
    (tmp_path / "file").write_text("")
    assert torch.equal(our_logits(load_model(folder, cache=tmp_path / "file").model, PROMPT), expected)
    assert torch.equal(our_logits(load_model(folder, cache=cache).model, PROMPT), expected)
    assert WeightCache(cache).verify() == []


def test_the_cache_is_bounded(cache: Path) -> None:
    """Beyond its bound the least recently used entries go, the newest never."""
    kept = WeightCache(cache, most_bytes=40_000)
    for i in range(5):
        kept.store(f"k{i}", [("x", torch.full((2000,), float(i)))], {"i": i}, most=1)
        os.utime(cache / f"k{i}.json", (i, i))
        if i == 2:
            assert kept.load("k0") is not None  # used again
    assert {path.stem for path in cache.glob("*.json")} == {path.stem for path in cache.glob("*.safetensors")}
    assert (cache / "k4.json").exists()
    assert (cache / "k0.json").exists()
    assert not (cache / "k1.json").exists()
    kept.store("big", [("x", torch.zeros(20_000))], {}, most=1)
    assert [path.stem for path in cache.glob("*.json")] == ["big"]


def test_maps_survive_deletion(folder: Path, cache: Path) -> None:
    """A model that is open stays right when its entry is dropped, and writing to its tensors never reaches the file."""
    loaded = load_model(folder, cache=cache)
    whole = packed(cache).read_bytes()
    expected = our_logits(loaded.model, PROMPT)
    loaded.model.embedding[0] += 1.0
    assert packed(cache).read_bytes() == whole
    loaded.model.embedding[0] -= 1.0
    shutil.rmtree(cache)
    torch.testing.assert_close(our_logits(loaded.model, PROMPT), expected)


def test_two_processes_fill_one_cache(folder: Path, cache: Path) -> None:
    """Both succeed, and the entry is whole."""
    code = (
        "import sys; from qwen_agent_kit.models import load_model;"
        "print(load_model(sys.argv[1], cache=sys.argv[2]).digest)"
    )
    runs = [
        subprocess.Popen([sys.executable, "-c", code, str(folder), str(cache)], stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    digests = {run.communicate(timeout=120)[0] for run in runs}
    assert all(run.returncode == 0 for run in runs)
    assert len(digests) == 1
    assert WeightCache(cache).verify() == []


def test_loading_needs_no_transformers(folder: Path, tmp_path: Path) -> None:
    """Neither safetensors nor GGUF loading imports it, nor tokenizers, nor the safetensors library."""
    path = write_gguf(folder, tmp_path / "m.gguf")
    code = (
        "import sys; from qwen_agent_kit.models import load_model; [load_model(p) for p in sys.argv[1:]];"
        "print(sorted({'transformers', 'tokenizers', 'safetensors', 'torchvision', 'jinja2'} & set(sys.modules)))"
    )
    out = subprocess.run(
        [sys.executable, "-c", code, str(folder), str(path)], capture_output=True, text=True, check=True
    )
    assert out.stdout.strip() == "[]"


def test_smollm2_starts_from_the_cache_in_half_a_second(smollm2_gguf: Path, cache: Path) -> None:
    """The real model's warm load, best of three (about 0.05 s on a quiet machine), with the same answer as cold."""
    cold = load_model(smollm2_gguf, quant="bf16", cache=cache)
    times = []
    for _ in range(3):
        began = time.perf_counter()
        warm = load_model(smollm2_gguf, quant="bf16", cache=cache)
        times.append(time.perf_counter() - began)
    assert min(times) < 0.5
    assert our_greedy(warm.model, PROMPT, 4) == our_greedy(cold.model, PROMPT, 4)


def test_what_is_not_supported_is_named(folder: Path) -> None:
    """Schemes and devices that there are not."""
    with pytest.raises(UsageError, match=r"'int2'.*allowed: fp32, bf16, int8, int4"):
        load_model(folder, quant="int2")
    with pytest.raises(UsageError, match="'cuda'; allowed: cpu"):
        load_model(folder, device="cuda")


def test_an_entry_of_another_layout_is_not_used(folder: Path, cache: Path) -> None:
    """A description whose layout number is not ours is as good as missing, however well it is sealed."""
    load_model(folder, cache=cache)
    described = packed(cache).with_suffix(".json")
    sealed = json.loads(described.read_bytes())
    record = {**json.loads(sealed["record"]), "layout": 10**6}
    from qwen_agent_kit.models import weight_cache

    described.write_bytes(weight_cache._sealed(record))
    assert WeightCache(cache).load(described.stem) is None
    assert struct.calcsize("<Q") == 8
    load_model(folder, cache=cache)
    assert WeightCache(cache).load(described.stem) is not None


def test_text_of_a_broken_description_is_refused(cache: Path) -> None:
    """A description that is whole but describes something else is refused with a cure."""
    from qwen_agent_kit.models import DecoderConfig

    with pytest.raises(ModelError, match="cannot be read"):
        DecoderConfig.from_dict({"rope": {}})
