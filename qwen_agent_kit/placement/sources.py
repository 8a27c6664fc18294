"""From a name or a path to what the planner needs: catalogued sizes, else the header of local files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from qwen_agent_kit.catalog import RELEASES, ModelEntry, family_of
from qwen_agent_kit.errors import UsageError
from qwen_agent_kit.placement.devices import KINDS, Device, Inventory, inventory
from qwen_agent_kit.placement.footprint import file_bytes
from qwen_agent_kit.placement.gguf import GGUFHeader
from qwen_agent_kit.placement.plan import Plan, Wishes
from qwen_agent_kit.placement.planner import RUNS_ON, Model, plan_model
from qwen_agent_kit.placement.reading import read_shape, shape_from_config, shape_from_gguf

__all__ = ["Header", "limited", "make_plan", "model_of", "model_of_entry", "model_of_header", "with_devices"]


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


def with_devices(here: Inventory, devices: Any) -> Inventory:
    """``here`` with other devices, as a user gave them.

    Raises:
        UsageError: Where they are no devices, or two have one name.
    """
    hint = 'Device("cuda:0", "cuda", free, total) of qwen_agent_kit.placement, sizes in bytes'
    if isinstance(devices, (str, bytes)) or not isinstance(devices, Sequence):
        raise UsageError(f"`devices` is {devices!r:.80}; allowed: a list of Device", hint=hint)
    for device in devices:
        if not isinstance(device, Device):
            raise UsageError(f"`devices` holds {device!r:.80}; allowed: Device", hint=hint)
        if device.kind not in KINDS:
            raise UsageError(f"`devices` holds one of kind {device.kind!r:.40}; allowed: {', '.join(KINDS)}", hint=hint)
        for size in (device.free, device.total):
            if isinstance(size, bool) or not isinstance(size, int) or size < 0:
                raise UsageError(f"`{device.name}` has {size!r:.40} bytes; allowed: a whole number from 0", hint=hint)
    names = [device.name for device in devices]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise UsageError(f"`devices` holds {twice!r} twice; allowed: each name once", hint=hint)
    return replace(here, devices=tuple(devices))


def model_of(name: str, path: Path) -> Model:
    """The model whose files are at ``path``.

    Raises:
        ModelError: Where its sizes cannot be read.
    """
    shape = read_shape(path)
    runs, through = _engine(shape.model_type, files="safetensors" if path.is_dir() else "gguf")
    return Model(name, shape, runs=runs, through=through)


def _engine(model_type: str, files: str) -> tuple[bool, str]:
    """(whether the engine runs it, through which library "" for none). What nobody here knows, transformers may."""
    family = family_of(model_type)
    through = "transformers" if family is None else family.through
    return (family is None or family.runs) and not (through and files != "safetensors"), through


def model_of_header(name: str, header: Header) -> Model:
    """A model whose headers were read, here or on a hub; no weights.

    Raises:
        ModelError: Where its sizes cannot be read.
    """
    shape = shape_from_config(header.config, name) if header.gguf is None else shape_from_gguf(header.gguf, name)
    runs, through = _engine(shape.model_type, files="safetensors" if header.gguf is None else "gguf")
    return Model(name, shape, runs, download=sum(header.files.values()) or None, through=through)


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
    scheme = RELEASES.get(release, "")
    name = f"{entry.name}-{release}" if release else entry.name
    download = None if release == "GGUF" else file_bytes(shape, scheme or "bf16")
    runs, through = _engine(shape.model_type, files=scheme or release or "safetensors")
    kept = Model(name, shape, runs=runs, download=download, extended=entry.extended, files=scheme)
    return replace(kept, through=through)


def make_plan(
    name: str,
    path: Path,
    *,
    context: int | None = None,
    quant: str = "auto",
    devices: Sequence[Device] | None = None,
    disk: bool = False,
) -> Plan:
    """Plan the model at ``path`` for this machine, or for the ``devices`` given.

    Raises:
        UsageError: For an unknown scheme, a context that is not positive, or devices that are none.
        PlanError: Where there is no device at all.
        ModelError: Where the model's sizes cannot be read.
    """
    here = inventory()
    here = limited(here) if devices is None else with_devices(here, devices)
    return plan_model(here, model_of(name, path), Wishes(context=context, quant=quant, disk=disk))
