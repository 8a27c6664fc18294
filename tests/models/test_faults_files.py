"""F13: weight files that are damaged or dangerous are refused with the file and the tensor; none crashes."""

from __future__ import annotations

import json
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf_files import write_gguf
from oracle import our_logits
from safetensors.torch import load_file, save_file

from qwen_agent_kit.errors import ModelError
from qwen_agent_kit.models import load_model
from qwen_agent_kit.testing.models import tiny_model_dir, tiny_tokenizer

SIZES: dict[str, Any] = {"hidden": 16, "heads": 2, "kv_heads": 1, "layers": 1}


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model_dir(tmp_path_factory.mktemp("good"), "qwen3", tokenizer_json=tiny_tokenizer(280), **SIZES)


@pytest.fixture
def model(good: Path, tmp_path: Path) -> Path:
    """A copy whose weights may be damaged."""
    for path in good.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


def header_of(data: bytes) -> tuple[dict[str, Any], bytes]:
    length = struct.unpack("<Q", data[:8])[0]
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def with_header(header: dict[str, Any] | bytes, body: bytes) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


@pytest.mark.parametrize("suffix", [".bin", ".pt", ".pth", ".pkl", ".ckpt"])
def test_f13_pickled_checkpoints_are_refused(model: Path, suffix: str) -> None:
    """By name, as a file and as the only weights of a directory; nothing in them is read."""
    pickled = model / f"pytorch_model{suffix}"
    pickled.write_bytes(b"\x80\x04cposix\nsystem\n(S'touch /tmp/owned'\ntR.")
    with pytest.raises(ModelError, match=rf"`pytorch_model\{suffix}` is a pickled checkpoint") as caught:
        load_model(pickled)
    assert caught.value.code == "pickled_weights"
    (model / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=rf"`pytorch_model\{suffix}` is a pickled checkpoint"):
        load_model(model)


NAME = "model.layers.0.mlp.down_proj.weight"


def _entry(change: Callable[[dict[str, Any], int], None]) -> Callable[[bytes], bytes]:
    def damage(data: bytes) -> bytes:
        header, body = header_of(data)
        change(header[NAME], len(body))
        return with_header(header, body)

    return damage


def _overlap(data: bytes) -> bytes:
    header, body = header_of(data)
    other = "model.layers.0.self_attn.k_proj.weight"
    start = header[NAME]["data_offsets"][0]
    header[other] = {**header[other], "data_offsets": [start, start + 16 * 8 * 4]}
    return with_header(header, body)


def _twice(data: bytes) -> bytes:
    header, body = header_of(data)
    text = json.dumps(header)
    return with_header((text[:-1] + f', "{NAME}": {json.dumps(header[NAME])}' + "}").encode(), body)


