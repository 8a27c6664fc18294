"""The planner: ``(inventory, model, wishes) -> Plan``, a pure function.

Layers are placed in order, first on the accelerators with the most room, then on the CPU, then, where that was wished,
on disk; each takes its keys, values and state with it. What a device must keep free for activations and fixed costs is
taken off its room first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from qwen_agent_kit.errors import PlanError, UsageError
from qwen_agent_kit.placement.devices import Device, Inventory
from qwen_agent_kit.placement.footprint import OVERHEAD, PIXELS, SECONDS, Footprint, footprint
from qwen_agent_kit.placement.layout import LAYOUTS
from qwen_agent_kit.placement.plan import Placement, Plan, Wishes, mib
from qwen_agent_kit.placement.shape import STATES, Shape
from qwen_agent_kit.placement.speed import Share, decode_seconds, prefill_rate, speed_of

__all__ = ["AUTO", "Model", "RUNS_ON", "check_wishes", "place", "plan_model", "plan_together"]

RUNS_ON = frozenset({"cpu"})
"""Kinds of devices that the kit's engine runs on today; plans for this machine use no others."""

AUTO = ("bf16", "int8", "int4")
"""What ``auto`` tries, the most exact first."""

COMFORT = 4096
"""``auto`` takes a coarser scheme where a finer one leaves fewer positions than this, or than the model has."""

LEAST = 256
"""Changes with less context than this are not proposed."""

HISTORY = 128
"""Positions before the one whose speed is predicted as "early"."""

NO_WISHES = Wishes()


@dataclass(frozen=True, slots=True)
class Model:
    """What is planned.

    Args:
        name: As the user knows it.
        shape: Its sizes.
        runs: Whether the kit's engine runs this architecture.
        download: Bytes to fetch, None where it is here.
        extended: Positions that it reaches with rope scaling, 0 where it cannot.
        files: The scheme of its files, "" where they are not quantised.
        through: Another library whose modules run it in the kit's engine, "" for the engine's own.
        towers: Bytes that whoever drives its media states for the towers and their work; counted from ``shape`` where
            None.
        adapters: Numbers in the LoRA adapters that it may be used with.
    """

    name: str
    shape: Shape
    runs: bool = True
    download: int | None = None
    extended: int = 0
    files: str = ""
    through: str = ""
    towers: Callable[[Wishes], int] | None = None
    adapters: int = 0

    @property
    def schemes(self) -> tuple[str, ...]:
        """What ``auto`` tries."""
        return AUTO[:1] if self.through else AUTO

    def runs_in(self, scheme: str) -> bool:
        """Whether the kit's engine runs it so."""
        return self.runs and (not self.through or scheme in ("fp32", "bf16"))


def plan_model(inventory: Inventory, model: Model, wishes: Wishes = NO_WISHES) -> Plan:
    """Plan one model for the devices of ``inventory``.

    Raises:
        UsageError: For a wish that cannot be meant.
        PlanError: Where there is no device at all.
    """
    check_wishes(wishes)
    devices = [device for device in inventory.devices if device.kind != "disk"]
    if not devices:
        raise PlanError("there is no device to place the model on; found 0 devices", hint="leave `devices` out")
    tries = list(_tries(inventory, model, wishes))
    chosen = _choose(tries, model, wishes)
    if chosen is not None:
        return _plan(inventory, model, wishes, chosen)
    failed = _plan(inventory, model, wishes, _shortest(tries))
    return replace(failed, changes=_changes(inventory, model, wishes))


def plan_together(inventory: Inventory, models: Sequence[tuple[Model, Wishes]]) -> tuple[Plan, ...]:
    """Plan several models, in order; one that does not fit beside the earlier ones is planned alone, ``evicts`` them.

    Raises:
        UsageError: For a wish that cannot be meant.
        PlanError: Where there is no device at all.
    """
    left, plans = inventory, list[Plan]()
    for model, wishes in models:
        plan = plan_model(left, model, wishes)
        resident = tuple(earlier.model for earlier in plans if earlier.feasible and not earlier.evicts)
        if not plan.feasible and resident:
            alone = plan_model(inventory, model, wishes)
            if alone.feasible:
                why = f"does not fit beside {', '.join(resident)}: closed when it is opened, and opened again after"
                plan = replace(alone, evicts=resident, reasons=(*alone.reasons, why))
        plans.append(plan)
        if plan.feasible and not plan.evicts:
            left = _without(left, plan)
    return tuple(plans)


