"""Which plugins are installed and allowed, read from metadata alone: nothing of a plugin is imported here."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from importlib.metadata import Distribution

__all__ = [
    "Entry",
    "Found",
    "KINDS",
    "Lists",
    "PluginRow",
    "command_holders",
    "command_names",
    "installed",
    "normal",
    "one_line",
]

KINDS = ("backends", "models", "engines", "tools", "commands", "hooks")
ALLOW, DENY = "QAK_PLUGINS", "QAK_PLUGINS_OFF"
_PREFIX = "qwen_agent_kit."
_GROUP = re.compile(r"^\s*\[\s*qwen_agent_kit\.([^\]\s]*)\s*\]", re.MULTILINE)
_VALUE = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*(:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*)?")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True, slots=True)
class PluginRow:
    """What became of one distribution.

    Args:
        distribution: Its name, or the name of a plugin object that was passed in.
        version: As its metadata says, "" where they say none.
        kinds: The kinds it lists itself under.
        hooks: The hooks it implements; empty where it was not imported.
        state: ``ok``; ``off`` (a list of the user's excludes it); ``missing`` (a list names it, it is not installed);
            or what failed: ``metadata``, ``import``, ``api``, ``registration``, ``hook`` or ``conflict``.
        error: What is wrong, one line.
        cure: What to do about it, one line.
    """

    distribution: str
    version: str = ""
    kinds: tuple[str, ...] = ()
    hooks: tuple[str, ...] = ()
    state: str = "ok"
    error: str = ""
    cure: str = ""

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong; a plugin that was switched off is not wrong."""
        return self.state in ("ok", "off")

    def failed(self, state: str, error: str, cure: str) -> PluginRow:
        """The row with a failure; the first failure of a plugin is the one that is kept."""
        return self if self.error else replace(self, state=state, error=one_line(error), cure=cure)

    def to_dict(self) -> dict[str, Any]:
        """JSON data."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry point: ``value`` is ``module`` or ``module:attribute``."""

    kind: str
    name: str
    value: str


@dataclass(frozen=True, slots=True)
class Found:
    """A distribution that lists itself in one of the groups; ``error`` where its metadata are broken."""

    name: str
    version: str
    kinds: tuple[str, ...]
    entries: tuple[Entry, ...]
    error: str = ""

    def row(self) -> PluginRow:
        """The row to begin with."""
        return PluginRow(self.name, self.version, self.kinds)


@dataclass(frozen=True, slots=True)
class Lists:
    """The user's allow and deny lists: names of distributions or of entry points, separated by commas or spaces.

    ``QAK_PLUGINS`` set to nothing allows none; unset, it allows all. The deny list has the last word.
    """

    allow: frozenset[str] | None
    deny: frozenset[str]

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Lists:
        """The lists that the environment states."""
        allow = environment.get(ALLOW)
        return cls(None if allow is None else _names(allow), _names(environment.get(DENY, "")))

    def why_off(self, distribution: str, entry: str) -> str:
        """Which list keeps an entry point out, "" where none does."""
        names = {normal(distribution), normal(entry)}
        if names & self.deny:
            return f"named in {DENY}"
        return "" if self.allow is None or names & self.allow else f"not named in {ALLOW}"

    def unknown(self, found: Iterable[Found]) -> list[PluginRow]:
        """A row for each name that fits nothing installed."""
        here: set[str] = set()
        for one in found:
            here |= {normal(one.name), *(normal(entry.name) for entry in one.entries)}
        rows = []
        for variable, names in ((ALLOW, self.allow or frozenset()), (DENY, self.deny)):
            for name in sorted(names - here):
                error = f"{variable} names {name!r}, which is no installed plugin"
                rows.append(PluginRow(name).failed("missing", error, f"install it or take it out of {variable}"))
        return rows


def normal(name: str) -> str:
    """A name as PEP 503 compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def one_line(text: str, most: int = 300) -> str:
    """``text`` on one line of printable characters, cut at ``most``."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return line if len(line) <= most else f"{line[: most - 1]}…"


def _names(text: str) -> frozenset[str]:
    return frozenset(normal(name) for name in re.split(r"[\s,;]+", text) if name)


def installed(kinds: Collection[str] = KINDS) -> list[Found]:
    """The distributions that list themselves under one of ``kinds``, by name; of two copies the importable one.

    Only ``entry_points.txt`` of each distribution is read, and METADATA of those that name a group of ours.
    """
    from importlib import metadata

    found: dict[str, Found] = {}
    for distribution in metadata.distributions():
        text = _entry_points_text(distribution)
        if _PREFIX not in text or not _GROUP.search(text):
            continue
        one = _read(distribution, text)
        found.setdefault(normal(one.name), one)
    known = [one for one in found.values() if set(one.kinds) & set(kinds) or not set(one.kinds) <= set(KINDS)]
    return sorted(known, key=lambda one: normal(one.name))


def _entry_points_text(distribution: Distribution) -> str:
    try:
        return distribution.read_text("entry_points.txt") or ""
    except (OSError, UnicodeDecodeError):
        # Not readable as text, so it cannot be told whose plugin it is; the installer of it has the say.
        return ""


def _read(distribution: Distribution, text: str) -> Found:
    kinds = tuple(dict.fromkeys(_GROUP.findall(text)))
    name, version, error = _identity(distribution)
    entries: list[Entry] = []
    try:
        points = [point for point in distribution.entry_points if point.group.startswith(_PREFIX)]
    except (TypeError, ValueError, AttributeError) as broken:
        # What importlib.metadata raises for a line that is no `name = value` differs between Python versions.
        return Found(name, version, kinds, (), error or f"its entry_points.txt cannot be read: {broken}")
    for point in points:
        kind = point.group.removeprefix(_PREFIX)
        if kind not in KINDS:
            error = error or f"it lists itself under {point.group!r}; known: {', '.join(_PREFIX + k for k in KINDS)}"
        elif not _NAME.fullmatch(point.name) or not _VALUE.fullmatch(point.value):
            shown = f"{point.name} = {point.value}"
            error = error or f"its entry point {shown!r} is not `name = module` or `name = module:attribute`"
        else:
            entries.append(Entry(kind, point.name, point.value))
    return Found(name, version, kinds, tuple(entries), error)


def _identity(distribution: Distribution) -> tuple[str, str, str]:
    """Name, version, and what is wrong with them."""
    folder = os.path.basename(str(getattr(distribution, "_path", "")))
    try:
        told = distribution.metadata
        name, version = told["Name"], told["Version"]
    except (TypeError, ValueError, KeyError, OSError, AttributeError):
        name, version = "", ""
    if not _NAME.fullmatch(name or ""):  # a missing field reads None, whatever the stubs say
        return folder.split("-")[0] or "unknown", "", f"its METADATA in {folder!r} state no name"
    return name, version or "", ""


def command_holders() -> dict[str, list[PluginRow]]:
    """Command names, each with the distributions that list it and are allowed; more than one quarrel over it."""
    lists = Lists.from_environment()
    holders: dict[str, list[PluginRow]] = {}
    for found in installed(("commands",)):
        for entry in found.entries:
            if entry.kind == "commands" and not lists.why_off(found.name, entry.name):
                holders.setdefault(entry.name, []).append(found.row())
    return holders


def command_names() -> dict[str, str]:
    """The commands that plugins add, each with its distribution (several, where they quarrel); imports none."""
    return {name: " and ".join(row.distribution for row in rows) for name, rows in sorted(command_holders().items())}