DAMAGE: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "empty": (lambda d: b"", "`model.safetensors` has 0 bytes"),
    "cut in the length": (lambda d: d[:5], "`model.safetensors` has 5 bytes"),
    "a header of 2 GB": (lambda d: struct.pack("<Q", 2**31) + d[8:], "its header has 2147483648 bytes"),
    "a header of 2^63 bytes": (lambda d: struct.pack("<Q", 2**63) + d[8:], "its header has"),
    "no JSON": (lambda d: with_header(b"{" * 100, d[-64:]), "no JSON"),
    "nested 100,000 deep": (lambda d: with_header(b"[" * 100_000, d[-64:]), "no JSON"),
    "a list": (lambda d: with_header(b"[]", b""), "no object"),
    "cut data": (lambda d: d[:-7], "the data has"),
    "data behind the last tensor": (lambda d: d + bytes(5), "its tensors take"),
    "a name twice": (_twice, f"`{NAME}` twice"),
    "offset past the end": (_entry(lambda e, n: e.update(data_offsets=[n, n + 16 * 32 * 4])), f"`{NAME}`"),
    "negative offset": (_entry(lambda e, n: e.update(data_offsets=[-4, 2044])), f"`{NAME}`"),
    "offsets the wrong way": (_entry(lambda e, n: e.update(data_offsets=e["data_offsets"][::-1])), f"`{NAME}`"),
    "a float offset": (_entry(lambda e, n: e.update(data_offsets=[0.0, 2048.0])), f"`{NAME}`"),
    "overlapping tensors": (_overlap, "overlaps another tensor"),
    "an unknown dtype": (_entry(lambda e, n: e.update(dtype="F33")), f"`{NAME}` the dtype 'F33'"),
    "a shape of the wrong size": (_entry(lambda e, n: e.update(shape=[16, 33])), f"`{NAME}`"),
    "a huge shape": (_entry(lambda e, n: e.update(shape=[2**61, 2**61])), f"`{NAME}`"),
    "a shape that is text": (_entry(lambda e, n: e.update(shape="16")), f"`{NAME}`"),
    "an integer tensor": (_entry(lambda e, n: e.update(dtype="I32")), f"`{NAME}` .* dtype I32"),
    "turned round": (_entry(lambda e, n: e.update(shape=e["shape"][::-1])), rf"`{NAME}` .* of shape \[32, 16\]"),
    "a further field": (_entry(lambda e, n: e.update(file="/etc/passwd")), f"`{NAME}`"),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_f13_damaged_safetensors_are_refused(model: Path, what: str) -> None:
    """The error names the file and the tensor, comes at once, and the same directory loads once it is whole."""
    path = model / "model.safetensors"
    whole = path.read_bytes()
    damage, says = DAMAGE[what]
    path.write_bytes(damage(whole))
    began = time.monotonic()
    with pytest.raises(ModelError, match=says) as caught:
        load_model(model)
    assert "model.safetensors" in str(caught.value)
    assert time.monotonic() - began < 5
    path.write_bytes(whole)
    load_model(model)


def test_f13_a_missing_or_surplus_tensor_is_named(model: Path) -> None:
    """A tensor that the configuration needs, and a bias that it knows nothing of and that is not zero."""
    path = model / "model.safetensors"
    tensors = load_file(path)
    save_file({k: v for k, v in tensors.items() if k != NAME}, path)
    with pytest.raises(ModelError, match=f"`{NAME}` in .* is missing; the configuration asks for"):
        load_model(model)
    save_file({**tensors, "model.layers.0.self_attn.q_proj.bias": torch.ones(16)}, path)
    with pytest.raises(ModelError, match=r"q_proj.bias` in `model.safetensors` is a bias"):
        load_model(model)


def test_sharded_checkpoints_load_as_one(model: Path) -> None:
    """Shards behind an index give the same model; a shard elsewhere, missing, or that repeats a name is refused."""
    whole = load_model(model)
    path, index = model / "model.safetensors", model / "model.safetensors.index.json"
    tensors = load_file(path)
    names = list(tensors)
    shards = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for shard, held in shards.items():
        save_file({n: tensors[n] for n in held}, model / shard)
    path.unlink()
    places = {n: shard for shard, held in shards.items() for n in held}
    index.write_text(json.dumps({"metadata": {}, "weight_map": places}))
    again = load_model(model)
    assert torch.equal(our_logits(again.model, [1, 2, 3]), our_logits(whole.model, [1, 2, 3]))
    for name, says in (("../a.safetensors", "names"), ("c.safetensors", "missing"), ("a.bin", "names")):
        index.write_text(json.dumps({"weight_map": {**places, names[0]: name}}))
        with pytest.raises(ModelError, match=says):
            load_model(model)
    index.write_text(json.dumps({"weight_map": places}))
    save_file({names[0]: tensors[names[0]]}, model / "b.safetensors")
    with pytest.raises(ModelError, match=r"is in `a.safetensors` and again in `b.safetensors`"):
        load_model(model)


def mutated(data: bytes, seed: int, head: int) -> bytes:
    """One of six kinds of damage, mostly within the first ``head`` bytes."""
    rng = np.random.default_rng(seed)
    raw = bytearray(data)
    at = int(rng.integers(0, min(head, len(raw)) if rng.random() < 0.8 else len(raw)))
    kind = seed % 6
    if kind == 0:
        raw[at] ^= 1 << int(rng.integers(0, 8))
    elif kind == 1:
        raw[at : at + 8] = rng.bytes(8)
    elif kind == 2:
        del raw[at : at + int(rng.integers(1, 64))]
    elif kind == 3:
        raw[at:at] = rng.bytes(int(rng.integers(1, 64)))
    elif kind == 4:
        del raw[at:]
    else:
        raw[at : at + 8] = struct.pack("<Q", int(rng.choice([0, 1, 2**31, 2**32 - 1, 2**62, 2**63 - 1])))
    return bytes(raw)