def check_wishes(wishes: Wishes) -> None:
    """Refuse what cannot be meant.

    Raises:
        UsageError: Names the wish.
    """
    if wishes.quant != "auto" and (wishes.quant not in LAYOUTS or not LAYOUTS[wishes.quant].ours):
        ours = ", ".join(name for name, layout in LAYOUTS.items() if layout.ours)
        raise UsageError(f"`quant` is {wishes.quant!r}; allowed: auto, {ours}")
    for name in ("context", "max_pixels"):
        value = getattr(wishes, name)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise UsageError(f"`{name}` is {value!r}; allowed: a whole number from 1")
    if wishes.audio_seconds is not None and not 0 < wishes.audio_seconds <= 86400:
        raise UsageError(f"`audio_seconds` is {wishes.audio_seconds!r}; allowed: more than 0, at most 86400")


# --- what could be ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Try:
    """A scheme on some devices: the longest context that fits, 0 where none does, and the placements for it."""

    fp: Footprint
    devices: tuple[Device, ...]
    level: int
    wanted: int
    context: int
    placements: tuple[Placement, ...]


def _tries(inventory: Inventory, model: Model, wishes: Wishes) -> Iterator[_Try]:
    schemes = model.schemes if wishes.quant == "auto" else (wishes.quant,)
    wanted = wishes.context or model.shape.context
    for scheme in schemes:
        fp = footprint(model.shape, scheme)
        fp = replace(fp, adapters=model.adapters * fp.value)
        if model.towers is not None:
            fp = replace(fp, towers=model.towers(wishes), stated=True)
        for level, devices in _levels(inventory, wishes):
            yield _attempt(fp, devices, level, wanted, wishes)


def _levels(inventory: Inventory, wishes: Wishes) -> Iterator[tuple[int, tuple[Device, ...]]]:
    """Sets of devices to try: one accelerator, all of them, the CPU besides, the disk besides."""
    fast = sorted((d for d in inventory.devices if d.kind in ("cuda", "mps")), key=lambda d: -d.free)
    slow = sorted((d for d in inventory.devices if d.kind == "cpu"), key=lambda d: -d.free)[:1]
    if fast:
        yield 0, (fast[0],)
        if len(fast) > 1:
            yield 1, tuple(fast)
    if slow and all(device.kind != "mps" for device in fast):  # Apple's GPU takes the same bytes as its CPU
        yield 2, (*fast, *slow)
    if wishes.disk and inventory.disk:
        yield 3, (*fast, *slow, Device("disk", "disk", inventory.disk, inventory.disk))


def _attempt(fp: Footprint, devices: tuple[Device, ...], level: int, wanted: int, wishes: Wishes) -> _Try:
    placed = place(fp, devices, wanted, wishes)
    if placed is not None or wishes.context is not None:
        return _Try(fp, devices, level, wanted, wanted if placed else 0, placed or ())
    best: tuple[Placement, ...] = ()
    low, high = 0, wanted  # the longest context that fits, by halving
    while high - low > 1:
        middle = (low + high) // 2
        found = place(fp, devices, middle, wishes)
        low, high, best = (middle, high, found) if found else (low, middle, best)
    return _Try(fp, devices, level, wanted, low, best)


def place(
    fp: Footprint, devices: Sequence[Device], context: int, wishes: Wishes = NO_WISHES
) -> tuple[Placement, ...] | None:
    """Put the layers on the devices in order; None where they do not fit.

    The embedding and the encoders go with the first layer, the head with the last. A device that holds nothing is not
    in the result. What layers on disk remember, and room for the largest of them, is kept on the device before.
    """
    layers = fp.shape.layers
    remembered = [(fp.layer_kv(i) * context, STATES * fp.layer_state(i)) for i in range(layers)]
    placed: list[Placement] = []
    at = 0
    for n, device in enumerate(devices):
        disk = device.kind == "disk"
        feeds = n + 1 < len(devices) and devices[n + 1].kind == "disk"
        work = 0 if disk else _work(fp, device.kind, context, wishes, feeds) + (max(fp.layers) if feeds else 0)
        room, first, weights = device.free - work - OVERHEAD[device.kind], at, 0
        kv, state = (sum(r[k] for r in remembered[at:]) if feeds else 0 for k in (0, 1))
        if feeds and kv + state > room:
            return None
        while at < layers:
            w = fp.layers[at] + (fp.beside if at == 0 else 0) + (fp.head if at == layers - 1 else 0)
            k, s = (0, 0) if disk or feeds else remembered[at]
            if weights + kv + state + w + k + s > room:
                break
            weights, kv, state, at = weights + w, kv + k, state + s, at + 1
        if at > first or kv or state:
            where = (device.name, device.kind, (first, at))
            placed.append(Placement(*where, weights, kv, state, work, OVERHEAD[device.kind], device.free))
    return tuple(placed) if at == layers else None


def _work(fp: Footprint, kind: str, context: int, wishes: Wishes, feeds: bool) -> int:
    """Besides weights, KV and state. The CPU packs, into memory or, for layers on disk, into the cache."""
    asked = (context, wishes.max_pixels, wishes.audio_seconds)
    return fp.work(*asked) if kind == "cpu" and not feeds else fp.activations(*asked)


