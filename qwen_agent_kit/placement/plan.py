"""``Plan``: how a model will be placed, how fast it will be, and why; as data and as text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from qwen_agent_kit.errors import PlanError

__all__ = ["Placement", "Plan", "Wishes", "mib"]

_MEASURED = "measured: "


@dataclass(frozen=True, slots=True)
class Wishes:
    """What a user wants of a plan; None leaves it to the planner.

    Args:
        context: Positions per conversation.
        quant: A scheme, or ``auto``.
        max_pixels: Of one image.
        audio_seconds: Of one clip.
        disk: Whether layers may stay on disk.
    """

    context: int | None = None
    quant: str = "auto"
    max_pixels: int | None = None
    audio_seconds: float | None = None
    disk: bool = False


@dataclass(frozen=True, slots=True)
class Placement:
    """What one device holds, in bytes; ``layers`` is the half-open range of the model's layers."""

    device: str
    kind: str
    layers: tuple[int, int]
    weights: int
    kv: int
    state: int
    activations: int
    overhead: int
    free: int

    @property
    def total(self) -> int:
        """All of it together."""
        return self.weights + self.kv + self.state + self.activations + self.overhead

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "layers": list(self.layers), "total": self.total}


@dataclass(frozen=True)
class Plan:
    """How a model will be placed, and why.

    Sizes are bytes. ``feasible`` is False where it does not fit; ``reasons`` then begin with the shortage and
    ``changes`` list the nearest plans that fit, the nearest first.

    Args:
        model: Its name.
        scheme: How its matrices are kept.
        device: The first device, ``cpu`` where one holds all.
        context: Positions per conversation.
        parameters: Of the model, towers included.
        weight_bytes: Packed weights, on all devices.
        kv_bytes_per_token: Keys and values of one position.
        kv_bytes: The KV budget: the whole context of one conversation.
        activation_bytes: While a chunk of the prompt is computed, or what loading needs where that is more.
        overhead_bytes: Interpreter, libraries, tokenizer, buffers.
        free_bytes: On the devices that are used.
        threads: Of the CPU.
        feasible: Whether it fits.
        reasons: One line per decision.
        changes: What would fit instead.
        state_bytes: Recurrent states that are kept of one conversation.
        tower_bytes: Of ``weight_bytes``, those of vision and audio encoders.
        adapter_bytes: Of ``weight_bytes``, those of the host's LoRA adapters, which are read on first use.
        load_peak_bytes: Needed while loading, besides the weights.
        download_bytes: What is fetched, None where it is here.
        dtype: Of activations.
        kv_dtype: Of keys and values.
        engine: What runs it; "" where the kit has nothing that does.
        max_pixels: Of one image, None for a model that sees nothing.
        audio_seconds: Of one clip, None for a model that hears nothing.
        decode_tokens_per_second: Predicted, early in a conversation.
        decode_full_tokens_per_second: Predicted, at the end of the context.
        prefill_tokens_per_second: Predicted.
        speed_basis: ``measured here`` or ``not yet measured``.
        placements: Per device.
        evicts: Models that have to be closed before this one is opened.
        measured: After loading: what was measured, by the names above.
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
    state_bytes: int = 0
    tower_bytes: int = 0
    adapter_bytes: int = 0
    load_peak_bytes: int = 0
    download_bytes: int | None = None
    dtype: str = "bf16"
    kv_dtype: str = "bf16"
    engine: str = "qak"
    max_pixels: int | None = None
    audio_seconds: float | None = None
    decode_tokens_per_second: float = 0.0
    decode_full_tokens_per_second: float = 0.0
    prefill_tokens_per_second: float = 0.0
    speed_basis: str = "not yet measured"
    placements: tuple[Placement, ...] = ()
    evicts: tuple[str, ...] = ()
    measured: dict[str, float] = field(default_factory=dict)

    @property
    def total_bytes(self) -> int:
        """All of it together."""
        return self.weight_bytes + self.kv_bytes + self.state_bytes + self.activation_bytes + self.overhead_bytes

    def require(self) -> Plan:
        """Insist: the same plan back.

        Raises:
            PlanError: Where it is not feasible; the message names the shortage.
        """
        if not self.feasible:
            raise PlanError(self.reasons[0], hint=self.changes[0] if self.changes else "use a smaller model")
        return self

    def compare(self, **found: float) -> Plan:
        """The same plan with what was measured, and a reason for each figure that says how far off it was.

        Args:
            found: By the names of this class's fields, as in ``decode_tokens_per_second=31.0``.
        """
        measured = {**self.measured, **found}
        kept = tuple(reason for reason in self.reasons if not reason.startswith(_MEASURED))
        return replace(self, measured=measured, reasons=(*kept, *_compared(self, measured)))

    def to_dict(self) -> dict[str, Any]:
        """JSON data; docs/concepts/placement.md describes the fields, which are only ever added to."""
        data = {**asdict(self), "total_bytes": self.total_bytes, "schema_version": 1}
        data["placements"] = [placement.to_dict() for placement in self.placements]
        return data

    def __str__(self) -> str:
        where = ", ".join(_where(p) for p in self.placements) or self.device
        rows = [f"{self.model} on {where}, {self.scheme}, context {self.context:,}"]
        rows += [f"  weights      {mib(self.weight_bytes)}" + self._of_them()]
        rows += [f"  KV           {mib(self.kv_bytes)}  ({self.kv_bytes_per_token:,} bytes a token)"]
        rows += [f"  state        {mib(self.state_bytes)}"] if self.state_bytes else []
        rows += [
            f"  activations  {mib(self.activation_bytes)}",
            f"  overhead     {mib(self.overhead_bytes)}",
            f"  together     {mib(self.total_bytes)} of {mib(self.free_bytes)} free",
        ]
        if self.feasible:
            rows.append(
                f"  speed        {rate(self.decode_tokens_per_second)} tokens/s drawn "
                f"({rate(self.decode_full_tokens_per_second)} at the end of the context), "
                f"{rate(self.prefill_tokens_per_second)} read ({self.speed_basis})"
            )
        rows += [f"  - {reason}" for reason in self.reasons]
        rows += [f"  try: {change}" for change in self.changes]
        return "\n".join(rows)

    def _of_them(self) -> str:
        kinds = (("encoders", self.tower_bytes), ("adapters", self.adapter_bytes))
        told = ", ".join(f"{mib(size)} of them {name}" for name, size in kinds if size)
        return f"  ({told})" if told else ""


def _compared(plan: Plan, measured: Mapping[str, float]) -> Iterator[str]:
    for name, found in sorted(measured.items()):
        planned = float(getattr(plan, name))
        show = (lambda value: mib(int(value))) if name.endswith("_bytes") else rate
        off = f"off by {abs(planned / found - 1):.0%}" if found else "nothing was measured"
        yield f"{_MEASURED}{name.replace('_', ' ')} {show(found)}, planned {show(planned)}: {off}"


def _where(placement: Placement) -> str:
    first, last = placement.layers
    return f"{placement.device} (layers {first} to {last - 1})" if last > first else placement.device


def rate(value: float) -> str:
    """Three figures."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def mib(count: int) -> str:
    """Bytes for people."""
    return f"{count / 2**30:.2f} GiB" if abs(count) >= 2**30 else f"{count / 2**20:.1f} MiB"
