"""What fits, before anything is loaded.

``plan`` is arithmetic over an inventory, a shape and wishes; it imports no torch and reads no weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from qwen_agent_kit.errors import PlanError, UsageError
from qwen_agent_kit.placement.devices import Device, Inventory, inventory
from qwen_agent_kit.placement.shape import Shape, read_shape

__all__ = ["Plan", "SCHEMES", "make_plan", "weight_bytes"]

SCHEMES: dict[str, int] = {"fp32": 4, "bf16": 2, "int8": 2, "int4": 2}
"""Scheme to the bytes of one activation and KV value under it."""

OVERHEAD = 400 * 2**20
"""Interpreter, torch and buffers, measured on Linux x86-64 with torch 2.13 CPU."""

CHUNK = 512


def weight_bytes(shape: Shape, scheme: str) -> int:
    """The bytes of the packed weights: embedding dense, linear layers and head by scheme, norms and biases float32."""
    value = SCHEMES[scheme]
    linear = shape.linear_parameters + (0 if shape.tied and scheme in ("fp32", "bf16") else shape.embedding_parameters)
    if scheme == "int8":
        # One float32 scale per output row; rows are the smaller side's partner, so K is about the hidden size.
        packed = linear + 4 * linear // max(1, shape.hidden)
    elif scheme == "int4":
        # Half a byte a weight; a bfloat16 scale and zero per 64.
        packed = linear // 2 + 4 * linear // 64
    else:
        packed = linear * value
    return packed + shape.embedding_parameters * value + 4 * shape.small_parameters


@dataclass(frozen=True)
class Plan:
    """How a model will be placed, and why.

    Sizes are bytes. ``feasible`` is False where it does not fit; ``reasons`` then begin with the shortage and
    ``changes`` list the nearest plans that fit.
    """

    model: str
    scheme: str
    device: str
    context: int
    parameters: int
    weight_bytes: int
    kv_bytes_per_token: int
    kv_bytes: int
    activation_bytes: int
    overhead_bytes: int
    free_bytes: int
    threads: int
    feasible: bool
    reasons: tuple[str, ...]
    changes: tuple[str, ...] = ()

    @property
    def total_bytes(self) -> int:
        """All of it together."""
        return self.weight_bytes + self.kv_bytes + self.activation_bytes + self.overhead_bytes

    def require(self) -> Plan:
        """Insist: the same plan back.

        Raises:
            PlanError: Where it is not feasible; the message names the shortage.
        """
        if not self.feasible:
            raise PlanError(self.reasons[0], hint=self.changes[0] if self.changes else "use a smaller model")
        return self

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "total_bytes": self.total_bytes, "schema_version": 1}

    def __str__(self) -> str:
        rows = [
            f"{self.model} on {self.device}, {self.scheme}, context {self.context:,}",
            f"  weights      {_mib(self.weight_bytes)}",
            f"  KV           {_mib(self.kv_bytes)}  ({self.kv_bytes_per_token:,} bytes a token)",
            f"  activations  {_mib(self.activation_bytes)}",
            f"  overhead     {_mib(self.overhead_bytes)}",
            f"  together     {_mib(self.total_bytes)} of {_mib(self.free_bytes)} free",
            *(f"  - {reason}" for reason in self.reasons),
            *(f"  try: {change}" for change in self.changes),
        ]
        return "\n".join(rows)


def make_plan(
    name: str,
    path: Path,
    *,
    context: int | None = None,
    quant: str = "auto",
    devices: Sequence[Device] | None = None,
) -> Plan:
    """Plan the model at ``path`` for this machine, or for the ``devices`` given.

    Raises:
        UsageError: For an unknown scheme or a context that is not positive.
        PlanError: Where there is no device at all.
        ModelError: Where the model's sizes cannot be read.
    """
    if quant != "auto" and quant not in SCHEMES:
        raise UsageError(f"`quant` is {quant!r}; allowed: auto, {', '.join(SCHEMES)}")
    if context is not None and (isinstance(context, bool) or not isinstance(context, int) or context < 1):
        raise UsageError(f"`context` is {context!r}; allowed: a whole number from 1")
    here = inventory()
    if devices is not None:
        here = Inventory(tuple(devices), here.threads)
    if not here.devices:
        raise PlanError("there is no device to place the model on; found 0 devices", hint="leave `devices` out")
    shape = read_shape(path)
    device = max(here.devices, key=lambda d: d.free)
    tries = [quant] if quant != "auto" else ["bf16", "int8", "int4"]
    plans = [_one(name, shape, scheme, context, device, here.threads, quant) for scheme in tries]
    chosen = next((p for p in plans if p.feasible), plans[-1])
    return chosen if chosen.feasible else _with_changes(chosen, shape)


def _one(name: str, shape: Shape, scheme: str, context: int | None, device: Device, threads: int, asked: str) -> Plan:
    weights = weight_bytes(shape, scheme)
    per_token = shape.kv_bytes(SCHEMES[scheme])
    activations = (
        CHUNK * (6 * shape.hidden + 3 * max(shape.intermediate, shape.expert_intermediate)) * 4 + 8 * shape.vocab
    )
    room = device.free - weights - activations - OVERHEAD
    wanted = context or shape.context
    fitting = max(0, room // per_token)
    length = wanted if context else min(wanted, fitting)
    feasible = length >= 1 and length <= fitting
    reasons = [f"{scheme}: asked for" if asked != "auto" else f"{scheme}: the first of bf16, int8, int4 that fits"]
    if context and context > shape.context:
        reasons.append(f"context {context:,} is past the {shape.context:,} that the model was trained for")
    elif length < wanted:
        reasons.append(f"context cut from {wanted:,} to what fits")
    length = length if feasible else wanted
    plan = Plan(
        model=name,
        scheme=scheme,
        device=device.name,
        context=length,
        parameters=shape.parameters,
        weight_bytes=weights,
        kv_bytes_per_token=per_token,
        kv_bytes=per_token * length,
        activation_bytes=activations,
        overhead_bytes=OVERHEAD,
        free_bytes=device.free,
        threads=threads,
        feasible=feasible,
        reasons=tuple(reasons),
    )
    if feasible:
        return plan
    short = plan.total_bytes - device.free
    needs, has = _mib(plan.total_bytes), _mib(device.free)
    text = f"`{name}` in {scheme} needs {needs} and `{device.name}` has {has} free: {_mib(short)} short"
    return Plan(**{**asdict(plan), "reasons": (text, *reasons)})


def _with_changes(plan: Plan, shape: Shape) -> Plan:
    changes = []
    for scheme in SCHEMES:
        room = plan.free_bytes - weight_bytes(shape, scheme) - plan.activation_bytes - plan.overhead_bytes
        length = room // shape.kv_bytes(SCHEMES[scheme])
        if length >= 256:
            changes.append(f"quant={scheme!r} with context={min(length, shape.context)}")
    return Plan(**{**asdict(plan), "changes": tuple(changes)})


def _mib(count: int) -> str:
    return f"{count / 2**30:.2f} GiB" if abs(count) >= 2**30 else f"{count / 2**20:.1f} MiB"