# --- which one ----------------------------------------------------------------------------------------------------


def _choose(tries: list[_Try], model: Model, wishes: Wishes) -> _Try | None:
    """All on accelerators before anything slower; the most exact scheme with room for a context, else any that fits."""
    least = 1 if wishes.context else min(COMFORT, model.shape.context)
    fitting = [one for one in tries if one.context >= 1]
    if not fitting:
        return None
    fast = [one for one in fitting if one.level < 2 and one.context >= least]
    if fast:
        return fast[0]
    comfortable = [one for one in fitting if one.context >= least]
    only_memory = [one for one in comfortable if one.level == 2 and len({p.kind for p in one.placements}) == 1]
    if only_memory and all(one.level >= 2 for one in tries):
        return only_memory[0]
    # Where layers are offloaded each byte is dear: the smallest scheme, on the fastest devices it fits.
    pool = comfortable or fitting
    return min(pool, key=lambda one: (one.level, sum(p.weights for p in one.placements if p.kind in ("cpu", "disk"))))


def _shortest(tries: list[_Try]) -> _Try:
    """The attempt that is closest to fitting: the smallest scheme on the most devices."""
    return min(tries, key=lambda one: (one.fp.weights, -len(one.devices)))


def _plan(inventory: Inventory, model: Model, wishes: Wishes, one: _Try) -> Plan:
    fp, shape = one.fp, model.shape
    feasible = one.context >= 1
    context = one.context if feasible else one.wanted
    activations = _work(fp, one.devices[0].kind, context, wishes, feeds=False)
    used = [p for p in one.placements if p.kind != "disk"]
    names = {p.device for p in one.placements}
    free = sum(d.free for d in one.devices if (d.name in names or not feasible) and d.kind != "disk")
    overheads = [OVERHEAD[p.kind] for p in used] if feasible else [OVERHEAD[one.devices[0].kind]]
    plan = Plan(
        model=model.name,
        scheme=fp.scheme,
        device=one.placements[0].device if one.placements else one.devices[0].name,
        context=context,
        parameters=shape.parameters,
        weight_bytes=fp.weights,
        kv_bytes_per_token=shape.kv_bytes(fp.value),
        kv_bytes=shape.kv_bytes(fp.value) * context,
        activation_bytes=sum(p.activations for p in one.placements) if feasible else activations,
        overhead_bytes=sum(overheads),
        free_bytes=free,
        threads=inventory.threads,
        feasible=feasible,
        reasons=tuple(_reasons(inventory, model, wishes, one, context)),
        state_bytes=shape.state_bytes(fp.value),
        tower_bytes=fp.towers,
        adapter_bytes=fp.adapters,
        load_peak_bytes=fp.load_peak,
        download_bytes=model.download,
        dtype="fp32" if fp.value == 4 else "bf16",
        kv_dtype="fp32" if fp.value == 4 else "bf16",
        engine="qak"
        if model.runs_in(fp.scheme) and all(d.kind in RUNS_ON or d.kind == "disk" for d in one.devices)
        else "",
        placements=one.placements,
    )
    plan = _with_budgets(plan, shape, wishes)
    return _with_speed(plan, fp, one, inventory) if feasible else _with_shortage(plan, one)


def _with_budgets(plan: Plan, shape: Shape, wishes: Wishes) -> Plan:
    kinds = {tower.kind for tower in shape.towers}
    return replace(
        plan,
        max_pixels=(wishes.max_pixels or PIXELS) if "vision" in kinds else None,
        audio_seconds=(wishes.audio_seconds or SECONDS) if "audio" in kinds else None,
    )


def _with_speed(plan: Plan, fp: Footprint, one: _Try, inventory: Inventory) -> Plan:
    by_name = {device.name: device for device in one.devices}
    shares = [Share(by_name[p.device], range(*p.layers), p.layers[1] == fp.shape.layers) for p in plan.placements]
    shares = [share for share in shares if share.layers]
    early = decode_seconds(fp, shares, inventory, min(HISTORY, plan.context))
    late = decode_seconds(fp, shares, inventory, plan.context)
    known = [speed_of(s.device.kind, fp.scheme, inventory)[1] and s.device.measured for s in shares]
    return replace(
        plan,
        decode_tokens_per_second=round(1 / early, 3),
        decode_full_tokens_per_second=round(1 / late, 3),
        prefill_tokens_per_second=round(prefill_rate(fp, shares, inventory), 3),
        speed_basis="measured here" if all(known) else "not yet measured",
    )


