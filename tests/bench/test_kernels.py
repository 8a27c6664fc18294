"""``qak bench kernels``: what is measured is right, what dies or is wrong is named, and what is quickest is kept."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import torch

from qwen_agent_kit.bench import kernels as bench
from qwen_agent_kit.models import kernels as registry
from qwen_agent_kit.models import load_model, make_linear, probing
from qwen_agent_kit.models.kernels import KERNELS, Choices, read_choices, write_choices
from qwen_agent_kit.models.native.build import built_library
from qwen_agent_kit.placement.kernels import compiler
from qwen_agent_kit.testing.models import tiny_model_dir

BY_NAME = {kernel.name: kernel for kernel in KERNELS}

AWKWARD = [(1, 1), (17, 31), (33, 100), (65, 576), (129, 3420), (31, 3424), (48, 128)]
"""N and K: K % 16 and K % 32 of every kind, N odd."""

EXTENSION = """
import os, signal, time
import torch
library = torch.library.Library("zentorch", "DEF")
library.define("zentorch_dynamic_qlinear(Tensor x, Tensor weight, Tensor scales) -> Tensor")
def multiply(x, weight, scales):
    HOW
    return torch.nn.functional.linear(x, weight.to(x.dtype)) * scales
library.impl("zentorch_dynamic_qlinear", multiply, "CPU")
"""
"""A package by the name of one that the registry knows."""


@pytest.fixture
def extension(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> object:
    """Install such a package for child processes, ``how`` it goes wrong being code."""

    def install(how: str) -> None:
        (tmp_path / "site").mkdir(exist_ok=True)
        (tmp_path / "site" / "zentorch.py").write_text(EXTENSION.replace("HOW", how))
        path = os.pathsep.join((str(tmp_path / "site"), *filter(None, [os.environ.get("PYTHONPATH")])))
        monkeypatch.setenv("PYTHONPATH", path)

    return install


@pytest.mark.parametrize("scheme", ["int8", "int4", "bf16", "fp32"])
def test_the_matrix_is_held_exactly(scheme: str) -> None:
    """Multiplying by a single one gives its columns back: what a kernel is off by is its own."""
    weight = probing.exact_matrix(48, 128, scheme, torch.Generator().manual_seed(1))
    layer = make_linear(weight, None, scheme)
    eye = torch.eye(128).to(torch.float32 if scheme == "fp32" else torch.bfloat16)
    torch.testing.assert_close(layer(eye).float().T, weight, rtol=0.005, atol=1e-6)


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The native library, built once for the children of this file."""
    folder = tmp_path_factory.mktemp("native")
    built_library(folder)
    return folder


@pytest.mark.parametrize("rows", [[1, 3, 8, 9, 64, 300], pytest.param([*range(1, 301)], marks=pytest.mark.full)])
@pytest.mark.parametrize("name", [kernel.name for kernel in KERNELS if not kernel.needs])
def test_every_kernel_equals_dequantise_and_matmul(name: str, rows: list[int], built: Path, private_home: Path) -> None:
    """Over awkward shapes and 1 to 300 rows, in a child: within the bound, and no shape ends the process."""
    if BY_NAME[name].native and compiler() is None:
        pytest.skip("there is no C compiler")
    shutil.copytree(built, private_home / "cache" / "native")
    found = probing.measured(BY_NAME[name], AWKWARD, rows, 0.0)
    assert found.problem == ""
    assert found.off <= probing.MOST_OFF
    assert len(found.us) == len(AWKWARD)
    assert all(len(us) in (0, len(rows)) for us in found.us.values())
    assert len(found.us[48, 128]) == len(rows)