def try_mutations(path: Path, target: Path, head: int, seeds: range) -> int:
    """Load each mutation: an exact equal or a ModelError, at once. How many were refused."""
    whole = path.read_bytes()
    original = load_model(target).model
    expected = our_logits(original, [1, 2, 3])
    refused = 0
    for seed in seeds:
        damaged = mutated(whole, seed, head)
        path.write_bytes(damaged)
        began = time.monotonic()
        try:
            found = load_model(target)
        except ModelError:
            refused += 1
        else:
            # What no header can tell: values and names that changed within their bounds.
            logits = our_logits(found.model, [1, 2, 3])
            assert logits.shape[0] == expected.shape[0]
            assert damaged != whole or torch.equal(logits, expected)
        assert time.monotonic() - began < 10, f"seed {seed} took {time.monotonic() - began:.1f} s"
    path.write_bytes(whole)
    assert torch.equal(our_logits(load_model(target).model, [1, 2, 3]), expected)
    return refused


def test_f13_mutated_safetensors(model: Path) -> None:
    """60 mutations: each is refused with a ModelError or loads; most of them lie in the header and are refused."""
    assert try_mutations(model / "model.safetensors", model, 1400, range(60)) > 30


def test_f13_mutated_gguf(good: Path, tmp_path: Path) -> None:
    """60 mutations of a GGUF file, in its counts, keys, vocabulary, table and data."""
    path = write_gguf(good, tmp_path / "m.gguf")
    assert try_mutations(path, path, 12_000, range(60)) > 30


@pytest.mark.full
def test_f13_mutated_safetensors_at_length(model: Path) -> None:
    """1,000 of them."""
    try_mutations(model / "model.safetensors", model, 1400, range(1000, 2000))


@pytest.mark.full
def test_f13_mutated_gguf_at_length(good: Path, tmp_path: Path) -> None:
    """1,000 of them."""
    path = write_gguf(good, tmp_path / "m.gguf")
    try_mutations(path, path, 12_000, range(1000, 2000))


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda d: b"", "empty"),
        (lambda d: b"GGML" + d[4:], "begins with b'GGML'"),
        (lambda d: d[:4] + struct.pack("<I", 9) + d[8:], "version 9"),
        (lambda d: d[:8] + struct.pack("<Q", 2**60) + d[16:], "tensors and"),
        (lambda d: d[:16] + struct.pack("<Q", 2**60) + d[24:], "tensors and"),
        (lambda d: d[:24] + struct.pack("<Q", 2**60) + d[32:], "ends in its header"),
        (lambda d: d[:2000], "ends in its header"),
        (lambda d: d[:-5000], "(begins|ends) at"),
    ],
)
def test_f13_damaged_gguf_headers(good: Path, tmp_path: Path, damage: Callable[[bytes], bytes], says: str) -> None:
    """Counts and offsets that the file cannot hold are refused before anything is allocated for them."""
    path = write_gguf(good, tmp_path / "m.gguf")
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ModelError, match=says) as caught:
        load_model(path)
    assert "m.gguf" in str(caught.value)


def test_a_path_that_is_nothing_is_explained(tmp_path: Path) -> None:
    """A missing path, an empty directory, one weight file of a model: each with its cure."""
    for path, says in (
        (tmp_path / "no", "neither a file nor a directory"),
        (tmp_path, "holds no safetensors file"),
    ):
        with pytest.raises(ModelError, match=says):
            load_model(path)
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(ModelError, match="one file of a model") as caught:
        load_model(tmp_path / "model.safetensors")
    assert str(tmp_path) in (caught.value.hint or "")
    with pytest.raises(ModelError, match=r"config\.json"):
        load_model(tmp_path)
