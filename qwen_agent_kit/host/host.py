"""Opens models and keeps them: one load, one engine and one KV cache per model, however many agents use it."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from qwen_agent_kit.backends import Backend, ChatModel, EngineSpec, Sampling
from qwen_agent_kit.catalog import ModelEntry
from qwen_agent_kit.errors import EngineError, ModelError, UsageError
from qwen_agent_kit.host.defaults import default_model
from qwen_agent_kit.host.media import LocalMedia, media_of
from qwen_agent_kit.host.opening import open_engine
from qwen_agent_kit.host.resolve import Target, resolve
from qwen_agent_kit.host.routing import missing_kind_hint
from qwen_agent_kit.host.tuning import undisturbed
from qwen_agent_kit.placement import Inventory, Plan, Wishes, make_plan
from qwen_agent_kit.settings import load_settings

if TYPE_CHECKING:
    from pluggy import PluginManager

    from qwen_agent_kit.engine import Engine
    from qwen_agent_kit.models import LoadedModel
    from qwen_agent_kit.placement import Device
    from qwen_agent_kit.plugins import Loaded, PluginRow

__all__ = ["Host", "default_host", "load_engine", "plan"]


class Host:
    """Opens models by name and keeps them until ``close``.

    Args:
        quant: The weight scheme: ``auto``, ``fp32``, ``bf16``, ``int8``, ``int4``; the settings', else ``auto``, where
            None.
        device: ``auto`` or ``cpu``.
        context: Positions per conversation; the settings', else the model's own, where None.
        plugins: Plugin objects besides the installed ones.
        cache: Whether unpacked weights are kept on disk for the next start.
        prefixes: Whether keys and values of long prompts are kept on disk, so that the next process need not compute
            them again; the settings', else yes, where None.
        disk: Whether layers may stay on disk where memory is short, which is slow; the settings', else no, where None.
        adapters: LoRA adapters by the name that an agent gives them, each the directory that ``peft`` wrote, for the
            models that run here; read on first use.

    Thread-safe: two threads that ask for one model wait for the same load. The threads of an engine do not follow a
    ``os.fork``: in the child, a host that had opened a model refuses to open one.
    """

    def __init__(
        self,
        *,
        quant: str | None = None,
        device: str = "auto",
        context: int | None = None,
        plugins: Sequence[Any] = (),
        cache: bool = True,
        prefixes: bool | None = None,
        disk: bool | None = None,
        adapters: Mapping[str, str | Path] | None = None,
    ) -> None:
        if device not in ("auto", "cpu"):
            raise UsageError(f"`device` is {device!r}; allowed: auto, cpu")
        self._settings = load_settings()
        self._quant = quant or self._settings.quant or "auto"
        self._context = context or self._settings.context
        self._extra = tuple(plugins)
        self._cache = cache
        self._prefixes = self._settings.prefixes != "off" if prefixes is None else prefixes
        self._disk = self._settings.disk == "on" if disk is None else disk
        self._adapters = dict(adapters or {})
        self._lock = threading.Lock()
        self._loaded: dict[str, Loaded] = {}
        self._models: dict[str, Future[ChatModel]] = {}
        self._process = os.getpid()

    # --- plugins ---------------------------------------------------------------------------------------------------

    @property
    def backends(self) -> tuple[Backend, ...]:
        """What the installed plugins cover.

        Raises:
            PluginError: Where none is left because plugins quarrel over a name.
        """
        found = self._collect("backends", "register_backends", Backend)
        if not found:
            for conflict in self._plugins("backends").conflicts.values():
                raise conflict
        return found

    @property
    def entries(self) -> tuple[ModelEntry, ...]:
        """The models that plugins offer by name."""
        return self._collect("models", "register_models", ModelEntry)

    @property
    def engines(self) -> tuple[EngineSpec, ...]:
        """The engines that plugins offer by prefix."""
        return self._collect("engines", "register_engines", EngineSpec)

    @property
    def hooks(self) -> PluginManager:
        """The manager of the hooks that look on: choose_backend, run_tool, before_step, on_step."""
        return self._plugins("hooks").manager

    def tools(self) -> dict[str, Any]:
        """The tools that plugins offer, by name; none is armed by being here."""
        from qwen_agent_kit.tools import Tool

        return {tool.name: tool for tool in self._collect("tools", "register_tools", Tool)}

    @property
    def adapters(self) -> Mapping[str, str | Path]:
        """The LoRA adapters that agents may name, and where they are."""
        return MappingProxyType(self._adapters)

    @property
    def configured(self) -> str | None:
        """The model that ``QAK_MODEL`` or the settings name."""
        return self._settings.model

    @property
    def resident(self) -> frozenset[str]:
        """The names of the backends whose model is open."""
        with self._lock:
            futures = list(self._models.values())
        opened = (future.result() for future in futures if future.done() and future.exception() is None)
        return frozenset(str(getattr(model, "backend", "")) for model in opened) - {""}

    def _plugins(self, kind: str) -> Loaded:
        from qwen_agent_kit.plugins import load

        with self._lock:
            if kind not in self._loaded:
                self._loaded[kind] = load(kind, extra=self._extra)
            return self._loaded[kind]

    def _collect(self, kind: str, hook: str, expected: type[Any]) -> tuple[Any, ...]:
        from qwen_agent_kit.plugins import call_list

        return tuple(call_list(self._plugins(kind), hook, expected, strict=False))

    def _refuse_contested(self, spec: str) -> None:
        """One plugin's quarrel stops only whoever asks for the name it is about."""
        names = {"models": spec.casefold(), "engines": spec.partition(":")[0].casefold()}
        for kind, name in names.items():
            if (conflict := self._plugins(kind).conflicts.get(name)) is not None:
                raise conflict

    # --- models ----------------------------------------------------------------------------------------------------

    def open(self, spec: str | None = None, *, kinds: frozenset[str] = frozenset({"text"})) -> ChatModel:
        """The model that ``spec`` means, loaded on first use.

        Args:
            spec: A catalog name, a path, ``engine:spec`` or a hub id; None takes ``QAK_MODEL``, else the installed
                model that answers for ``kinds`` by default; ``auto`` the largest one here that fits.
            kinds: The part kinds that the conversation holds.

        Raises:
            UsageError: Where the name means nothing, or the model does not take a kind.
            ModelError: Where its files are missing or refused.
            PlanError: Where it does not fit.
            EngineError: In a forked child of the process that opened a model.
        """
        self._refuse_forked()
        target = self.target(spec, kinds)
        with self._lock:
            future = self._models.get(target.name)
            ours = future is None
            if future is None:
                future = self._models[target.name] = Future()
        if ours:
            self._fill(future, target)
        model = future.result()
        if missing := kinds - model.caps.kinds:
            raise UsageError(
                f"`{model.name}` takes {sorted(model.caps.kinds)}; found a part of kind {sorted(missing)[0]!r}",
                hint=missing_kind_hint(sorted(missing)[0], self._plugins("backends").conflicts.values()),
                code="unsupported_kind",
            )
        return model

    def _refuse_forked(self) -> None:
        """An engine's thread stays behind in the parent: whoever waited for it here would wait for ever."""
        if self._process == os.getpid():
            return
        if self._models:
            raise _forked(self._process)
        self._lock, self._process = threading.Lock(), os.getpid()  # another thread may have held it when we forked

    def _fill(self, future: Future[ChatModel], target: Target) -> None:
        try:
            with undisturbed():
                future.set_result(self._open(target))
        except BaseException as error:  # noqa: BLE001  # whoever waits for this load gets it; the next one tries again
            with self._lock:
                self._models.pop(target.name, None)
            future.set_exception(error)

    def target(self, spec: str | None = None, kinds: frozenset[str] = frozenset({"text"})) -> Target:
        """What ``spec`` means, nothing loaded.

        Raises:
            UsageError: Where it means nothing.
            PluginError: Where two plugins claim the name.
        """
        spec = spec or self._settings.model
        if spec is None:
            spec = default_model(self, kinds)
        elif spec == "auto":
            spec = self._largest(kinds)
        entries, engines = self.entries, self.engines
        self._refuse_contested(spec)
        return resolve(spec, entries, engines, self._settings.hub_token)

    def _largest(self, kinds: frozenset[str]) -> str:
        here = [entry for entry in self.entries if kinds <= entry.kinds and entry.locate and entry.locate()]
        for entry in sorted(here, key=lambda e: -(e.parameters or 0)):
            if self.plan(entry.name).feasible:
                sys.stderr.write(f"model: {entry.name}, the largest one here that fits\n")
                return entry.name
        raise ModelError(f"no model for {sorted(kinds)} is on this machine and fits", hint="`qak models` lists them")

    def plan(self, spec: str | None = None, *, context: int | None = None, quant: str | None = None) -> Plan:
        """How the model would be placed, nothing fetched or loaded.

        Raises:
            UsageError: Where the name means nothing, or the model is run by another engine.
            ModelError: Where its sizes are not catalogued and its files are not here.
        """
        if context is None and quant is None and (loaded := self._loaded_plan(spec)) is not None:
            return loaded
        return self.plans([spec], Wishes(context=context, quant=quant or "auto"))[0]

    def _loaded_plan(self, spec: str | None) -> Plan | None:
        """The plan of a model that is open, with what was measured since; None where it is not open."""
        with self._lock:
            if not self._models:
                return None
        target = self.target(spec)
        with self._lock:
            future = self._models.get(target.name)
        if future is None or not future.done() or future.exception() is not None:
            return None
        plan: Plan | None = getattr(future.result(), "plan", None)
        return plan

    def plans(
        self, specs: Sequence[str | None], wishes: Wishes, devices: Inventory | Sequence[Device] | None = None
    ) -> tuple[Plan, ...]:
        """How models would be placed that are to be resident together; the wishes are for the first of them.

        Raises:
            UsageError: Where a name means nothing, or a wish cannot be meant.
            ModelError: Where a model's sizes are not catalogued and its files are not here.
            PlanError: Where there is no device.
        """
        from qwen_agent_kit.host.planning import plans

        quant = self._quant if wishes.quant == "auto" else wishes.quant
        disk, context = wishes.disk or self._disk, wishes.context or self._context
        return plans(self, specs, replace(wishes, quant=quant, context=context, disk=disk), devices)

    def _open(self, target: Target) -> ChatModel:
        if target.engine is not None:
            return target.engine.open(target.rest)
        from qwen_agent_kit.host.local import LocalChatModel

        chosen = self._placed(target)
        media = media_of(target.path(), self.backends)
        loaded, engine = self._engine(target.path(), chosen, media)
        towers = 0 if media is None else media.tower_bytes(loaded.config)
        chosen = chosen.compare(weight_bytes=loaded.model.weight_bytes + towers + chosen.adapter_bytes)
        dialect, sampling = (e.dialect, Sampling(**e.sampling)) if (e := target.entry) else ("", None)
        model = LocalChatModel(target.name, loaded, engine, chosen, dialect=dialect, sampling=sampling, media=media)
        model.looks_ahead = self._settings.ahead != "off"
        return model

    def _placed(self, target: Target) -> Plan:
        from qwen_agent_kit.host.planning import planned_here

        return planned_here(self, target, Wishes(self._context, self._quant, disk=self._disk)).require()

    def _engine(self, path: Path, chosen: Plan, media: LocalMedia | None = None) -> tuple[LoadedModel, Engine]:
        if _DEFAULT.engines not in (0, os.getpid()):
            raise _forked(_DEFAULT.engines)
        _DEFAULT.engines = os.getpid()
        return open_engine(
            path,
            chosen,
            cache=self._cache,
            prefixes=self._prefixes,
            encoder=None if media is None else media.encoder(),
            adapters=self._adapters,
        )

    # --- the end ---------------------------------------------------------------------------------------------------

    def rows(self) -> tuple[PluginRow, ...]:
        """The plugins that were looked at so far, broken ones included."""
        with self._lock:
            return tuple(row for loaded in self._loaded.values() for row in loaded.rows)

    def close(self) -> None:
        """Stop every engine and forget the models."""
        with self._lock:
            futures, self._models = list(self._models.values()), {}
        for future in futures:
            if future.done() and future.exception() is None:
                future.result().close()

    def __enter__(self) -> Host:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class _Default:
    """Holds the process's default host: the one piece of module state, so that two agents share weights and KV."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.host: Host | None = None
        self.engines = 0  # the process that first opened one: the threads of torch do not follow a fork, either


_DEFAULT = _Default()


def _forked(parent: int) -> EngineError:
    return EngineError(
        f"process {os.getpid()} is a forked copy of {parent}, which opened a model; its threads do not follow a fork",
        hint='start processes with multiprocessing.get_context("spawn"), or fork before a model is opened',
        code="forked",
    )


def default_host() -> Host:
    """The process's host, made on first use."""
    with _DEFAULT.lock:
        if _DEFAULT.host is None:
            _DEFAULT.host = Host()
        return _DEFAULT.host


