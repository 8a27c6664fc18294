"""What a machine has: limits of every group above the process, and what was measured on it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from qwen_agent_kit.catalog.released import find
from qwen_agent_kit.errors import UsageError
from qwen_agent_kit.placement import Device, inventory, make_plan, plan_model
from qwen_agent_kit.placement.devices import Inventory
from qwen_agent_kit.placement.hardware import SPEEDS, Speed, cpu_figures, gpu_figures
from qwen_agent_kit.placement.measured import Measured, measure_bandwidth, read_measured, write_measured
from qwen_agent_kit.placement.sources import model_of_entry, model_of_header

MEMORY = "MemTotal: 1000 kB\nMemFree: 10 kB\nMemAvailable: 800 kB\n"


def machine(tmp_path: Path, groups: str, **files: str) -> Path:
    """/proc with 800 KiB available, and control groups with these files; `__` in a name is a slash."""
    tmp_path.joinpath("meminfo").write_text(MEMORY)
    tmp_path.joinpath("self").mkdir()
    tmp_path.joinpath("self", "cgroup").write_text(groups)
    for name, text in files.items():
        file = tmp_path / "cg" / name.replace("__", "/").replace("_dot_", ".")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return tmp_path / "cg"


def test_the_tightest_group_above_the_process_binds(tmp_path: Path) -> None:
    """Version 2: the process's own group has no limit, its parent's leaves 300,000 bytes."""
    files = {"a__b__memory_dot_max": "max", "a__memory_dot_max": "500000", "a__memory_dot_current": "200000"}
    assert inventory(tmp_path, machine(tmp_path, "0::/a/b\n", **files)).devices[-1].free == 300_000


def test_what_a_group_can_give_back_is_free(tmp_path: Path) -> None:
    """Version 1: files in the group's cache are given back when memory is asked for."""
    files = {
        "memory__x__memory_dot_limit_in_bytes": "500000",
        "memory__x__memory_dot_usage_in_bytes": "400000",
        "memory__x__memory_dot_stat": "cache 9\ntotal_inactive_file 150000\n",
    }
    assert inventory(tmp_path, machine(tmp_path, "4:memory:/x\n", **files)).devices[-1].free == 250_000


def test_unreadable_groups_bind_nothing(tmp_path: Path) -> None:
    """Garbage in a limit is no limit."""
    files = {"a__memory_dot_max": "lots", "memory_dot_max": "max"}
    assert inventory(tmp_path, machine(tmp_path, "0::/a\n", **files)).devices[-1].free == 800 * 1024


def test_measurements_are_kept_and_completed(private_home: Path) -> None:
    """What is measured later is put beside what is known; a file that cannot be read is no measurement."""
    assert read_measured() is None
    write_measured(Measured(bandwidth=10e9, speeds={"int8": Speed(0.5, 1.0, 2.0, 0.7)}))
    write_measured(Measured(compute=1e12, speeds={"bf16": Speed(0.4, 3.0, 0.0, 1.0)}))
    known = read_measured()
    assert known is not None
    assert (known.bandwidth, known.compute, sorted(known.speeds)) == (10e9, 1e12, ["bf16", "int8"])
    assert inventory().devices[-1].measured
    (private_home / "cache" / "placement" / "machine.json").write_text('{"version": 1, "speeds": [1]}')
    assert read_measured() is None


def test_bandwidth_is_a_speed() -> None:
    """A small measurement gives bytes a second that memory can have."""
    assert 1e8 < measure_bandwidth(1, size=2**22, rounds=1) < 1e13


def test_cards_are_known_by_name_else_by_size() -> None:
    """The longest name that fits decides; unknown ones get figures of their size."""
    assert gpu_figures("NVIDIA L40S", 48 * 2**30) != gpu_figures("NVIDIA L4", 24 * 2**30)
    assert gpu_figures("NVIDIA GeForce RTX 4090", 24 * 2**30)[0] == 1008e9
    assert gpu_figures("Unheard-of", 24 * 2**30)[0] > gpu_figures("Unheard-of", 8 * 2**30)[0]
    assert cpu_figures(2, ("avx512_bf16",))[1] > cpu_figures(2, ())[1]
    assert all(0 < row.stream <= 1 and 0 < row.compute <= 1 for row in SPEEDS.values())


def test_a_plan_is_held_against_what_was_measured() -> None:
    """Each figure becomes a reason that says how far off it was; a newer one replaces it."""
    device = Device("cpu", "cpu", 2**36, 2**36)
    plan = plan_model(Inventory((device,), 2), model_of_entry(find("qwen3-0.6b")[0]))
    once = plan.compare(weight_bytes=plan.weight_bytes, decode_tokens_per_second=plan.decode_tokens_per_second * 2)
    assert any("decode tokens per second" in reason and "off by 50%" in reason for reason in once.reasons)
    assert any("weight bytes" in reason and "off by 0%" in reason for reason in once.reasons)
    again = once.compare(decode_tokens_per_second=plan.decode_tokens_per_second)
    assert len(again.reasons) == len(once.reasons) == len(plan.reasons) + 2
    assert not any("off by 50%" in reason for reason in again.reasons)


@dataclass(frozen=True)
class Header:
    """What reading a model's headers gives."""

    config: dict[str, Any]
    files: dict[str, int] = field(default_factory=dict)
    gguf: Any = None


def test_a_header_is_enough() -> None:
    """A model that the catalogue lacks is planned from its configuration, with what would be fetched."""
    entry = find("Qwen2.5-0.5B-Instruct")[0]
    model = model_of_header("someone/tuned", Header(dict(entry.config), {"model.safetensors": 988097824}))
    assert (model.shape.parameters, model.download, model.runs) == (494_032_768, 988097824, True)


def test_an_entry_without_sizes_is_a_usage_error() -> None:
    """A plugin's entry that states no configuration, and whose files are not here, cannot be planned."""
    from qwen_agent_kit.catalog import ModelEntry

    with pytest.raises(UsageError, match="states no sizes"):
        model_of_entry(ModelEntry(name="x", family="qwen2"))


def test_real_weights_are_planned_from_their_header(smollm2_gguf: Path) -> None:
    """A GGUF file's header gives the sizes that the catalogue states for the same model."""
    plan = make_plan("m", smollm2_gguf, devices=[Device("cpu", "cpu", 2**36, 2**36)])
    assert plan.parameters == find("smollm2-135m-instruct")[0].parameters
