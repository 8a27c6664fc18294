"""How fast a placed model draws and reads: bytes over bandwidth, plus what each layer and each position costs besides.

Drawing one position reads every weight that it goes through once, and the keys and values before it. Reading a prompt
computes two operations per weight and position. ``hardware.SPEEDS`` says how much of a device's figures our kernels
reach; what was measured on this machine goes before it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from qwen_agent_kit.placement.devices import Device, Inventory
from qwen_agent_kit.placement.footprint import Footprint
from qwen_agent_kit.placement.hardware import FALLBACK, SPEEDS, Speed, cpu_figures, gpu_figures
from qwen_agent_kit.placement.layout import native

__all__ = ["Share", "decode_seconds", "figures", "prefill_rate", "speed_of"]


@dataclass(frozen=True, slots=True)
class Share:
    """The layers that a device holds, and whether it has the head."""

    device: Device
    layers: Sequence[int]
    head: bool


def figures(device: Device, inventory: Inventory) -> tuple[float, float]:
    """(bytes a second, operations a second) of a device, built-in ones where it says none."""
    bandwidth, compute = device.bandwidth, device.compute
    if device.kind == "disk":
        return bandwidth or 1e9, compute or 1.0
    known = gpu_figures(device.label or device.name, device.total) if device.kind == "cuda" else None
    known = known or cpu_figures(inventory.threads, inventory.isa)
    measured = inventory.measured
    if device.kind == "cpu" and measured is not None and measured.compute:
        compute = measured.compute
    return bandwidth or known[0], compute or known[1]


def speed_of(kind: str, scheme: str, inventory: Inventory) -> tuple[Speed, bool]:
    """(the row, whether it was measured here) for a device kind and scheme."""
    if kind == "cpu" and inventory.measured is not None and scheme in inventory.measured.speeds:
        return inventory.measured.speeds[scheme], True
    own = SPEEDS.get(("native", scheme)) if kind == "cpu" and native() else None
    row = own or SPEEDS.get((kind, scheme)) or SPEEDS.get((kind, "bf16"))
    return row or FALLBACK, False


def decode_seconds(model: Footprint, shares: Sequence[Share], inventory: Inventory, history: int) -> float:
    """Seconds for one position after ``history`` others."""
    seconds, host = 0.0, _host(inventory)
    for share in shares:
        device = share.device
        # What lies on disk is read into memory and multiplied there.
        worker = host if device.kind == "disk" else device
        row, _ = speed_of(worker.kind, model.scheme, inventory)
        bandwidth = figures(worker, inventory)[0]
        read = sum(model.read[i] for i in share.layers) + (model.read_head if share.head else 0)
        kept = sum(model.layer_kv(i) * history + 2 * model.layer_state(i) for i in share.layers)
        seconds += (
            read / (bandwidth * row.stream) + kept / (bandwidth * row.stream) + len(share.layers) * row.layer_us / 1e6
        )
        seconds += row.token_us / 1e6 if share.head else 0.0
        if device.kind == "disk":
            seconds += read / figures(device, inventory)[0]
    return seconds


def prefill_rate(model: Footprint, shares: Sequence[Share], inventory: Inventory) -> float:
    """Positions a second while a prompt is read, in chunks of the engine's size."""
    from qwen_agent_kit.placement.footprint import CHUNK

    seconds, host, shape = 0.0, _host(inventory), model.shape
    for share in shares:
        worker = host if share.device.kind == "disk" else share.device
        row, _ = speed_of(worker.kind, model.scheme, inventory)
        bandwidth, compute = figures(worker, inventory)
        weights = sum(m.parameters * m.share for i in share.layers for m in shape.matrices(i))
        seconds += 2 * weights * CHUNK / (compute * row.compute) + len(share.layers) * row.layer_us / 1e6
        if share.head:
            seconds += model.read_head / (bandwidth * row.stream) + row.token_us / 1e6
        if share.device.kind == "disk":
            seconds += sum(model.layers[i] for i in share.layers) / figures(share.device, inventory)[0]
    return CHUNK / seconds if seconds else 0.0


def _host(inventory: Inventory) -> Device:
    cpu = next((device for device in inventory.devices if device.kind == "cpu"), None)
    return cpu or Device("cpu", "cpu", 0, 0)
