"""Which model for a task: the catalogue's models that fit, ranked by a stated rule of thumb.

The score is ``log2(size) + generation + fit``. ``size`` is the parameters in billions, for experts the geometric mean
of all and of those a token goes through; ``generation`` is the catalogue's; ``fit`` is 1 where the task is the model's
first strength, 0.5 where it is another, and a scheme costs what it loses: 0.15 for int8, 0.5 for int4. This ranks, it
does not measure: docs/guides/which-model.md says how far to trust it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from qwen_agent_kit.catalog import ModelEntry
from qwen_agent_kit.catalog.released import released
from qwen_agent_kit.errors import UsageError
from qwen_agent_kit.placement.devices import Inventory
from qwen_agent_kit.placement.plan import Plan, Wishes
from qwen_agent_kit.placement.planner import plan_model
from qwen_agent_kit.placement.sources import model_of_entry

__all__ = ["Needs", "Recommendation", "recommend"]

_CONTEXT = 8192
_LOSS = {"bf16": 0.0, "fp32": 0.0, "int8": 0.15, "int4": 0.5}


@dataclass(frozen=True, slots=True)
class Needs:
    """What a user asks for.

    Args:
        task: One of the catalogue's tasks.
        context: Positions per conversation.
        speed: Tokens a second, at least.
        languages: ISO 639 codes that the model must know.
        licence: SPDX identifier.
        any_engine: Whether models count that no engine of the kit runs.
    """

    task: str
    context: int | None = None
    speed: float = 0.0
    languages: Sequence[str] = ()
    licence: str | None = None
    any_engine: bool = False


@dataclass(frozen=True)
class Recommendation:
    """A model, how it would be placed, and what speaks for and against it."""

    entry: ModelEntry
    plan: Plan
    score: float
    why: str
    trade_off: str = ""

    def to_dict(self) -> dict[str, Any]:
        return {
            "model": self.entry.name,
            "score": round(self.score, 2),
            "why": self.why,
            "trade_off": self.trade_off,
            "licence": self.entry.licence,
            "verified": self.entry.verified,
            "plan": self.plan.to_dict(),
        }


def recommend(here: Inventory, needs: Needs) -> tuple[list[Recommendation], dict[str, int]]:
    """The models that fit, the best first, and how many were left out for which reason.

    Raises:
        UsageError: For a need that cannot be meant.
        PlanError: Where there is no device.
    """
    if not math.isfinite(needs.speed) or needs.speed < 0:
        raise UsageError(f"`speed` is {needs.speed!r}; allowed: tokens a second, from 0")
    left_out: dict[str, int] = {}
    found = []
    for entry in released():
        if needs.task not in entry.tasks:
            continue
        reason, plan = _plan(here, entry, needs)
        if plan is None:
            left_out[reason] = left_out.get(reason, 0) + 1
        else:
            found.append((entry, plan, _score(entry, plan, needs.task)))
    found.sort(key=lambda row: (-row[2], row[0].name))
    best = found[0][1] if found else None
    return [_told(entry, plan, score, needs.task, best) for entry, plan, score in found], left_out


def _plan(here: Inventory, entry: ModelEntry, needs: Needs) -> tuple[str, Plan | None]:
    if needs.licence and entry.licence.casefold() != needs.licence.casefold():
        return f"not under {needs.licence}", None
    if missing := [code for code in needs.languages if code not in entry.languages]:
        return f"does not list {', '.join(missing)}", None
    model = model_of_entry(entry)
    if not model.runs and not needs.any_engine:
        return "no engine of the kit runs it yet (--any-engine shows it)", None
    if model.through and not needs.any_engine:
        return f"runs through {model.through} only, slower (--any-engine shows it)", None
    reach = max(entry.context, entry.extended)
    if needs.context and needs.context > reach:
        return "its context is shorter", None
    wishes = Wishes(context=needs.context or min(_CONTEXT, entry.context))
    plan = plan_model(here, model, wishes)
    if not plan.feasible:
        return "does not fit", None
    for scheme in model.schemes:  # a coarser scheme is read faster
        if plan.feasible and plan.decode_tokens_per_second >= needs.speed:
            return "", plan
        plan = plan_model(here, model, replace(wishes, quant=scheme))
    if plan.feasible and plan.decode_tokens_per_second >= needs.speed:
        return "", plan
    return f"slower than {needs.speed:g} tokens/s", None


def _score(entry: ModelEntry, plan: Plan, task: str) -> float:
    size = math.sqrt((entry.parameters or 1) * (entry.active or entry.parameters or 1)) / 1e9
    fit = 1.0 if entry.tasks[0] == task else 0.5
    return math.log2(size) + entry.generation + fit - _LOSS.get(plan.scheme, 0.5)


def _told(entry: ModelEntry, plan: Plan, score: float, task: str, best: Plan | None) -> Recommendation:
    size = f"{(entry.parameters or 0) / 1e9:.3g} B"
    if entry.active != entry.parameters:
        size += f", {(entry.active or 0) / 1e9:.3g} B of them used per token"
    strength = f"made for {task}" if entry.tasks[0] == task else f"good at {task} too"
    against = []
    if plan.scheme == "int4":
        against.append("4-bit weights cost some quality")
    if entry.thinking == "always":
        against.append("thinks before each answer: more tokens")
    if not entry.verified:
        against.append("sizes not verified against a public source")
    if plan.engine == "":
        against.append("needs another engine")
    if best is not None and plan is not best and best.decode_tokens_per_second:
        ratio = plan.decode_tokens_per_second / best.decode_tokens_per_second
        if not 0.95 < ratio < 1.05:
            against.append(f"{ratio:.2g} times the first one's speed")
    return Recommendation(
        entry, plan, score, f"{strength}, {size}, generation {entry.generation:g}", "; ".join(against)
    )
