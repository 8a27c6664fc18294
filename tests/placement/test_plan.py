"""Plans: arithmetic over a header, no weights read."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen_agent_kit import plan
from qwen_agent_kit.errors import ModelError, PlanError, UsageError
from qwen_agent_kit.placement import SCHEMES, Device, inventory, make_plan, read_shape

CONFIG = {
    "model_type": "qwen2",
    "hidden_size": 896,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "intermediate_size": 4864,
    "vocab_size": 151936,
    "max_position_embeddings": 32768,
    "tie_word_embeddings": True,
}


def folder(tmp_path: Path, **changes: object) -> Path:
    tmp_path.joinpath("config.json").write_text(json.dumps({**CONFIG, **changes}))
    return tmp_path


def test_parameters_are_exact(tmp_path: Path, smollm2_gguf: Path) -> None:
    """Qwen2.5-0.5B has 494,032,768 parameters (its model card) and SmolLM2-135M 134,515,008 (its card)."""
    assert read_shape(folder(tmp_path)).parameters == 494_032_768
    assert read_shape(smollm2_gguf).parameters == 134_515_008


def test_kv_per_token_is_exact(tmp_path: Path) -> None:
    """Qwen2.5-0.5B keeps 12 KiB per token in bf16."""
    assert read_shape(folder(tmp_path)).kv_bytes(2) == 12 * 1024


@settings(deadline=None)
@given(
    free=st.integers(0, 2**34), scheme=st.sampled_from(["auto", *SCHEMES]), context=st.none() | st.integers(1, 10**6)
)
def test_a_feasible_plan_fits(
    free: int, scheme: str, context: int | None, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """A plan is feasible exactly where its parts fit the device; otherwise it names the shortage."""
    path = folder(tmp_path_factory.mktemp("m"))
    made = make_plan("m", path, context=context, quant=scheme, devices=[Device("cpu", "cpu", free, free)])
    if made.feasible:
        assert made.total_bytes <= free
        assert made.require() is made
    else:
        assert made.total_bytes > free
        assert "short" in made.reasons[0]
        with pytest.raises(PlanError, match="short"):
            made.require()


def test_f60_no_device_or_no_memory_is_a_plan_error(tmp_path: Path) -> None:
    """No devices and one free byte are both explained."""
    with pytest.raises(PlanError, match="0 devices"):
        make_plan("m", folder(tmp_path), devices=[])
    with pytest.raises(PlanError, match="short"):
        make_plan("m", folder(tmp_path), devices=[Device("cpu", "cpu", 1, 1)]).require()


@pytest.mark.parametrize(
    ("devices", "says"),
    [
        ("bogus", r"`devices` is 'bogus'; allowed: a list of Device"),
        (7, "`devices` is 7; allowed: a list of Device"),
        (["cuda:0"], "`devices` holds 'cuda:0'; allowed: Device"),
        ([Device("tpu:0", "tpu", 1, 1)], "of kind 'tpu'; allowed: cpu, cuda"),
        ([Device("cpu", "cpu", -1, 1)], "`cpu` has -1 bytes"),
        ([Device("cpu", "cpu", 1.5, 1)], "`cpu` has 1.5 bytes"),  # type: ignore[arg-type]  # the point of the test
        ([Device("cpu", "cpu", 1, 1)] * 2, "'cpu' twice"),
    ],
)
def test_devices_that_are_none(tmp_path: Path, devices: Any, says: str) -> None:
    """What is given as devices is checked by both ways to plan, and the hint shows how one is written."""
    for make in (lambda: make_plan("m", folder(tmp_path), devices=devices), lambda: plan(tmp_path, devices=devices)):
        with pytest.raises(UsageError, match=says) as caught:
            make()
        assert "Device(" in str(caught.value.hint)


@pytest.mark.parametrize("field", ["hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size"])
@pytest.mark.parametrize("value", [-1, 0, 2**40, "x", None, 1.5, True])
def test_f14_a_broken_config_is_refused_by_field(tmp_path: Path, field: str, value: object) -> None:
    """A config.json with a wrong value is refused, and the field is named."""
    with pytest.raises(ModelError, match=field):
        read_shape(folder(tmp_path, **{field: value}))


def test_wishes_are_checked(tmp_path: Path) -> None:
    """An unknown scheme and a context that is no positive number are usage errors."""
    for wish in ({"quant": "int3"}, {"context": 0}, {"context": True}):
        with pytest.raises(UsageError):
            make_plan("m", folder(tmp_path), **wish)  # type: ignore[arg-type]  # the point of the test


def test_inventory_reads_the_group_limit(tmp_path: Path) -> None:
    """The free memory is the least of MemAvailable and what the control group leaves."""
    tmp_path.joinpath("meminfo").write_text("MemTotal: 1000 kB\nMemFree: 10 kB\nMemAvailable: 800 kB\n")
    group = tmp_path / "cg"
    group.mkdir()
    assert inventory(tmp_path, group).devices[0].free == 800 * 1024
    group.joinpath("memory.max").write_text("512000\n")
    group.joinpath("memory.current").write_text("112000\n")
    assert inventory(tmp_path, group).devices[0].free == 400_000
    group.joinpath("memory.max").write_text("max\n")
    assert inventory(tmp_path, group).devices[0].free == 800 * 1024


def test_planning_loads_no_torch(smollm2_gguf: Path) -> None:
    """``plan`` needs the header only."""
    code = f"import sys, qwen_agent_kit as q; print(q.plan({str(smollm2_gguf)!r}).scheme, 'torch' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert out[1] == "False"


def test_the_public_plan_takes_a_path(smollm2_gguf: Path) -> None:
    """``plan(path)`` works and prints the shares."""
    text = str(plan(smollm2_gguf, context=1024))
    assert "context 1,024" in text
    assert "23,040 bytes a token" in text


@pytest.mark.parametrize("arch", ["qwen3next", "qwen35", "qwen35moe"])
def test_hybrid_gguf_headers_are_refused(tmp_path: Path, arch: str) -> None:
    """A header with recurrent layers is not read as if all its layers were attention; the hint says what is."""
    path = tmp_path / "hybrid.gguf"
    writer = gguf.GGUFWriter(path, arch)
    for key, value in {"block_count": 4, "embedding_length": 64, "ssm.conv_kernel": 4, "ssm.inner_size": 64}.items():
        writer.add_uint32(f"{arch}.{key}", value)
    writer.add_tensor("blk.0.ssm_conv1d.weight", np.zeros((64, 4), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    for read in (lambda: read_shape(path), lambda: plan(path)):
        with pytest.raises(ModelError, match=f"'{arch}': a hybrid model") as caught:
            read()
        assert "config.json" in str(caught.value.hint)
