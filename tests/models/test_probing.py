"""Opening a model: the kernels that its matrices could take are checked and timed in children, once a machine."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from qwen_agent_kit.models import load_model, probing
from qwen_agent_kit.models.kernels import KERNELS, Choices, read_choices, write_choices
from qwen_agent_kit.models.probing import Found, choices_for
from qwen_agent_kit.testing.models import tiny_model_dir

BY_NAME = {kernel.name: kernel for kernel in KERNELS}
NAMES = ("aten int8pack", "dequantise int8")
LARGE = [("int8 rows", (4096, 4096))]


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, list[probing.Shape]]]:
    """Children are counted, what they say is made up: unpacking is quicker from 4 rows on."""
    asked: list[tuple[str, list[probing.Shape]]] = []

    def measured(kernel: Any, shapes: list[probing.Shape], *_: Any, **__: Any) -> Found:
        asked.append((kernel.name, shapes))
        us = {1: 1.0, 4: 9.0} if kernel.name == NAMES[0] else {1: 2.0, 4: 2.0}
        return Found(us=dict.fromkeys(shapes, us), unsteady=1.1)

    monkeypatch.setattr(probing, "measured", measured)
    monkeypatch.setattr("os.getloadavg", lambda: (0.0, 0.0, 0.0))
    return asked


def test_an_opening_times_its_shapes_and_the_next_does_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In real children: what is kept names the model's shapes, its layers follow it, and nothing is asked again."""
    monkeypatch.setenv("QAK_NATIVE", "0")
    monkeypatch.setattr(probing, "WORTH", 0)
    monkeypatch.setattr(probing, "STEADY", math.inf)
    monkeypatch.setattr("os.getloadavg", lambda: (0.0, 0.0, 0.0))
    folder = tiny_model_dir(tmp_path, "qwen2")
    layer = load_model(folder, quant="int8").model.layers[0].qkv
    kept = read_choices()
    named = kept.ranges[Choices.key(layer.layout, *layer.shape)]
    assert {name for _, name in named} <= set(NAMES)
    assert layer.ranges == tuple((math.inf if most is None else most, BY_NAME[name].multiply) for most, name in named)
    monkeypatch.setattr(probing, "measured", lambda *_, **__: pytest.fail("timed again"))
    load_model(folder, quant="int8")
    assert read_choices() == kept


def test_what_was_timed_is_chosen_by_rows(counted: list[Any]) -> None:
    """Each number of rows takes its quickest; equal shapes are timed once, and heads of any height count as one."""
    choices = choices_for([*LARGE * 30, ("int8 rows", (151_936, 4096)), ("int8 rows", (49_152, 4096))])
    assert counted == [(name, [(4096, 4096), (2**15, 4096)]) for name in NAMES]
    for n in (4096, 2**15, 151_936):
        assert [most for most, _ in choices.of("int8 rows", n, 4096)] == [1, math.inf]
        assert choices.of("int8 rows", n, 4096)[1][1] is BY_NAME[NAMES[1]].multiply
    assert read_choices() == choices


@pytest.mark.parametrize("layout", ["bf16", "fp32", "int4 groups", "int8 tiles"])
def test_where_there_is_one_kernel_nothing_is_timed(counted: list[Any], layout: str) -> None:
    """There is nothing to choose."""
    assert choices_for([(layout, (4096, 4096))]) == Choices()
    assert counted == []


def test_small_models_and_busy_machines_wait_for_nothing(counted: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor does one who said so: what is usual is taken, and another opening may find out."""
    assert choices_for([("int8 rows", (64, 64))]) == Choices()
    with monkeypatch.context() as patch:
        patch.setenv("QAK_PROBE", "0")
        assert choices_for(LARGE) == Choices()
    with monkeypatch.context() as patch:
        patch.setattr("os.getloadavg", lambda: (1000.0, 0.0, 0.0))
        assert choices_for(LARGE) == Choices()
    assert counted == []
    assert choices_for(LARGE).ranges


def test_times_that_disagree_are_not_kept(counted: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of a kernel's time gave twice what the other half did: something else ran beside it."""
    found = Found(us={(4096, 4096): {1: 1.0}}, unsteady=2.0)
    monkeypatch.setattr(probing, "measured", lambda *_, **__: found)
    assert choices_for(LARGE) == read_choices() == Choices()


def test_a_kernel_that_ends_its_child_is_not_tried_again(counted: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """It is kept as refused, beside what was refused before; the other one serves any number of rows."""
    write_choices(Choices(refused={"zentorch int8": "is off by 0.5"}))
    right = probing.measured

    def measured(kernel: Any, shapes: list[probing.Shape], *_: Any, **__: Any) -> Found:
        return Found(problem="ended with -4 at 4096x4096") if kernel.name == NAMES[0] else right(kernel, shapes)

    monkeypatch.setattr(probing, "measured", measured)
    choices = choices_for(LARGE)
    assert choices.of("int8 rows", 4096, 4096) == ((math.inf, BY_NAME[NAMES[1]].multiply),)
    assert read_choices() == choices
    assert set(choices.refused) == {"zentorch int8", NAMES[0]}
    assert choices_for([("int8 rows", (8192, 4096))]) == choices


def test_a_choice_that_cannot_be_kept_is_used(counted: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache that is full or read-only costs the time at each opening, and nothing else."""

    def full(_: Choices) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(probing, "write_choices", full)
    assert choices_for(LARGE).ranges
    assert read_choices() == Choices()
