"""From a name or a path to what the planner needs: catalogued sizes, else the header of local files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from qwen_agent_kit.catalog import RELEASES, ModelEntry, family_of
from qwen_agent_kit.errors import UsageError
from qwen_agent_kit.placement.devices import Device, Inventory, inventory
from qwen_agent_kit.placement.footprint import file_bytes
from qwen_agent_kit.placement.gguf import GGUFHeader
from qwen_agent_kit.placement.plan import Plan, Wishes
from qwen_agent_kit.placement.planner import RUNS_ON, Model, plan_model
from qwen_agent_kit.placement.reading import read_shape, shape_from_config, shape_from_gguf

__all__ = ["Header", "limited", "make_plan", "model_of", "model_of_entry", "model_of_header"]


class Header(Protocol):
    """What reading a model's headers gives: its config.json or GGUF header, and the files that would be fetched."""

    @property
    def config(self) -> Mapping[str, Any]: ...

    @property
    def files(self) -> Mapping[str, int]: ...

    @property
    def gguf(self) -> GGUFHeader | None: ...


def limited(here: Inventory) -> Inventory:
    """This machine as the engine can use it."""
    return replace(here, devices=tuple(device for device in here.devices if device.kind in RUNS_ON))


def model_of(name: str, path: Path) -> Model:
    """The model whose files are at ``path``.

    Raises:
        ModelError: Where its sizes cannot be read.
    """
    shape = read_shape(path)
    family = family_of(shape.model_type)
    return Model(name, shape, runs=family is not None and family.runs)


def model_of_header(name: str, header: Header) -> Model:
    """A model whose headers were read, here or on a hub; no weights.

    Raises:
        ModelError: Where its sizes cannot be read.
    """
    shape = shape_from_config(header.config, name) if header.gguf is None else shape_from_gguf(header.gguf, name)
    family = family_of(shape.model_type)
    return Model(name, shape, family is not None and family.runs, download=sum(header.files.values()) or None)


def model_of_entry(entry: ModelEntry, release: str = "") -> Model:
    """A catalogued model, nothing looked up.

    Args:
        entry: One that states its ``config``.
        release: One of its quantised releases, "" for the original weights.

    Raises:
        UsageError: Where the entry has no configuration.
    """
    if entry.config is None:
        raise UsageError(f"`{entry.name}` states no sizes, and its files are not here", hint=entry.hint or None)
    shape = shape_from_config(entry.config, entry.name)
    if entry.context:
        shape = replace(shape, context=entry.context)
    family = family_of(shape.model_type)
    scheme = RELEASES.get(release, "")
    name = f"{entry.name}-{release}" if release else entry.name
    download = None if release == "GGUF" else file_bytes(shape, scheme or "bf16")
    runs = family is not None and family.runs
    return Model(name, shape, runs=runs, download=download, extended=entry.extended, files=scheme)


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
    here = inventory()
    here = limited(here) if devices is None else replace(here, devices=tuple(devices))
    return plan_model(here, model_of(name, path), Wishes(context=context, quant=quant))
