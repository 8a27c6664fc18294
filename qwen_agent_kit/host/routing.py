"""What is known of a model before it is opened: which backends could drive it, and which parts another would take."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from qwen_agent_kit.backends import Backend
from qwen_agent_kit.catalog import family_of
from qwen_agent_kit.errors import PluginError, QakError
from qwen_agent_kit.host.defaults import backends_with_default
from qwen_agent_kit.host.joint import drivers_of
from qwen_agent_kit.placement.reading import read_config

if TYPE_CHECKING:
    from qwen_agent_kit.host.host import Host

__all__ = ["default_kinds", "drivers", "missing_kind_hint"]


def drivers(host: Host, backends: Sequence[Backend], specs: Sequence[object]) -> tuple[Backend, ...]:
    """The backends that can drive the models ``specs`` means; all of them where a family is not known yet.

    Where several drive a family's models together, they are there as one.

    Args:
        host: Knows the names.
        backends: The installed ones.
        specs: As ``Agent`` takes them; None for those that answer by default.
    """
    every, families = tuple(backends), set[str]()
    for spec in specs:
        found = _families(host, spec)
        if not found:
            return _with_joint(every)
        families |= found
    driving = [one for family in sorted(families) for one in drivers_of(family, every)]
    return tuple({one.name: one for one in driving}.values()) or every


def _with_joint(backends: tuple[Backend, ...]) -> tuple[Backend, ...]:
    families = sorted({family for one in backends for family in one.families})
    together = (one for family in families for one in drivers_of(family, backends) if one not in backends)
    return (*backends, *{one.name: one for one in together}.values())


def _families(host: Host, spec: object) -> set[str]:
    """Of one model, or of those that answer by default; empty where that is not known before it is opened."""
    spec = spec or host.configured
    if spec is None:
        backends = backends_with_default(host, host.backends)
        return {e.family for e in host.entries if e.default_for} | {f for b in backends for f in b.families}
    if not isinstance(spec, str) or spec == "auto":
        return set()
    from qwen_agent_kit.catalog.released import find  # its data is read only where a model is named

    if (known := find(spec)) is not None:
        return {known[0].family}
    try:
        target = host.target(spec)
        if target.entry is not None:
            return {target.entry.family}
        if target.engine is not None or target.hub:
            return set()
        config = target.path() / "config.json"
        family = family_of(str(read_config(config).get("model_type", ""))) if config.is_file() else None
    except QakError:  # opening it will say what is wrong
        return set()
    return set() if family is None else {family.name}


def default_kinds(host: Host, kinds: frozenset[str]) -> frozenset[str]:
    """The kinds that a conversation of ``kinds`` may come to hold where no model is named: another may answer then."""
    if host.configured is not None:
        return frozenset()
    offered = [entry.default_for for entry in host.entries]
    offered += [backend.accepts for backend in backends_with_default(host, host.backends)]
    return frozenset().union(*(more for more in offered if kinds <= more))


def missing_kind_hint(kind: str, conflicts: Iterable[PluginError] = ()) -> str:
    """How to come by a model that takes ``kind``; a quarrel of plugins over a backend's name comes first."""
    if (conflict := next(iter(conflicts), None)) is not None:
        return f"{conflict.message}, so neither is used: {conflict.hint}"
    extra = {"image": "vision", "video": "vision", "audio": "audio"}.get(kind)
    plugin = f'pip install "qwen-agent-kit[{extra}]"' if extra else "install its plugin"
    return f"name a model that takes {kind} parts, and {plugin}"