@pytest.mark.parametrize(
    ("how", "problem"),
    [
        ("if weight.shape[0] == 64: os.kill(os.getpid(), signal.SIGSEGV)", "ended with -11 at 64x32"),
        ("if weight.shape[0] == 64: return x @ weight.to(x.dtype).T * scales * 1.5", "is off by 0.5"),
        ("if weight.shape[0] == 64: return x.new_full((len(x), 64), float('nan'))", "is off by nan"),
        ("if weight.shape[0] == 64: raise RuntimeError('no')", "ended with 1 at 64x32"),
        pytest.param("if weight.shape[0] == 64: time.sleep(60)", "hangs at 64x32", marks=pytest.mark.full),
    ],
)
def test_a_kernel_that_is_wrong_is_named_and_refused(extension: object, how: str, problem: str) -> None:
    """Whether it kills its process, raises, hangs or gives something else, for one shape of two: it is named with what
    it did, and another is chosen for both."""
    extension(how)  # type: ignore[operator]
    shapes, most = [(32, 32), (64, 32)], 6 if "hangs" in problem else probing.MOST_SECONDS
    names = ("dequantise int8", "zentorch int8")
    found = {BY_NAME[name]: probing.measured(BY_NAME[name], shapes, [1, 4], 0.0, most) for name in names}
    assert found[BY_NAME["zentorch int8"]].problem.startswith(problem)
    choices = probing.chosen(found, shapes)
    assert list(choices.refused) == ["zentorch int8"]
    assert set(choices.ranges.values()) == {((None, "dequantise int8"),)}
    assert next(iter(bench._rows(BY_NAME["zentorch int8"], found[BY_NAME["zentorch int8"]], shapes))).name.startswith(
        f"zentorch int8 {problem}"
    )


def test_a_kernel_that_is_not_there_is_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is said, and not refused: it may be installed tomorrow."""
    monkeypatch.setenv("QAK_NATIVE", "0")
    found = {BY_NAME[name]: probing.measured(BY_NAME[name], [(32, 64)]) for name in ("native int8", "zentorch int8")}
    assert [answer.problem.split(":")[0] for answer in found.values()] == ["is not there", "is not installed"]
    assert probing.chosen(found, [(32, 64)]) == Choices()


def test_ranges_follow_the_times() -> None:
    """The quickest at each number of rows, up to where another is clearly quicker; the last is for any number."""
    times = {"a": {1: 10.0, 8: 50.0, 64: 400.0}, "b": {1: 20.0, 8: 49.0, 64: 90.0}}
    assert probing._ranges(times) == ((8, "a"), (None, "b"))
    assert probing._ranges({"a": {1: 1.0, 8: 1.0}}) == ((None, "a"),)
    assert probing._ranges({"a": {1: 5.0, 8: 9.0}, "b": {1: 6.0}}) == ((None, "a"),)


def test_what_is_quickest_is_kept_and_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole command: every kernel of torch's int8 has its error and a time per number of rows; the choice is kept
    for this machine, and a model that is opened afterwards multiplies as it says."""
    names = ("aten int8pack", "dequantise int8")
    monkeypatch.setattr(registry, "KERNELS", tuple(BY_NAME[name] for name in names))
    monkeypatch.setenv("QAK_NATIVE", "0")
    folder = tiny_model_dir(tmp_path, "qwen2")
    rows = {row.name: row for row in bench.kernels(str(folder))}
    assert all(row.ok for row in rows.values())
    assert all(rows[f"{name}: a layer, {m} rows"].value > 0 for name in names for m in probing.ROWS)
    kept = read_choices()
    assert kept.ranges
    assert set(kept.ranges) == {key for key in kept.ranges if key.startswith("int8 rows ")}
    assert {name for of in kept.ranges.values() for _, name in of} <= set(names)
    multiply = {name: BY_NAME[name].multiply for name in names}
    layer = load_model(folder, quant="int8").model.layers[0].qkv
    named = kept.ranges[Choices.key("int8 rows", *layer.shape)]
    assert [name for _, name in named] == [next(n for n in names if multiply[n] is m) for _, m in layer.ranges]
    write_choices(Choices({Choices.key("int8 rows", *layer.shape): ((2, names[1]), (None, names[0]))}))
    layer = load_model(folder, quant="int8").model.layers[0].qkv
    assert layer.ranges == ((2, multiply[names[1]]), (float("inf"), multiply[names[0]]))
    assert read_choices().ranges.keys() == kept.ranges.keys()
