"""What this machine has: memory that can really be used, and cores."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Device", "Inventory", "inventory"]

_UNLIMITED = 1 << 60


@dataclass(frozen=True, slots=True)
class Device:
    """A place for weights and KV; ``free`` and ``total`` in bytes."""

    name: str
    kind: str
    free: int
    total: int

    def to_dict(self) -> dict[str, object]:
        return {"name": self.name, "kind": self.kind, "free": self.free, "total": self.total}


@dataclass(frozen=True, slots=True)
class Inventory:
    """The devices, and the threads that the process may use."""

    devices: tuple[Device, ...]
    threads: int


def inventory(proc: Path = Path("/proc"), cgroup: Path = Path("/sys/fs/cgroup")) -> Inventory:
    """What is here now: the CPU with the least of MemAvailable and the control group's limit."""
    total, free = _memory(proc)
    limit, used = _cgroup(cgroup)
    total = min(total, limit)
    free = max(0, min(free, limit - used))
    return Inventory((Device("cpu", "cpu", free, total),), _threads())


def _threads() -> int:
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS and Windows
        return os.cpu_count() or 1


def _memory(proc: Path) -> tuple[int, int]:
    try:
        lines = (proc / "meminfo").read_text().splitlines()
        rows = {key: int(rest.split()[0]) * 1024 for key, _, rest in (line.partition(":") for line in lines)}
        return rows["MemTotal"], rows.get("MemAvailable", rows["MemFree"])
    except (OSError, ValueError, KeyError, IndexError):
        return _memory_by_sysconf()


def _memory_by_sysconf() -> tuple[int, int]:
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        total = 8 * 2**30
    return total, total // 2


def _cgroup(root: Path) -> tuple[int, int]:
    """(limit, used) in bytes of version 2, else version 1; a limit nobody set is very large."""
    for limit, used in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        try:
            text = (root / limit).read_text().strip()
            if text == "max":
                return _UNLIMITED, 0
            return min(int(text), _UNLIMITED), int((root / used).read_text())
        except (OSError, ValueError):
            continue
    return _UNLIMITED, 0
