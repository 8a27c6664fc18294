"""Which kernel a layer takes: what is usual, what was chosen on this machine, and what is kept of that."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from qwen_agent_kit.models import kernels
from qwen_agent_kit.models.kernels import KERNELS, Choices, read_choices, usual, write_choices
from qwen_agent_kit.models.linear import Int8Linear, Linear
from qwen_agent_kit.placement.kernels import compiler
from qwen_agent_kit.testing.models import tiny_model_dir

MULTIPLY = {kernel.name: kernel.multiply for kernel in KERNELS}
KEY = Choices.key("int8 rows", 48, 64)


def layer_of(k: int = 64) -> Int8Linear:
    return Int8Linear(torch.ones(48, k, dtype=torch.int8), torch.ones(48, dtype=torch.bfloat16))


def test_what_is_usual_stands_every_shape() -> None:
    """A kernel that dies where rows end within its stride is not among what such a layer takes."""
    assert len(layer_of(64).ranges) == 2
    assert layer_of(3420).ranges == ((float("inf"), MULTIPLY["dequantise int8"]),)
    assert Linear(torch.ones(2, 3)).ranges == usual("fp32", 3)


@pytest.mark.parametrize("rows", [1, 4, 5, 16, 17, 300])
def test_a_layer_takes_what_its_rows_say(rows: int) -> None:
    """Up to each number the kernel of that range, past the last any number."""
    taken: list[str] = []

    def named(name: str) -> Any:
        return lambda layer, x: taken.append(name) or x

    layer = layer_of()
    layer.ranges = ((4, named("few")), (16, named("some")), (float("inf"), named("many")))
    layer(torch.zeros(rows, 64, dtype=torch.bfloat16))
    assert taken == ["few" if rows <= 4 else "some" if rows <= 16 else "many"]


def test_no_rows_ask_no_kernel() -> None:
    """A chunk of a prompt whose logits nobody wants goes through the head with none; some kernels fail at that."""
    layer = layer_of()
    layer.ranges = ()
    assert layer(torch.zeros(0, 64, dtype=torch.bfloat16)).shape == (0, 48)


def test_a_choice_comes_back_and_is_private() -> None:
    """Kept with mode 0600 under a name of this CPU and version of torch; another shape is added, not replaced."""
    choice = ((8, "dequantise int8"), (None, "aten int8pack"))
    write_choices(Choices({KEY: choice}, {"zentorch int8": "ended with -11 at 1x1"}))
    write_choices(Choices({"int8 rows 1x16": choice}))
    kept = read_choices()
    assert kept == Choices({KEY: choice, "int8 rows 1x16": choice})
    assert stat.S_IMODE(os.stat(kernels._place()).st_mode) == 0o600
    assert kept.of("int8 rows", 48, 64) == (
        (8, MULTIPLY["dequantise int8"]),
        (float("inf"), MULTIPLY["aten int8pack"]),
    )
    assert kept.of("int8 rows", 48, 128) == usual("int8 rows", 128)


def test_another_torch_or_cpu_is_another_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was measured with one says nothing of the other."""
    write_choices(Choices({KEY: ((None, "dequantise int8"),)}))
    for name, value in (("cpu_features", lambda: b"another"), ("source_digest", lambda: "another")):
        with monkeypatch.context() as patch:
            patch.setattr(kernels, name, value)
            assert read_choices() == Choices()
    with monkeypatch.context() as patch:
        patch.setattr(torch, "__version__", "9.9")
        assert read_choices() == Choices()
    assert read_choices().ranges


@pytest.mark.parametrize(
    "named",
    [
        ((None, "zentorch int8"),),
        ((None, "a kernel of tomorrow"),),
        ((None, "aten int4pack"),),
        ((8, "dequantise int8"),),
        (),
    ],
)
def test_a_choice_that_cannot_be_is_passed_over(named: tuple[tuple[int | None, str], ...]) -> None:
    """Not installed any more, unknown, of another layout, or without an end: the layer takes what is usual."""
    assert Choices({KEY: named}).of("int8 rows", 48, 64) == usual("int8 rows", 64)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"version": 2}', '{"version": 1, "ranges": {"a": 3}}', "\x00"])
def test_a_damaged_file_is_no_choice(text: str) -> None:
    """Cut, of another version, or noise: nothing was chosen, and writing makes it whole again."""
    kernels._place().write_text(text)
    assert read_choices() == Choices()
    write_choices(Choices({KEY: ((None, "dequantise int8"),)}))
    assert json.loads(kernels._place().read_text())["version"] == 1
    assert read_choices().ranges


def test_heads_of_any_height_are_alike() -> None:
    """Only a matrix's width is told apart past a height."""
    assert Choices.key("bf16", 151_936, 896) == Choices.key("bf16", 49_152, 896) != Choices.key("bf16", 896, 896)


@pytest.mark.skipif(compiler() is None, reason="there is no C compiler")
def test_a_refused_native_kernel_is_not_used(tmp_path: Path) -> None:
    """The model opens on torch's kernels, and it is said why."""
    write_choices(Choices(refused={"native int4": "ended with -4 at 48x64"}))
    code = """
import logging, sys
logging.basicConfig(level=logging.WARNING, format="%(message)s")
from qwen_agent_kit.models import load_model
print(load_model(sys.argv[1], quant="int8").model.native)
"""
    folder = tiny_model_dir(tmp_path, "qwen3")
    done = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True)
    assert done.stdout == "None\n", done.stderr
    assert "`native int4` ended with -4 at 48x64" in done.stderr
