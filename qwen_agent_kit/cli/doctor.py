"""``qak doctor``: what is installed, what works, what to do about the rest."""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import os
import platform
import shutil
import sys

import click

from qwen_agent_kit.cli.output import json_option, note, print_json, print_table, talk_only
from qwen_agent_kit.errors import QakError

__all__ = ["doctor_command"]

_NEEDED = {
    "torch": ("running models here", 'pip install "qwen-agent-kit[engine]"'),
    "llguidance": ("tool calls that cannot be malformed", 'pip install "qwen-agent-kit[engine]"'),
    "gguf": ("GGUF files", 'pip install "qwen-agent-kit[engine]"'),
}


@click.command("doctor")
@click.option("--cache", is_flag=True, help="Show what the caches hold.")
@json_option
def doctor_command(cache: bool, as_json: bool) -> int:
    """Check this installation; exit code 1 where something is broken."""
    with talk_only():  # what a plugin prints when imported is talk, not data
        rows = [*_base(), *_settings(), *_packages(), *_plugins(), *_models(), *_sessions()]
        if cache:
            rows += _caches()
    if as_json:
        print_json({"checks": [dict(zip(("what", "state", "found", "cure"), row, strict=True)) for row in rows]})
    else:
        print_table(("what", "state", "found", "cure"), rows)
        if wrong := [row[0] for row in rows if row[1] not in _FINE]:
            note(f"{len(wrong)} of {len(rows)} need attention: {', '.join(wrong)}")
    return 1 if any(row[1] not in _FINE for row in rows) else 0


_FINE = ("ok", "off", "missing")

_Row = tuple[str, str, str, str]


def _base() -> list[_Row]:
    from qwen_agent_kit.paths import cache_dir, data_dir
    from qwen_agent_kit.placement import inventory

    device = inventory().devices[-1]
    rows: list[_Row] = [
        ("python", "ok", f"{platform.python_version()} on {platform.machine()} {sys.platform}", ""),
        ("memory", "ok", f"{device.free / 2**30:.1f} GiB free of {device.total / 2**30:.1f}", ""),
        ("bandwidth", "ok", f"{_bandwidth() / 1e9:.0f} GB/s read from memory", ""),
    ]
    for name, make in (("data", data_dir), ("cache", cache_dir)):
        try:
            path = make()
            writable = os.access(path, os.W_OK)
            free = shutil.disk_usage(path).free / 2**30
            state, cure = ("ok", "") if writable else ("broken", "set QAK_HOME to a directory you can write")
            rows.append((f"{name} directory", state, f"{path} ({free:.1f} GiB free)", cure))
        except QakError as error:
            rows.append((f"{name} directory", "broken", error.message, error.hint or ""))
    return rows


def _bandwidth() -> float:
    """What was measured before, else measured now and kept: plans are better for it."""
    from qwen_agent_kit.placement import inventory
    from qwen_agent_kit.placement.measured import Measured, measure_bandwidth, read_measured, write_measured

    known = read_measured()
    if known is not None and known.bandwidth:
        return known.bandwidth
    found = measure_bandwidth(inventory().threads)
    with contextlib.suppress(QakError, OSError):  # the row of the cache directory says what is wrong
        write_measured(Measured(bandwidth=found))
    return found


def _settings() -> list[_Row]:
    from qwen_agent_kit.settings import config_path, load_settings

    try:
        here = config_path().is_file()
        said = {name: value for name, value in load_settings().to_dict().items() if value is not None}
    except QakError as error:
        return [("settings", "broken", error.message, error.hint or "mend config.toml or the environment")]
    values = ", ".join(f"{name}={value}" for name, value in said.items()) or "none set"
    return [("settings", "ok", f"{values} ({config_path() if here else 'no config.toml'})", "")]


def _packages() -> list[_Row]:
    rows: list[_Row] = []
    for name, (what, cure) in _NEEDED.items():
        if importlib.util.find_spec(name) is None:
            rows.append((name, "missing", f"needed for {what}", cure))
            continue
        try:
            importlib.import_module(name)
            rows.append((name, "ok", importlib.metadata.version(name), ""))
        except Exception as error:  # noqa: BLE001  # a broken installation may raise anything; that is what is asked
            told = (str(error).splitlines() or [""])[0][:200]
            rows.append(
                (name, "broken", f"does not import: {type(error).__name__}: {told}", f"install it anew: {cure}")
            )
    return rows


def _plugins() -> list[_Row]:
    from qwen_agent_kit.cli import CORE_COMMANDS
    from qwen_agent_kit.plugins import inventory

    return [
        (f"plugin {row.distribution}", row.state, row.error or row.version, row.cure)
        for row in inventory(core_commands=CORE_COMMANDS)
    ]


def _models() -> list[_Row]:
    from qwen_agent_kit.host import Host

    try:
        entries = Host().entries
    except QakError as error:
        return [("models", "broken", error.message, error.hint or "")]
    rows: list[_Row] = []
    for entry in entries:
        try:
            path = entry.locate() if entry.locate else None
        except Exception as error:  # noqa: BLE001  # a plugin's function may raise anything; it is a row, not a crash
            rows.append((f"model {entry.name}", "broken", f"locate raised {type(error).__name__}", "mend its plugin"))
            continue
        rows.append((f"model {entry.name}", *(("ok", str(path), "") if path else ("missing", "not here", entry.hint))))
    return rows


def _sessions() -> list[_Row]:
    """Whether the conversations can be read, where there are any."""
    from qwen_agent_kit.paths import data_dir
    from qwen_agent_kit.store import Store

    try:
        if not (data_dir("sessions") / "store.sqlite3").exists():
            return []
        return [("sessions", "ok", f"{len(Store().list())} conversations", "")]
    except QakError as error:
        return [("sessions", "broken", error.message, error.hint or "")]


def _caches() -> list[_Row]:
    from qwen_agent_kit.paths import cache_dir

    rows: list[_Row] = []
    try:
        folders = sorted(path for path in cache_dir().iterdir() if path.is_dir())
    except (QakError, OSError):
        return []  # the row of the cache directory says what is wrong
    for folder in folders:
        files = [file for file in folder.rglob("*") if file.is_file()]
        size = sum(file.stat().st_size for file in files)
        cure = f"delete {folder.name}/ to make it anew" if files else ""
        rows.append((f"cache {folder.name}", "ok", f"{len(files)} files, {size / 2**20:.1f} MiB in {folder}", cure))
    return rows
