"""The native kernels: products in a process of their own, a whole step against torch, and the build."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from native_build import compiled, python
from native_reference import RoundedKV, slab_kv, with_reference
from oracle import MODELS, DenseKV, our_logits, random_prompts

from qwen_agent_kit.models import Decoder, Segment, load_model
from qwen_agent_kit.models.native.build import _whole, built_library
from qwen_agent_kit.placement.kernels import compiler
from qwen_agent_kit.testing.models import tiny_model_dir

pytestmark = pytest.mark.skipif(compiler() is None, reason="there is no C compiler")

LEVELS = {
    "avx512-vnni": ("-march=native",),
    "avx512": ("-march=native", "-mno-avx512vnni"),
    "portable": (),
}

PRODUCT_BOUND = 2e-6
"""Both sides sum the same products, in another order and in float32."""

STEP_BOUND = {"int8": 0.02, "int4": 0.02}
"""Of the logits' own size; where two orders of summing round an activation to neighbours, they are 1/127 apart."""


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library, built once for this file."""
    library = built_library(tmp_path_factory.mktemp("native"))
    assert library is not None
    return library


def products(library: Path, rows: str, threads: int) -> dict[str, Any]:
    done = python("import native_products, sys; native_products.main(*sys.argv[1:])", str(library), str(threads), rows)
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def hold(found: dict[str, dict[str, float]]) -> None:
    """Every matrix within its bounds; a row alone gives to the bit what it gives among others."""
    for name, worst in found.items():
        assert worst["weights"] < (0.006 if name.startswith("int8") else 0.085), name
        assert worst["product"] < PRODUCT_BOUND, name
        assert worst["alone"] == 0, name


@pytest.mark.parametrize("threads", [1, 5])
def test_products_equal_dequantise_and_matmul(built: Path, threads: int) -> None:
    """Odd N, K = 3420, K % 16 and K % 32 of every kind, 1 to 300 rows, with and without a bias, more threads than cores
    included: the product of the weights as they are held and the activations as they are rounded."""
    hold(products(built, "some", threads)["found"])


@pytest.mark.full
def test_products_equal_for_every_number_of_rows(built: Path) -> None:
    """1 to 300 rows, each."""
    hold(products(built, "all", 2)["found"])


@pytest.mark.parametrize("level", LEVELS)
def test_each_instruction_set_gives_the_same(tmp_path: Path, level: str) -> None:
    """What the compiler may use changes the speed, not the result; one that this CPU lacks falls to the next."""
    result = products(compiled(tmp_path / "native.so", ("-shared", *LEVELS[level])), "few", 2)
    assert list(LEVELS).index(result["level"]) >= list(LEVELS).index(level)
    hold(result["found"])


def native_logits(model: Decoder, prompt: list[int], chunks: tuple[int, ...] = ()) -> torch.Tensor:
    """[n, vocab] through the native step alone."""
    kv, parts, bounds = slab_kv(model, len(prompt)), [], (0, *chunks, len(prompt))
    for start, end in pairwise(bounds):
        ids = torch.tensor(prompt[start:end])
        parts.append(model.forward(ids, torch.arange(start, end), kv, start=start, logits_from=0))
    return torch.cat(parts)


def plain_logits(model: Decoder, prompt: list[int], positions: torch.Tensor | None = None) -> torch.Tensor:
    """[n, vocab] by torch, keys and values rounded to bfloat16."""
    at = torch.arange(len(prompt)) if positions is None else positions
    return model.forward(torch.tensor(prompt), at, RoundedKV(), start=0, logits_from=0)


def apart(found: torch.Tensor, exact: torch.Tensor) -> float:
    return float((found - exact).norm() / exact.norm())


@pytest.mark.parametrize("quant", ["int8", "int4"])
@pytest.mark.parametrize("name", MODELS)
def test_a_step_equals_the_torch_path(tmp_path: Path, name: str, quant: str) -> None:
    """Every configuration: logits of torch's operations over the same weights, whole; and to the bit the same however
    the prompt is cut. In a mixture one row in twenty may take another expert, where two score almost the same."""
    native, reference = with_reference(tiny_model_dir(tmp_path, **MODELS[name]), quant)
    for prompt in random_prompts(3, 500, high=90):
        whole = native_logits(native, prompt)
        exact = plain_logits(reference, prompt)
        rows = (whole - exact).norm(dim=1) / exact.norm(dim=1)
        assert (rows < STEP_BOUND[quant]).float().mean() >= (0.95 if "moe" in name else 1)
        cuts = tuple(sorted({len(prompt) // 3, len(prompt) - 2, len(prompt) - 1} - {0}))
        assert torch.equal(native_logits(native, prompt, cuts), whole)


@pytest.mark.parametrize("window", [1, 9, 31, 32, 33, 64])
def test_windows_equal_the_torch_path(tmp_path: Path, window: int) -> None:
    """Windows around the span that attention takes at once, over a prompt of several spans, whole and id by id."""
    fields = {"use_sliding_window": True, "sliding_window": window, "max_window_layers": 1}
    native, reference = with_reference(tiny_model_dir(tmp_path, "qwen2", layers=3, **fields), "int8")
    prompt = random_prompts(1, 500, low=140, high=141)[0]
    whole = native_logits(native, prompt)
    assert apart(whole, plain_logits(reference, prompt)) < STEP_BOUND["int8"]
    assert torch.equal(native_logits(native, prompt, tuple(range(1, 140))), whole)


@pytest.mark.parametrize(("heads", "kv_heads", "dim"), [(7, 1, 16), (14, 2, 64), (6, 3, 20), (3, 3, 8), (5, 1, 256)])
def test_head_shapes_equal_the_torch_path(tmp_path: Path, heads: int, kv_heads: int, dim: int) -> None:
    """Groups of 1 to 7 query heads, head sizes that are no multiple of 16 and the widest that there is."""
    fields: dict[str, Any] = {"heads": heads, "kv_heads": kv_heads, "head_dim": dim, "hidden": 4 * heads * 4}
    native, reference = with_reference(tiny_model_dir(tmp_path, "qwen3", **fields), "int8")
    prompt = random_prompts(1, 500, low=70, high=71)[0]
    assert apart(native_logits(native, prompt), plain_logits(reference, prompt)) < STEP_BOUND["int8"]


def test_three_axis_positions_and_given_embeddings_equal_the_torch_path(tmp_path: Path) -> None:
    """m-rope positions [3, n], and rows of embeddings instead of ids."""
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3], "mrope_interleaved": False}
    native, reference = with_reference(tiny_model_dir(tmp_path, "qwen2", rope_parameters=rope), "int8")
    n = 40
    prompt = random_prompts(1, 500, low=n, high=n + 1)[0]
    positions = torch.stack([torch.arange(n), torch.arange(n) // 4, torch.arange(n) % 4 + torch.arange(n) // 7])
    exact = plain_logits(reference, prompt, positions)
    ids = torch.tensor(prompt)
    given: tuple[dict[str, Any], ...] = ({}, {"embeds": native.embed(ids)})
    for extra in given:
        kv = slab_kv(native, n)
        found = native.forward(ids * (not extra), positions, kv, start=0, logits_from=0, **extra)
        assert apart(found, exact) < STEP_BOUND["int8"]


@pytest.mark.parametrize("name", ["llama", "qwen2 sliding", "qwen3", "qwen2_moe", "qwen3_moe"])
def test_a_batch_gives_to_the_bit_what_each_gives_alone(tmp_path: Path, name: str) -> None:
    """Prompts of unlike lengths, a chunk beside decoding sequences, rows nobody wants; then all decode together."""
    model = load_model(tiny_model_dir(tmp_path, **MODELS[name]), quant="int8").model
    prompts = random_prompts(6, 500, low=3, high=90)
    starts = [0, len(prompts[1]) - 1, 2, 0, len(prompts[4]) - 1, 1]
    wanted = [1, 1, len(prompts[2]) - 2, 0, 1, 3 if len(prompts[5]) > 4 else 1]
    alone = [native_logits(model, prompt) for prompt in prompts]
    kvs = [slab_kv(model, len(p) + 1) for p in prompts]
    for prompt, start, kv in zip(prompts, starts, kvs, strict=True):
        if start:
            model.forward(torch.tensor(prompt[:start]), torch.arange(start), kv, start=0)
    rows = [(token, at) for p, start in zip(prompts, starts, strict=True) for at, token in enumerate(p) if at >= start]
    ids, positions = torch.tensor(rows).T
    segments = [
        Segment(kv, start, len(p) - start, want)
        for kv, start, p, want in zip(kvs, starts, prompts, wanted, strict=True)
    ]
    found = model.forward_batch(ids, positions, segments)
    assert torch.equal(found, torch.cat([a[len(a) - w :] for a, w in zip(alone, wanted, strict=True)]))
    ends = torch.tensor([len(p) for p in prompts])
    together = model.forward_batch(ends, ends, [Segment(kv, len(p), 1) for kv, p in zip(kvs, prompts, strict=True)])
    longer = [native_logits(model, [*p, len(p)])[-1] for p in prompts]
    assert torch.equal(together, torch.stack(longer))


def test_a_batch_larger_than_a_band_of_rows(tmp_path: Path) -> None:
    """Three hundred rows at once, some bands of them, give what they give in small chunks."""
    native, reference = with_reference(tiny_model_dir(tmp_path, "qwen3"), "int8")
    prompt = random_prompts(1, 500, low=300, high=301)[0]
    whole = native_logits(native, prompt)
    assert torch.equal(native_logits(native, prompt, tuple(range(7, 300, 7))), whole)
    assert apart(whole, plain_logits(reference, prompt)) < STEP_BOUND["int8"]


def test_only_chosen_experts_are_read(tmp_path: Path) -> None:
    """The counter of bytes: one row reads `top` experts of each layer, many rows each expert at most once."""
    fields: dict[str, Any] = {"family": "qwen3_moe", "num_experts": 16, "num_experts_per_tok": 2, "layers": 3}
    model = load_model(tiny_model_dir(tmp_path, **fields), quant="int8").model
    assert model.native is not None
    experts = model.layers[0].mlp.experts
    each = experts[0].gate_up.weight.nbytes + experts[0].down.weight.nbytes
    kv = slab_kv(model, 64)
    for at in range(4):
        before = model.native.expert_bytes
        model.forward(torch.tensor([at]), torch.tensor([at]), kv, start=at)
        assert model.native.expert_bytes - before == 3 * 2 * each
    before = model.native.expert_bytes
    model.forward(torch.arange(40), torch.arange(4, 44), kv, start=4)
    assert 3 * 2 * each < model.native.expert_bytes - before <= 3 * 16 * each


def test_torch_reads_only_chosen_experts_too(tmp_path: Path) -> None:
    """Without the native step a row runs `top` of the experts, each once."""
    fields: dict[str, Any] = {"family": "qwen3_moe", "num_experts": 16, "num_experts_per_tok": 2, "layers": 3}
    model = load_model(tiny_model_dir(tmp_path, **fields), quant="bf16").model
    seen: list[Any] = []
    for layer in model.layers:
        for expert in layer.mlp.experts:
            expert.register_forward_hook(lambda module, inputs, output: seen.append(module))
    model.forward(torch.tensor([1]), torch.tensor([0]), slab_kv(model, 64), start=0)
    assert len(seen) == len(set(seen)) == 3 * 2


def test_what_the_step_cannot_do_goes_through_torch(tmp_path: Path) -> None:
    """Keys and values that lie elsewhere, or in float32, and added hidden states: the layers run one by one."""
    native, reference = with_reference(tiny_model_dir(tmp_path, "qwen3"), "int8")
    prompt = random_prompts(1, 500, low=30, high=31)[0]
    ids, positions, n = torch.tensor(prompt), torch.arange(30), 30
    calls: list[int] = []
    native.layers[0].register_forward_hook(lambda *_: calls.append(1))
    native_logits(native, prompt)
    assert not calls
    assert apart(our_logits(native, prompt), plain_logits(reference, prompt)) < 0.05
    assert len(calls) == 1
    more = torch.randn(1, n, native.config.hidden) * 0.1
    pair = [
        m.forward_batch(ids, positions, [Segment(kv, 0, n, n)], deepstack=more)
        for m, kv in ((native, DenseKV()), (reference, RoundedKV()))
    ]
    assert len(calls) == 2
    assert apart(pair[0], pair[1]) < 0.05


def test_a_value_that_is_no_number_is_seen(tmp_path: Path) -> None:
    """A NaN or an infinity in a row makes that row's logits NaN, and no other's."""
    model = load_model(tiny_model_dir(tmp_path, "llama"), quant="int8").model
    for wrong in (float("nan"), float("inf"), float("-inf")):
        embeds = model.embed(torch.arange(2))
        embeds[1, 3] = wrong
        kvs = [slab_kv(model, 64) for _ in range(2)]
        segments = [Segment(kv, 0, 1) for kv in kvs]
        found = model.forward_batch(torch.arange(2), torch.zeros(2, dtype=torch.int64), segments, embeds=embeds)
        assert found[1].isnan().all()
        assert found[0].isfinite().all()


def _cut(library: Path) -> None:
    library.write_bytes(library.read_bytes()[:-100])


def _flip(library: Path) -> None:
    data = bytearray(library.read_bytes())
    data[len(data) // 2] ^= 1
    library.write_bytes(bytes(data))


DAMAGE: dict[str, Callable[[Path], object]] = {
    "cut": _cut,
    "flipped": _flip,
    "gone": lambda p: p.unlink(),
    "no checksum": lambda p: p.with_suffix(".sha256").unlink(),
    "another checksum": lambda p: p.with_suffix(".sha256").write_text("0" * 64),
    "a checksum of noise": lambda p: p.with_suffix(".sha256").write_bytes(b"\xff\xfe"),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_damage_is_seen(tmp_path: Path, built: Path, what: str) -> None:
    """Whatever is cut, flipped or gone, a library is taken for whole only with its own checksum."""
    for path in (built, built.with_suffix(".sha256")):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    assert _whole(tmp_path / built.name)
    DAMAGE[what](tmp_path / built.name)
    assert not _whole(tmp_path / built.name)


def test_a_damaged_build_is_made_again(tmp_path: Path, built: Path) -> None:
    """One that is not whole is built anew, one that is whole is not."""
    copy = tmp_path / built.name
    for path in (built, built.with_suffix(".sha256")):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    made = copy.stat().st_mtime_ns
    assert built_library(tmp_path) == copy
    assert copy.stat().st_mtime_ns == made
    _flip(copy)
    assert built_library(tmp_path) == copy
    assert copy.read_bytes() == built.read_bytes()
    assert not list(tmp_path.glob(".build-*"))


def test_processes_that_build_at_once_all_have_it(tmp_path: Path) -> None:
    """Two first uses at the same moment: both get a library that works, and one file is left."""
    code = """