def load_engine(
    model: str | Path,
    *,
    quant: str = "auto",
    device: str = "cpu",
    context: int | None = None,
    cache: bool = True,
    disk: bool = False,
) -> Engine:
    """Open a model for ids in, ids out; the caller closes it.

    Args:
        model: A catalog name, a directory, a GGUF file or a hub id.
        quant: ``auto``, ``fp32``, ``bf16``, ``int8`` or ``int4``.
        device: ``cpu``.
        context: Positions per request, the model's own where None.
        cache: Whether unpacked weights are kept on disk for the next start.
        disk: Whether layers may stay on disk where memory is short, which is slow.

    Raises:
        UsageError: Where the name means nothing or runs on another engine.
        ModelError: Where its files are missing or refused.
        PlanError: Where it does not fit.
    """
    host = Host(quant=quant, device=device, context=context, cache=cache, disk=disk)
    target = host.target(str(model))
    if target.engine is not None:
        raise UsageError(f"`{target.name}` runs on the engine {target.engine.prefix!r}; it has no ids")
    chosen = make_plan(target.name, target.path(), context=context, quant=quant, disk=disk).require()
    return host._engine(target.path(), chosen)[1]


def plan(
    model: str | Path | None = None,
    *,
    context: int | None = None,
    quant: str = "auto",
    devices: Sequence[Device] | None = None,
    max_pixels: int | None = None,
    audio_seconds: float | None = None,
    disk: bool = False,
) -> Plan:
    """How a model would be placed on this machine or on ``devices``: arithmetic over its sizes, no weights read.

    Raises:
        UsageError: Where the name means nothing, or ``devices`` are none.
        ModelError: Where its sizes are not catalogued and its files are not here, or are refused.
        PlanError: Where there is no device.
    """
    wishes = Wishes(context, quant, max_pixels, audio_seconds, disk)
    return default_host().plans([str(model) if model is not None else None], wishes, devices)[0]
