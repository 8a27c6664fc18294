"""``qak doctor``: what is installed, what works, what to do about the rest."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import shutil
import sys
from pathlib import Path

import click

from qwen_agent_kit.cli.output import json_option, print_json, print_table
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
    rows = [*_base(), *_packages(), *_plugins(), *_models()]
    if cache:
        rows += _caches()
    if as_json:
        print_json({"checks": [dict(zip(("what", "state", "found", "cure"), row, strict=True)) for row in rows]})
    else:
        print_table(("what", "state", "found", "cure"), rows)
    return 1 if any(row[1] not in _FINE for row in rows) else 0


_FINE = ("ok", "off", "missing")

_Row = tuple[str, str, str, str]


def _base() -> list[_Row]:
    from qwen_agent_kit.paths import cache_dir, data_dir
    from qwen_agent_kit.placement import inventory

    device = inventory().devices[0]
    rows: list[_Row] = [
        ("python", "ok", f"{platform.python_version()} on {platform.machine()} {sys.platform}", ""),
        ("memory", "ok", f"{device.free / 2**30:.1f} GiB free of {device.total / 2**30:.1f}", ""),
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


def _packages() -> list[_Row]:
    rows: list[_Row] = []
    for name, (what, cure) in _NEEDED.items():
        if importlib.util.find_spec(name) is None:
            rows.append((name, "missing", f"needed for {what}", cure))
        else:
            rows.append((name, "ok", importlib.metadata.version(name), ""))
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
        path = entry.locate() if entry.locate else None
        rows.append((f"model {entry.name}", "ok" if path else "missing", str(path or "not here"), entry.hint))
    return rows


def _caches() -> list[_Row]:
    from qwen_agent_kit.paths import cache_dir

    rows: list[_Row] = []
    for folder in sorted(path for path in cache_dir().iterdir() if path.is_dir()):
        files = [file for file in folder.rglob("*") if file.is_file()]
        size = sum(file.stat().st_size for file in files)
        rows.append(
            (f"cache {folder.name}", "ok", f"{len(files)} files, {size / 2**20:.1f} MiB in {folder}", _clear(folder))
        )
    return rows


def _clear(folder: Path) -> str:
    return f"delete {folder.name}/ to make it anew" if any(folder.iterdir()) else ""