import sys
from pathlib import Path
from qwen_agent_kit.models.native.build import built_library
print(built_library(Path(sys.argv[1])))
"""
    run = [sys.executable, "-c", code, str(tmp_path)]
    children = [subprocess.Popen(run, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    paths = {child.communicate(timeout=120)[0].strip() for child in children}
    assert len(paths) == 1
    assert sorted(p.suffix for p in tmp_path.iterdir()) == [".sha256", ".so"]
    hold(products(Path(paths.pop()), "few", 2)["found"])


BROKEN = {
    "switched off": {"QAK_NATIVE": "0"},
    "no compiler": {"PATH": "/nonexistent", "CC": ""},
    "a compiler that fails": {"CC": "false"},
    "a compiler that makes nothing": {"CC": "true"},
}


@pytest.mark.parametrize("how", BROKEN)
def test_without_kernels_the_layers_are_torchs(tmp_path: Path, how: str) -> None:
    """The model opens and answers, near its float32 self, and only a compiler that was tried is complained of."""
    tiny_model_dir(tmp_path / "model", "qwen3")
    done = python(
        """
        import logging, sys
        logging.basicConfig(level=logging.WARNING, format="%(message)s")
        import torch
        from oracle import our_logits
        from qwen_agent_kit.models import load_model
        for quant in ("int8", "int4"):
            model = load_model(sys.argv[1], quant=quant).model
            assert model.native is None
            found, exact = (our_logits(m, [1, 2, 3, 4]) for m in (model, load_model(sys.argv[1]).model))
            assert (found - exact).norm() / exact.norm() < 0.5
        """,
        str(tmp_path / "model"),
        **BROKEN[how],
    )
    assert done.returncode == 0, done.stderr
    assert ("native kernels cannot be built" in done.stderr) == (how.startswith("a compiler"))
