"""What plugins offer: backends, models, engines, tools and commands, collected one plugin at a time."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Iterable
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from qwen_agent_kit.errors import PluginError
from qwen_agent_kit.plugins.discovery import KINDS, Lists, PluginRow, command_holders, installed
from qwen_agent_kit.plugins.guard import bounded, describe, time_limit
from qwen_agent_kit.plugins.loading import Loaded, load_kinds, switch_off

if TYPE_CHECKING:
    import click

__all__ = ["call_list", "command", "inventory"]

T = TypeVar("T")


def call_list(loaded: Loaded, hook: str, expected: type[T], *, strict: bool = True) -> list[T]:
    """All that the plugins offer through a ``register_`` hook.

    A plugin whose hook raises, hangs or returns anything but a list of ``expected`` offers nothing and has a row.

    Args:
        loaded: The plugins of the kind.
        hook: ``register_backends``, ``register_models``, ``register_engines`` or ``register_tools``.
        expected: The class of the items.
        strict: Whether a name that two offers share is raised. Where False, neither is offered, both have a row, and
            ``loaded.conflicts`` has the error for whoever asks for that name.

    Raises:
        PluginError: Where two offers share a name; it names both distributions.
    """
    offers: list[tuple[str, T]] = []
    for plugin, value in _each(loaded, hook):
        problem = _problem(hook, value, expected)
        if problem:
            loaded.report(plugin, hook, problem)
        else:
            offers += [(plugin, item) for item in value or ()]
    return _without_contested(loaded, offers, strict)


def _each(loaded: Loaded, hook: str) -> Iterable[tuple[str, Any]]:
    """Each plugin and what its hook returned; a hook that failed is reported and left out."""
    seconds = time_limit()
    for implementation in getattr(loaded.manager.hook, hook).get_hookimpls():
        outcome = bounded(implementation.function, seconds)
        if outcome.error is None:
            yield implementation.plugin_name, outcome.value
        else:
            loaded.report(implementation.plugin_name, hook, describe(outcome.error))


def _problem(hook: str, value: Any, expected: type[Any]) -> str:
    """What is wrong with the value of a ``register_`` hook, "" where nothing is."""
    if inspect.iscoroutine(value):
        value.close()
        return f"`{hook}` is async; hooks are plain functions"
    if value is not None and not isinstance(value, list | tuple):
        return f"`{hook}` returned a {type(value).__name__}; allowed: a list of {expected.__name__}"
    for item in value or ():
        if not isinstance(item, expected):
            return f"`{hook}` returned a list with a {type(item).__name__} in it; allowed: {expected.__name__}"
        if not isinstance(_own_name(item), str) or not _own_name(item):
            return f"`{hook}` returned a {expected.__name__} whose name is {_own_name(item)!r}; allowed: a string"
    return ""


def _own_name(item: Any) -> Any:
    return getattr(item, "prefix", None) or getattr(item, "name", "")


def _names(item: Any) -> set[str]:
    """The names that an offer takes, as they are compared."""
    return {str(name).casefold() for name in (_own_name(item), *getattr(item, "aliases", ()))}


def _without_contested(loaded: Loaded, offers: list[tuple[str, T]], strict: bool) -> list[T]:
    holders: dict[str, list[tuple[str, T]]] = {}
    for plugin, item in offers:
        for name in _names(item):
            holders.setdefault(name, []).append((plugin, item))
    contested: list[Any] = []
    for name, sharing in holders.items():
        if len(sharing) == 1:
            continue
        contested += [item for _, item in sharing]
        rows = [loaded.row(plugin) for plugin, _ in sharing]
        error = _contest(type(sharing[0][1]).__name__, name, rows)
        if strict:
            raise error
        loaded.contested(name, error, [row.distribution for row in rows])
    return [item for _, item in offers if not any(item is other for other in contested)]


def _contest(what: str, name: str, rows: list[PluginRow]) -> PluginError:
    """The error that names everybody who offers ``name``; the order of discovery decides nothing."""
    shown = list(dict.fromkeys(f"{row.distribution} {row.version}".strip() for row in rows))
    who = f"{shown[0]!r} offers it twice" if len(shown) == 1 else f"offered by {' and '.join(map(repr, shown))}"
    return PluginError(
        f"the {what} name {name!r} is not unique: {who}",
        hint=f"uninstall one, or switch it off, as in QAK_PLUGINS_OFF={rows[-1].distribution}",
        code="plugin_conflict",
    )


# --- commands ----------------------------------------------------------------------------------------------------


def command(name: str) -> click.Command | None:
    """The command of a plugin, None where none lists it. Only the distribution that lists it is imported.

    The plugin registers into a group of its own, so that it can neither replace nor see another's command.

    Raises:
        PluginError: Where two distributions list it, or the one that does cannot deliver it.
    """
    rows = command_holders().get(name)
    if not rows:
        return None
    if len(rows) > 1:
        raise _contest("command", name, rows)
    loaded = load_kinds(("commands",), names=(name,))
    for group in _registered(loaded).values():
        if name in group.commands:
            return group.commands[name]
    row = loaded.rows[0] if loaded.rows else rows[0]
    raise PluginError(
        f"{row.distribution!r} lists the command {name!r} and does not deliver it: {row.error or 'it registers none'}",
        hint=row.cure or switch_off(row.distribution),
    )


def _registered(loaded: Loaded) -> dict[str, click.Group]:
    """What each distribution registers, in a group of its own."""
    import click

    groups: dict[str, click.Group] = {}
    seconds = time_limit()
    for implementation in loaded.manager.hook.register_commands.get_hookimpls():
        group = groups.setdefault(loaded.row(implementation.plugin_name).distribution, click.Group())
        arguments = (group,) if implementation.argnames else ()
        outcome = bounded(partial(implementation.function, *arguments), seconds)
        if outcome.error is not None:
            loaded.report(implementation.plugin_name, "register_commands", describe(outcome.error))
    return groups


# --- everything, for those who look for faults -------------------------------------------------------------------


def inventory(*, core_commands: Collection[str] = (), extra: Iterable[Any] = ()) -> tuple[PluginRow, ...]:
    """A row per installed plugin: every kind imported, every ``register_`` hook called once.

    Args:
        core_commands: The commands that no plugin can take over.
        extra: Plugin objects besides the installed ones.
    """
    from qwen_agent_kit.backends import Backend, EngineSpec
    from qwen_agent_kit.catalog import ModelEntry
    from qwen_agent_kit.tools import Tool

    loaded = load_kinds(KINDS, extra=extra)
    items: tuple[tuple[str, type[Any]], ...] = (
        ("register_backends", Backend),
        ("register_models", ModelEntry),
        ("register_engines", EngineSpec),
        ("register_tools", Tool),
    )
    for hook, expected in items:
        call_list(loaded, hook, expected, strict=False)
    _check_commands(loaded, core_commands)
    _check_kinds(loaded)
    return (*loaded.rows, *Lists.from_environment().unknown(installed()))


def _check_commands(loaded: Loaded, core: Collection[str]) -> None:
    registered = {distribution: set(group.commands) for distribution, group in _registered(loaded).items()}
    for name, rows in command_holders().items():
        for row in rows:
            if name in core:
                error = f"its command {name!r} has the name of one of the core's, which is the one that runs"
                loaded.fail(
                    row.distribution, "conflict", error, f"rename the entry point, or ask {row.distribution} to"
                )
            elif len(rows) > 1:
                contest = _contest("command", name, rows)
                loaded.fail(row.distribution, "conflict", contest.message, contest.hint or "")
            elif row.distribution in registered and name not in registered[row.distribution]:
                error = f"it lists the command {name!r} and registers {sorted(registered[row.distribution])}"
                loaded.fail(row.distribution, "registration", error, switch_off(row.distribution))


def _check_kinds(loaded: Loaded) -> None:
    """A hook whose kind is not listed would never be called."""
    for row in loaded.rows:
        if not row.kinds:
            continue
        for hook in row.hooks:
            kind = hook.removeprefix("register_") if hook.startswith("register_") else "hooks"
            if kind not in row.kinds:
                error = f"it implements `{hook}` and is not listed under `qwen_agent_kit.{kind}`"
                loaded.fail(row.distribution, "registration", error, "add the entry point to its pyproject.toml")
