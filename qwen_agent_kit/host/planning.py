"""Plans by name: the catalogue's sizes, else those of the files that are here; nothing is fetched or loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qwen_agent_kit.backends import MediaBudget, ModelFacts
from qwen_agent_kit.catalog import family_of
from qwen_agent_kit.catalog.released import find
from qwen_agent_kit.errors import PluginError, UsageError
from qwen_agent_kit.host.joint import asked, media_driver
from qwen_agent_kit.host.resolve import Target
from qwen_agent_kit.placement import Inventory, Plan, Wishes, inventory, model_of, plan_model, plan_together
from qwen_agent_kit.placement.reading import read_config, thinker_of
from qwen_agent_kit.placement.sources import limited, model_of_entry, model_of_header, with_devices

if TYPE_CHECKING:
    from qwen_agent_kit.host.host import Host
    from qwen_agent_kit.placement import Device, Model

__all__ = ["planned_here", "planned_model", "plans"]


def planned_model(host: Host, target: Target) -> Model:
    """What the planner needs to know of ``target``.

    Raises:
        UsageError: Where it is run by another engine, which places it.
        ModelError: Where its sizes are not catalogued and its files are not here.
    """
    if target.engine is not None:
        raise UsageError(f"`{target.name}` is placed by the engine {target.engine.prefix!r}, not by us")
    return _with_adapters(host, _stated(host, target))


def _stated(host: Host, target: Target) -> Model:
    entry = target.entry
    if entry is not None and entry.config is not None:
        return _as_stated(host, model_of_entry(entry), entry.config)
    if entry is not None and (entry.locate is None or entry.locate() is None):
        released = next((found for name in (entry.name, *entry.aliases) if (found := find(name))), None)
        if released is not None:  # a plugin brings its files, and they are not here yet
            return replace(model_of_entry(*released), name=entry.name)
    if target.hub and (known := find(target.name)) is not None:
        return model_of_entry(*known)
    if target.header is not None:
        header = target.header()
        return _as_stated(host, model_of_header(target.name, header), header.config)
    return _model_here(host, target)


def planned_here(host: Host, target: Target, wishes: Wishes) -> Plan:
    """The plan by which a model whose files are here is opened.

    Raises:
        PlanError: Where there is no device.
        ModelError: Where its sizes cannot be read.
    """
    return plan_model(limited(inventory()), _with_adapters(host, _model_here(host, target)), wishes)


def _with_adapters(host: Host, model: Model) -> Model:
    """With room for all that the host knows: whose they are is found out when one is used."""
    if not host.adapters:
        return model
    from qwen_agent_kit.models import adapter_parameters

    folders = {Path(folder).expanduser() for folder in host.adapters.values() if isinstance(folder, str | Path)}
    return replace(model, adapters=sum(map(adapter_parameters, folders)))


def _model_here(host: Host, target: Target) -> Model:
    path = target.path()
    config = read_config(path / "config.json") if path.is_dir() else {}
    return _as_stated(host, model_of(target.name, path), config)


def _as_stated(host: Host, model: Model, config: Mapping[str, Any]) -> Model:
    """With what the backend of its media states for its towers: for a plugin's own models, which nothing here knows."""
    kind = str(config.get("model_type", ""))
    family = family_of(kind)
    if not kind or (family is not None and family.kinds == {"text"}):
        return model
    backend = media_driver(kind if family is None else family.name, host.backends)
    if backend is None or backend.footprint is None:
        return model
    facts, states = ModelFacts(thinker_of(config)), backend.footprint

    def towers(wishes: Wishes) -> int:
        budget = MediaBudget(wishes.max_pixels, wishes.audio_seconds)
        stated = asked(backend, "footprint", states, facts, budget)
        if isinstance(stated, bool) or not isinstance(stated, int) or stated < 0:
            raise PluginError(f"the footprint of backend {backend.name!r} is {stated!r:.80}; allowed: bytes, from 0 on")
        return stated

    return replace(model, towers=towers)


def plans(
    host: Host, names: Sequence[str | None], wishes: Wishes, here: Inventory | Sequence[Device] | None = None
) -> tuple[Plan, ...]:
    """Plan models that are to be resident together, in order.

    Args:
        host: Knows the names.
        names: The models; None for the default one.
        wishes: For the first; the others are left to the planner, but for the disk.
        here: The devices, or the whole inventory; this machine, as far as the engine uses it, where None.

    Raises:
        UsageError: Where a name means nothing or a wish cannot be meant.
        PlanError: Where there is no device.
    """
    models = [planned_model(host, _target(host, name)) for name in names]
    if here is None:
        here = limited(inventory())
    elif not isinstance(here, Inventory):
        here = with_devices(inventory(), here)
    others = Wishes(disk=wishes.disk)
    return plan_together(here, [(model, others if i else wishes) for i, model in enumerate(models)])


def _target(host: Host, name: str | None) -> Target:
    """As the host resolves it; a catalogued model may also be named without its owner."""
    if name is not None and (known := find(name)) is not None and "/" not in name:
        entry, release = known
        if not any(own.answers_to(name) for own in host.entries):
            name = f"{entry.name}-{release}" if release else entry.name
    return host.target(name)
