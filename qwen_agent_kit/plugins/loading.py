"""Imports the plugins of a kind and registers them with a fresh manager."""

from __future__ import annotations

import functools
import importlib
import inspect
import logging
import sys
import threading
from collections.abc import Collection, Iterable
from dataclasses import replace
from difflib import get_close_matches
from typing import Any

import pluggy

from qwen_agent_kit import hookspecs
from qwen_agent_kit.errors import PluginError, UsageError
from qwen_agent_kit.plugins.discovery import KINDS, Found, Lists, PluginRow, installed, normal
from qwen_agent_kit.plugins.guard import NotFinishedError, bounded, describe, guarded, time_limit

__all__ = ["API", "FailureError", "HOOKS", "Loaded", "load", "load_kinds", "switch_off"]

API = 1
HOOKS = frozenset(name for name, value in vars(hookspecs).items() if hasattr(value, f"{hookspecs.PROJECT}_spec"))
_REFERENCE = "compare it with docs/reference/hooks.md"
_HUNG = "__qak_import_did_not_finish__"
_log = logging.getLogger("qwen_agent_kit")


class FailureError(Exception):
    """A plugin cannot be used; becomes its row."""

    def __init__(self, state: str, error: str, cure: str) -> None:
        super().__init__(error)
        self.state, self.error, self.cure = state, error, cure


class Loaded:
    """The plugins of a kind: ``manager`` calls their hooks, ``rows`` say what became of each.

    A hook that fails later is reported into ``rows`` too, and once to the log. Thread-safe.
    """

    def __init__(self) -> None:
        self.manager = fresh_manager()
        self._lock = threading.Lock()
        self._rows: dict[str, PluginRow] = {}
        self._owners: dict[str, str] = {}
        self._conflicts: dict[str, PluginError] = {}

    @property
    def rows(self) -> tuple[PluginRow, ...]:
        """One row per distribution, and per plugin object that was passed in."""
        with self._lock:
            return tuple(self._rows.values())

    @property
    def conflicts(self) -> dict[str, PluginError]:
        """The contested names that were left out, casefolded, each with the error for whoever asks for it."""
        with self._lock:
            return dict(self._conflicts)

    def contested(self, name: str, error: PluginError, distributions: Iterable[str]) -> None:
        """Record that several distributions offer ``name``."""
        with self._lock:
            self._conflicts[name] = error
        for distribution in distributions:
            self.fail(distribution, "conflict", error.message, error.hint or "")

    def row(self, plugin: str) -> PluginRow:
        """The row of a plugin by its name in ``manager``."""
        with self._lock:
            return self._rows[self._owners[plugin]]

    def open_row(self, row: PluginRow) -> None:
        """Begin with a row."""
        with self._lock:
            self._rows[row.distribution] = row

    def fail(self, distribution: str, state: str, error: str, cure: str) -> None:
        """Record what is wrong with a distribution."""
        with self._lock:
            self._rows[distribution] = self._rows[distribution].failed(state, error, cure)

    def same_as(self, distribution: str, label: str) -> bool:
        """Give an object that is installed as well a row of its own: it counts once; False where that one failed."""
        with self._lock:
            row = self._rows[distribution]
            if row.ok:
                self._rows[label] = PluginRow(label, hooks=row.hooks)
            return row.ok

    def report(self, plugin: str, hook: str, error: str) -> None:
        """Record that a hook of ``plugin`` failed; the first time goes to the log as a warning."""
        row = self.row(plugin)
        _log.log(logging.DEBUG if row.error else logging.WARNING, "plugin %s: %s: %s", row.distribution, hook, error)
        self.fail(row.distribution, "hook", f"{hook}: {error}", switch_off(row.distribution))

    def register(self, plugin: Any, name: str, distribution: str) -> None:
        """Register ``plugin`` behind guards.

        Raises:
            FailureError: Where it does not fit the hook specifications.
        """
        with self._lock:
            self._owners[name] = distribution
        try:
            hooks = _verify(plugin, name)
            self.manager.register(guarded(plugin, self.manager, name, functools.partial(self.report, name)), name)
        except FailureError:
            raise
        except pluggy.PluginValidationError as error:
            raise FailureError("registration", str(error), _REFERENCE) from error
        except (Exception, SystemExit) as error:  # a stranger's object may raise anything when looked at
            raise FailureError("registration", describe(error), _REFERENCE) from error
        with self._lock:
            row = self._rows[distribution]
            self._rows[distribution] = replace(row, hooks=tuple(sorted({*row.hooks, *hooks})))


def fresh_manager() -> pluggy.PluginManager:
    """A manager that knows the hooks and no plugin."""
    manager = pluggy.PluginManager(hookspecs.PROJECT)
    manager.add_hookspecs(hookspecs)
    return manager


def load(kind: str, *, extra: Iterable[Any] = ()) -> Loaded:
    """The plugins of one kind, in a fresh manager.

    Only distributions that list ``kind``, and that the user's lists allow, are imported.

    Args:
        kind: One of ``KINDS``.
        extra: Plugin objects besides the installed ones; one that is installed as well counts once.

    Raises:
        UsageError: For an unknown kind.
        PluginError: Where an ``extra`` object does not fit the hooks; what is wrong with installed ones is a row.
    """
    if kind not in KINDS:
        raise UsageError(f"plugin kind is {kind!r}; allowed: {', '.join(KINDS)}")
    return load_kinds((kind,), extra=extra)


