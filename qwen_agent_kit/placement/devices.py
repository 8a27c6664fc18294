"""What this machine has: memory that can really be used, bandwidth, cores, instruction sets."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qwen_agent_kit.placement.hardware import cpu_figures, gpu_figures
from qwen_agent_kit.placement.measured import Measured, read_measured

__all__ = ["Device", "Inventory", "KINDS", "inventory"]

KINDS = ("cpu", "cuda", "mps", "disk")

_UNLIMITED = 1 << 60
_ISA = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16", "asimd", "asimddp", "bf16", "i8mm")
_PROC = Path("/proc")
_GROUPS = Path("/sys/fs/cgroup")


@dataclass(frozen=True, slots=True)
class Device:
    """A place for weights and KV.

    Args:
        name: ``cpu``, ``cuda:0``, ``disk``.
        kind: ``cpu``, ``cuda``, ``mps`` or ``disk``.
        free: Bytes that may be taken now.
        total: Bytes that it has.
        bandwidth: Bytes a second that can be read from it, 0 for the built-in figure.
        compute: Operations a second in bfloat16, 0 for the built-in figure.
        label: What it is called by its maker.
        measured: Whether bandwidth was measured here.
    """

    name: str
    kind: str
    free: int
    total: int
    bandwidth: float = 0.0
    compute: float = 0.0
    label: str = ""
    measured: bool = False

    def to_dict(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "kind": self.kind,
            "free": self.free,
            "total": self.total,
            "bandwidth": self.bandwidth,
            "compute": self.compute,
            "label": self.label,
            "measured": self.measured,
        }


@dataclass(frozen=True, slots=True)
class Inventory:
    """The devices, and what else a plan turns on.

    Args:
        devices: Where weights and KV can go.
        threads: That the process may use.
        isa: Instruction sets of the CPU that matter here.
        disk: Free bytes where models are kept.
        measured: What was measured on this machine, None where nothing was.
    """

    devices: tuple[Device, ...]
    threads: int
    isa: tuple[str, ...] = ()
    disk: int = 0
    measured: Measured | None = None


def inventory(proc: Path = _PROC, cgroup: Path = _GROUPS) -> Inventory:
    """What is here now: the CPU with the least of MemAvailable and every limit, and the accelerators."""
    total, free = _memory(proc)
    limit, used = _cgroup(cgroup, proc)
    total = min(total, limit)
    free = max(0, min(free, limit - used))
    if proc == _PROC:
        free = min(free, _process_room())
    threads, isa, known = _threads(), _instructions(proc), read_measured()
    bandwidth, compute = cpu_figures(threads, isa)
    found = known is not None and known.bandwidth > 0
    bandwidth = known.bandwidth if known is not None and found else bandwidth
    cpu = Device("cpu", "cpu", free, total, bandwidth, compute, _cpu_name(proc), found)
    return Inventory((*_cuda(), *_mps(free, total), cpu), threads, isa, _disk(), known)


def _threads() -> int:
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS and Windows
        return os.cpu_count() or 1


def _instructions(proc: Path) -> tuple[str, ...]:
    flags: set[str] = set()
    try:
        for line in (proc / "cpuinfo").read_text(errors="replace").splitlines():
            if line.lower().startswith(("flags", "features")):
                flags = set(line.partition(":")[2].split())
                break
    except OSError:
        pass  # not Linux: nothing is known
    return tuple(name for name in _ISA if name in flags)


def _cpu_name(proc: Path) -> str:
    try:
        lines = (proc / "cpuinfo").read_text(errors="replace").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")


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


def _cgroup(root: Path, proc: Path) -> tuple[int, int]:
    """(limit, used) of the tightest control group that this process is in, of version 2 and 1.

    A group's parents bind as well; inside a container the root is often all that can be seen.
    """
    tightest, room = (_UNLIMITED, 0), _UNLIMITED
    for limit, used in _group_files(root, proc):
        try:
            text = limit.read_text().strip()
            most = _UNLIMITED if text == "max" else min(int(text), _UNLIMITED)
            taken = 0 if most == _UNLIMITED else _group_used(used)
        except (OSError, ValueError):
            continue
        if most - taken < room:
            tightest, room = (most, taken), most - taken
    return tightest


def _group_used(file: Path) -> int:
    """Bytes of a group that cannot be reclaimed at once: cached files are given back when memory is asked for."""
    used = int(file.read_text())
    try:
        rows = dict(line.split() for line in (file.parent / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):
        return used
    cached = rows.get("inactive_file", rows.get("total_inactive_file", 0))
    return max(0, used - int(cached))


def _group_files(root: Path, proc: Path) -> list[tuple[Path, Path]]:
    two, one = [Path()], [Path()]
    try:
        lines = (proc / "self" / "cgroup").read_text().splitlines()
    except OSError:
        lines = []
    for line in lines:
        _, names, path = line.split(":", 2)
        inside = Path(path.lstrip("/"))
        if names == "":
            two += [inside, *inside.parents]
        elif "memory" in names.split(","):
            one += [inside, *inside.parents]
    second = [(root / p / "memory.max", root / p / "memory.current") for p in two]
    first = [
        (root / "memory" / p / "memory.limit_in_bytes", root / "memory" / p / "memory.usage_in_bytes") for p in one
    ]
    return [*second, *first]


def _process_room() -> int:
    """What ``ulimit -d`` and ``ulimit -v`` leave this process."""
    try:
        import resource

        rows = dict(
            line.split(":", 1) for line in (_PROC / "self" / "status").read_text().splitlines() if line[:2] == "Vm"
        )
    except (ImportError, OSError, ValueError):
        return _UNLIMITED
    room = _UNLIMITED
    for which, row in ((resource.RLIMIT_DATA, "VmData"), (resource.RLIMIT_AS, "VmSize")):
        soft = resource.getrlimit(which)[0]
        if soft != resource.RLIM_INFINITY and row in rows:
            room = min(room, max(0, soft - int(rows[row].split()[0]) * 1024))
    return room


def _disk() -> int:
    from qwen_agent_kit.errors import QakError
    from qwen_agent_kit.paths import cache_dir

    try:
        return shutil.disk_usage(cache_dir()).free
    except (QakError, OSError):
        return 0


def _cuda() -> tuple[Device, ...]:
    """NVIDIA cards, through nvidia-ml-py where it is installed (extra ``cuda``)."""
    if not Path("/proc/driver/nvidia").exists() and sys.platform.startswith("linux"):
        return ()
    try:
        import pynvml
    except ImportError:
        return ()
    found = []
    try:
        pynvml.nvmlInit()
        for i in range(pynvml.nvmlDeviceGetCount()):
            handle = pynvml.nvmlDeviceGetHandleByIndex(i)
            memory, name = pynvml.nvmlDeviceGetMemoryInfo(handle), pynvml.nvmlDeviceGetName(handle)
            label = name.decode() if isinstance(name, bytes) else str(name)
            bandwidth, compute = gpu_figures(label, memory.total)
            found.append(Device(f"cuda:{i}", "cuda", int(memory.free), int(memory.total), bandwidth, compute, label))
        pynvml.nvmlShutdown()
    except pynvml.NVMLError:
        return ()  # no driver, or it does not answer
    return tuple(found)


def _mps(free: int, total: int) -> tuple[Device, ...]:
    """Apple's unified memory: the GPU may take about three quarters of it, out of the same bytes as the CPU."""
    if (platform.system(), platform.machine()) != ("Darwin", "arm64"):
        return ()
    return (Device("mps", "mps", min(free, total * 3 // 4), total, 100e9, 5e12, "Apple GPU"),)
