"""The planner: what it places adds up, fits, and is explained."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen_agent_kit.catalog.released import find, released
from qwen_agent_kit.errors import PlanError, UsageError
from qwen_agent_kit.placement import Device, Inventory, Wishes, footprint, plan_model, plan_together
from qwen_agent_kit.placement.hardware import Speed
from qwen_agent_kit.placement.measured import Measured
from qwen_agent_kit.placement.planner import Model
from qwen_agent_kit.placement.sources import model_of_entry

GIB = 2**30


def model(name: str) -> Model:
    entry, release = find(name)
    return model_of_entry(entry, release)


def machine(*gpus: float, memory: float = 0.0, disk: float = 0.0) -> Inventory:
    devices = [Device(f"cuda:{i}", "cuda", int(g * GIB), int(g * GIB)) for i, g in enumerate(gpus)]
    if memory:
        devices.append(Device("cpu", "cpu", int(memory * GIB), int(memory * GIB)))
    return Inventory(tuple(devices), 8, disk=int(disk * GIB))


sizes = st.floats(0, 96, allow_nan=False)


@settings(max_examples=60, deadline=None)
@given(
    entry=st.sampled_from(released()),
    gpus=st.lists(sizes, max_size=4),
    memory=sizes,
    context=st.none() | st.integers(1, 300_000),
    quant=st.sampled_from(["auto", "fp32", "bf16", "int8", "int4"]),
    disk=st.booleans(),
)
def test_f60_what_is_placed_adds_up_and_fits(entry, gpus, memory, context, quant, disk):
    """Every byte is placed once, no device holds more than it has, every layer has one place; else it is explained."""
    here = machine(*gpus, memory=memory, disk=500 if disk else 0)
    if not here.devices:
        with pytest.raises(PlanError, match="0 devices"):
            plan_model(here, model_of_entry(entry), Wishes(context, quant, disk=disk))
        return
    plan = plan_model(here, model_of_entry(entry), Wishes(context, quant, disk=disk))
    if not plan.feasible:
        assert "short" in plan.reasons[0]
        assert not plan.placements
        with pytest.raises(PlanError, match="short"):
            plan.require()
        return
    free = {device.name: device.free for device in here.devices}
    for placed in plan.placements:
        assert placed.total <= free.get(placed.device, here.disk)
    assert sum(p.weights for p in plan.placements) == plan.weight_bytes
    assert sum(p.kv for p in plan.placements) == plan.kv_bytes
    assert sum(p.state for p in plan.placements) == plan.state_bytes
    assert sum(p.total for p in plan.placements) == plan.total_bytes
    layers = [i for p in plan.placements for i in range(*p.layers)]
    assert layers == list(range(entry_layers(entry)))
    assert plan.decode_full_tokens_per_second <= plan.decode_tokens_per_second * 1.001
    assert plan.prefill_tokens_per_second > 0


def entry_layers(entry) -> int:
    return entry.config.get("text_config", entry.config)["num_hidden_layers"]


@settings(max_examples=30, deadline=None)
@given(entry=st.sampled_from(released()), memory=st.integers(1, 2**38), more=st.integers(0, 2**36))
def test_more_memory_never_hurts(entry, memory, more):
    """What fits still fits with more memory, with at least as much context for the same scheme."""

    def planned(free: int):
        return plan_model(
            Inventory((Device("cpu", "cpu", free, free),), 4), model_of_entry(entry), Wishes(quant="int8")
        )

    small, large = planned(memory), planned(memory + more)
    if small.feasible:
        assert large.feasible
        assert large.context >= small.context


def test_f60_one_byte_and_a_model_larger_than_all():
    """One free byte and a model larger than every device together name the shortage."""
    for here in (Inventory((Device("cpu", "cpu", 1, 1),), 1), machine(24, 24, memory=32)):
        plan = plan_model(here, model("Qwen3-Coder-480B-A35B-Instruct"))
        assert not plan.feasible
        assert "GiB short" in plan.reasons[0]


def test_f60_a_device_lost_after_planning():
    """Planned anew without the card that went away, the model is refused or goes elsewhere; never half of it."""
    both = plan_model(machine(24, 24), model("Qwen3-32B"), Wishes(context=32768, quant="int8"))
    assert both.feasible
    assert [p.device for p in both.placements] == ["cuda:0", "cuda:1"]
    lost = plan_model(machine(24), model("Qwen3-32B"), Wishes(context=32768, quant="int8"))
    assert not lost.feasible
    assert any("int4" in change for change in lost.changes)


def test_seven_billion_in_int4_beside_another_on_two_cards():
    """A plan is a unit test: 7B in int4 and an audio model share two 24 GiB cards, which stay within their memory."""
    wishes = Wishes(context=32768, quant="int4")
    text, audio = plan_together(
        machine(24, 24), [(model("Qwen2.5-7B-Instruct"), wishes), (model("Qwen2-Audio-7B-Instruct"), Wishes())]
    )
    assert text.feasible
    assert audio.feasible
    assert not audio.evicts
    used: dict[str, int] = {}
    for placed in (*text.placements, *audio.placements):
        used[placed.device] = used.get(placed.device, 0) + placed.total - placed.overhead
    assert all(total <= 24 * GIB for total in used.values())


def test_what_does_not_fit_beside_evicts():
    """A model that fits alone but not beside the first says which one is closed for it."""
    first, second = plan_together(
        machine(memory=24), [(model("Qwen3-8B"), Wishes(quant="bf16", context=8192)), (model("Qwen3-14B"), Wishes())]
    )
    assert first.feasible
    assert second.feasible
    assert second.evicts == ("Qwen/Qwen3-8B",)
    assert any("closed" in reason for reason in second.reasons)


def test_layers_go_to_the_cpu_and_then_to_disk():
    """Layers that no card has room for go to memory, and to disk only where that was wished."""
    name = "Qwen3-32B"
    split = plan_model(machine(8, memory=64), model(name), Wishes(context=4096, quant="int8"))
    assert [p.kind for p in split.placements] == ["cuda", "cpu"]
    assert (
        split.decode_tokens_per_second
        < plan_model(machine(80), model(name), Wishes(context=4096, quant="int8")).decode_tokens_per_second
    )
    refused = plan_model(machine(memory=8, disk=200), model(name), Wishes(context=4096))
    assert not refused.feasible
    assert any("disk" in change for change in refused.changes)
    offloaded = plan_model(machine(memory=8, disk=200), model(name), Wishes(context=4096, disk=True))
    assert offloaded.feasible
    assert offloaded.placements[-1].kind == "disk"


@pytest.mark.parametrize("quant", ["auto", "bf16", "int4"])
def test_on_disk_the_smallest_scheme_is_proposed_first(quant):
    """Whichever scheme was asked for, as each byte there is read again for every token."""
    here, wishes = machine(memory=6, disk=100), Wishes(context=16384, quant=quant)
    plan = plan_model(here, model("Qwen3-8B"), wishes)
    assert not plan.feasible
    disk = [change for change in plan.changes if "disk" in change]
    assert [change.split("'")[1] for change in disk] == ["int4", "int8", "bf16"]


def test_larger_media_need_more():
    """Pixels and seconds cost activations, and only where the model sees or hears."""
    vision, text = model("Qwen2.5-VL-7B-Instruct"), model("Qwen3-8B")
    small, large = (
        plan_model(machine(80), vision, Wishes(max_pixels=pixels, context=4096)) for pixels in (10**5, 10**7)
    )
    assert small.activation_bytes < large.activation_bytes
    assert (large.max_pixels, large.audio_seconds) == (10**7, None)
    assert plan_model(machine(80), text, Wishes(max_pixels=10**7)).max_pixels is None


def test_recurrent_state_is_counted():
    """Qwen3-Next keeps keys and values in 12 of 48 layers, and a state of fixed size in the others."""
    parts = footprint(model("Qwen3-Next-80B-A3B-Instruct").shape, "bf16")
    kept = [parts.layer_kv(i) > 0 for i in range(48)]
    assert sum(kept) == 12
    assert all(bool(parts.layer_state(i)) != kept[i] for i in range(48))
    # 32 value heads of 128 x 128 in float32, and 4 columns of 8,192 channels.
    assert parts.layer_state(0) == 32 * 128 * 128 * 4 + 4 * 8192 * 2


@pytest.mark.parametrize(
    "wish",
    [{"quant": "int3"}, {"quant": "awq"}, {"context": 0}, {"max_pixels": -1}, {"audio_seconds": float("nan")}],
)
def test_wishes_that_cannot_be_meant(wish):
    """A usage error, before anything is computed."""
    with pytest.raises(UsageError, match=next(iter(wish))):
        plan_model(machine(24), model("Qwen3-8B"), Wishes(**wish))


def test_what_was_measured_goes_before_the_table():
    """Coefficients of this machine replace the built-in ones, and the plan says so."""
    device = Device("cpu", "cpu", 64 * GIB, 64 * GIB, bandwidth=20e9, measured=True)
    wishes = Wishes(quant="int8", context=1024)
    built_in = plan_model(Inventory((device,), 2), model("Qwen3-0.6B"), wishes)
    assert built_in.speed_basis == "not yet measured"
    known = Measured(20e9, 1e12, {"int8": Speed(1.0, 100.0, 0.0, 1.0)})
    plan = plan_model(Inventory((device,), 2, measured=known), model("Qwen3-0.6B"), wishes)
    assert plan.speed_basis == "measured here"
    parts = footprint(model("Qwen3-0.6B").shape, "int8")
    read = sum(parts.read) + parts.read_head + 128 * sum(parts.layer_kv(i) for i in range(28))
    assert plan.decode_tokens_per_second == pytest.approx(1 / (read / 20e9 + 28 * 100e-6), rel=1e-3)


def test_the_data_of_a_plan():
    """The documented fields, in JSON, with a version."""
    data = json.loads(json.dumps(plan_model(machine(24, memory=32), model("Qwen3-8B")).to_dict()))
    assert data["schema_version"] == 1
    assert set(data) >= {
        *("model", "scheme", "device", "context", "parameters", "feasible", "reasons", "changes", "placements"),
        *("weight_bytes", "kv_bytes", "kv_bytes_per_token", "state_bytes", "tower_bytes", "activation_bytes"),
        *("overhead_bytes", "total_bytes", "free_bytes", "load_peak_bytes", "download_bytes", "engine", "evicts"),
        *("decode_tokens_per_second", "decode_full_tokens_per_second", "prefill_tokens_per_second", "speed_basis"),
    }
    assert set(data["placements"][0]) == {
        *("device", "kind", "layers", "weights", "kv", "state", "activations", "overhead", "free", "total"),
    }