def load_kinds(kinds: Collection[str], *, extra: Iterable[Any] = (), names: Collection[str] | None = None) -> Loaded:
    """As ``load``, for several kinds at once; ``names`` limits it to entry points of these names."""
    loaded, lists, seconds = Loaded(), Lists.from_environment(), time_limit()
    taken: list[tuple[Any, str]] = []
    for found in installed(kinds):
        entries = [e for e in found.entries if e.kind in kinds and (names is None or e.name in names)]
        if names is not None and not entries:
            continue
        loaded.open_row(found.row())
        allowed = [entry for entry in entries if not lists.why_off(found.name, entry.name)]
        if not allowed and (reason := lists.why_off(found.name, entries[0].name if entries else "")):
            loaded.fail(found.name, "off", reason, "")
        if found.error:
            loaded.fail(found.name, "metadata", found.error, f"reinstall or update {found.name}")
        for value in dict.fromkeys(entry.value for entry in allowed):
            try:
                _add(loaded, found, value, taken, seconds)
            except FailureError as failure:
                loaded.fail(found.name, failure.state, failure.error, failure.cure)
    for plugin in extra:
        owner = next((name for other, name in taken if other is plugin), None)
        if owner is None or not loaded.same_as(owner, _label(plugin)):
            _add_extra(loaded, plugin)
    return loaded


def _add(loaded: Loaded, found: Found, value: str, taken: list[tuple[Any, str]], seconds: float) -> None:
    plugin = _import(found.name, value, seconds)
    owner = next((name for other, name in taken if other is plugin), None)
    if owner == found.name:
        return
    if owner is not None:
        raise FailureError("conflict", f"its module {value!r} belongs to {owner!r} as well", f"uninstall {found.name}")
    name = found.name if found.name not in (owner for _, owner in taken) else f"{found.name}:{value}"
    taken.append((plugin, found.name))
    loaded.register(plugin, name, found.name)


def _label(plugin: Any) -> str:
    return str(plugin.__name__ if inspect.ismodule(plugin) or inspect.isclass(plugin) else type(plugin).__name__)


def _add_extra(loaded: Loaded, plugin: Any) -> None:
    name = _label(plugin)
    while loaded.manager.has_plugin(name):
        name += "'"
    loaded.open_row(PluginRow(name))
    api = getattr(plugin, "QAK_API", API)
    try:
        _check_api(name, api)
        loaded.register(plugin, name, name)
    except FailureError as failure:
        raise PluginError(f"the plugin {name!r} cannot be used: {failure.error}", hint=failure.cure) from failure


def _verify(plugin: Any, name: str) -> tuple[str, ...]:
    """The hooks that ``plugin`` implements, once all of them fit; the manager that checks is thrown away."""
    scratch = fresh_manager()
    scratch.register(plugin, name)
    callers = [] if plugin is None else scratch.get_hookcallers(plugin) or []
    for caller in callers:
        if not caller.has_spec() and not all(impl.optionalhook for impl in caller.get_hookimpls()):
            close = get_close_matches(caller.name, HOOKS, 1)
            cure = f"rename it `{close[0]}`" if close else _REFERENCE
            raise FailureError("registration", f"it implements {caller.name!r}, which is no hook", cure)
    if not callers:
        raise FailureError("registration", "it implements no hook", "mark its hooks with `@hookimpl`")
    return tuple(caller.name for caller in callers)


def _import(distribution: str, value: str, seconds: float) -> Any:
    """The module, or the object in it, that an entry point names."""
    module_name, _, attribute = value.partition(":")
    if _hangs(module_name):
        raise FailureError("import", f"the import of {module_name!r} has not finished yet", switch_off(distribution))

    def work() -> Any:
        plugin: Any = importlib.import_module(module_name)
        _check_api(distribution, getattr(plugin, "QAK_API", None))
        for part in attribute.split(".") if attribute else ():
            plugin = getattr(plugin, part)
        return plugin

    outcome = bounded(work, seconds)
    if isinstance(outcome.error, FailureError):
        raise outcome.error
    if isinstance(outcome.error, NotFinishedError):
        _mark_hanging(module_name)
        raise FailureError("import", f"the import of {module_name!r} {outcome.error}", switch_off(distribution))
    if outcome.error is not None:
        cure = switch_off(distribution)
        if isinstance(outcome.error, ModuleNotFoundError) and outcome.error.name:
            cure = f"install what provides the module `{outcome.error.name}`, or {cure}"
        raise FailureError("import", describe(outcome.error), cure)
    return outcome.value


def _check_api(distribution: str, api: Any) -> None:
    if api is None:
        raise FailureError(
            "api", f"its module states no QAK_API; this kit speaks {API}", f"add `QAK_API = {API}` to it"
        )
    if isinstance(api, bool) or api != API:
        newer = isinstance(api, int) and api > API
        cure = "update qwen-agent-kit" if newer else f"update {distribution}"
        raise FailureError("api", f"its module states QAK_API = {api!r}; this kit speaks {API}", cure)


def _parents(module_name: str) -> list[str]:
    parts = module_name.split(".")
    return [".".join(parts[: n + 1]) for n in range(len(parts))]


def _mark_hanging(module_name: str) -> None:
    """Leave a mark on the half-imported module, so that the next load does not wait for it again."""
    for name in _parents(module_name):
        if name in sys.modules:
            vars(sys.modules[name])[_HUNG] = True


def _hangs(module_name: str) -> bool:
    for name in _parents(module_name):
        module = sys.modules.get(name)
        if module is not None and _HUNG in vars(module):
            return bool(getattr(getattr(module, "__spec__", None), "_initializing", False))
    return False


def switch_off(distribution: str) -> str:
    """The cure for what the user cannot mend."""
    return f"update {distribution}, or switch it off with QAK_PLUGINS_OFF={normal(distribution)}"