def _with_shortage(plan: Plan, one: _Try) -> Plan:
    short = plan.total_bytes - plan.free_bytes
    names = " and ".join(f"`{device.name}`" for device in one.devices if device.kind != "disk")
    has = "has" if len(one.devices) == 1 else "have"
    needs = (
        f"`{plan.model}` in {plan.scheme} needs {mib(plan.total_bytes)} and {names} {has} {mib(plan.free_bytes)} free"
    )
    # Whole layers go to one device: together there can be enough, and still nowhere for one of them.
    what = f"{mib(short)} short" if short > 0 else "short on each device: a layer fits into none of the gaps"
    return replace(plan, reasons=(f"{needs}: {what}", *plan.reasons))


def _reasons(inventory: Inventory, model: Model, wishes: Wishes, one: _Try, context: int) -> Iterator[str]:
    scheme = one.fp.scheme
    if wishes.quant != "auto":
        yield f"{scheme}: asked for"
    elif one.context < 1:
        yield f"{scheme}: the smallest of {', '.join(model.schemes)}, and still too large"
    else:
        yield f"{scheme}: the first of {', '.join(model.schemes)} that fits"
    if model.files:
        yield f"its files are {model.files}; they are read into {scheme}"
    trained = model.shape.context
    if wishes.context and context > trained:
        if model.extended >= context:
            yield f"context {context:,} is past the {trained:,} that the model was trained for: it needs rope scaling"
        else:
            yield f"context {context:,} is past the {trained:,} that the model was trained for"
    elif context < one.wanted:
        yield f"context cut from {one.wanted:,} to what fits"
    yield from _where(one)
    kind = model.shape.model_type
    if model.through and model.runs:
        yield f"{kind} runs through {model.through}, slower: the speeds are what our own kernels would reach"
    if model.runs and not model.runs_in(scheme):
        yield f"{kind} runs in bf16 and fp32 only: the plan is arithmetic"
    if not model.runs:
        yield f"no engine of the kit runs {kind} yet: the plan is arithmetic; others do, as in vllm:{model.name}"
    kinds = {device.kind for device in one.devices} - {"disk"}
    if others := sorted(kinds - RUNS_ON):
        yield f"the kit's engine does not run on {', '.join(others)} yet: the plan is arithmetic"
    if "cuda" in kinds:
        yield "bandwidth and rate of the cards are their makers' figures"
    if inventory.measured is None:
        yield "speeds come from a built-in table: not yet measured (`qak bench placement` measures)"


def _where(one: _Try) -> Iterator[str]:
    if not one.placements:
        return
    if len(one.placements) == 1:
        yield f"{one.placements[0].device}: all of it fits there"
        return
    for p in one.placements:
        first, last = p.layers
        what = f"layers {first} to {last - 1}" if last > first else "keys, values and one layer at a time"
        yield f"{p.device}: {what}, {mib(p.total)} of {mib(p.free)}"


def _changes(inventory: Inventory, model: Model, wishes: Wishes) -> tuple[str, ...]:
    """What would fit, the nearest first: less context, then a coarser scheme, then smaller media, then the disk."""
    found: list[tuple[float, str]] = []
    schemes = [wishes.quant] if wishes.quant != "auto" else []
    schemes += [name for name in model.schemes if name not in schemes]
    smallest = sorted(schemes, key=lambda name: footprint(model.shape, name).weights)
    for cost, disk in ((0.0, False), (4.0, True)):
        if disk and wishes.disk:
            continue
        for scheme in schemes:
            wish = replace(wishes, quant=scheme, context=None, disk=wishes.disk or disk)
            best = max(_tries(inventory, model, wish), key=lambda one: one.context, default=None)
            length = min(best.context, wishes.context or best.context) if best else 0
            if length < min(LEAST, model.shape.context):
                continue
            # On disk each byte is read again for every token, so there the smallest scheme is the nearest.
            steps = smallest.index(scheme) if disk else schemes.index(scheme)
            cut = 1 - length / (wishes.context or model.shape.context)
            text = f"quant={scheme!r} with context={length}" + (" and layers on disk (slow)" if disk else "")
            found.append((cost + steps + cut, text))
    if model.shape.towers and not found:
        smaller = replace(wishes, max_pixels=256 * 28 * 28, audio_seconds=10.0, quant=AUTO[-1], context=LEAST)
        if any(one.context for one in _tries(inventory, model, smaller)):
            found.append((3.0, f"quant={AUTO[-1]!r} with max_pixels={256 * 28 * 28} and context={LEAST}"))
    return tuple(text for _, text in sorted(found))


def _without(inventory: Inventory, plan: Plan) -> Inventory:
    """What is left when a plan's model is resident. A process pays its fixed costs once."""
    taken = {p.device: p.total - p.overhead for p in plan.placements}
    devices = tuple(replace(d, free=max(0, d.free - taken.get(d.name, 0))) for d in inventory.devices)
    return replace(inventory, devices=devices)
