"""What was measured on this machine: memory bandwidth, and how our kernels use it. Kept in the cache, made once.

The bandwidth is measured here with numpy; what kernels reach is measured by whoever owns them (``qak bench placement``)
and written with ``write_measured``. Nothing here is ever measured behind a user's back while a plan is printed.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from qwen_agent_kit.errors import QakError
from qwen_agent_kit.paths import cache_dir, write_private
from qwen_agent_kit.placement.hardware import Speed

__all__ = ["Measured", "measure_bandwidth", "read_measured", "write_measured"]

_FILE = "machine.json"
_VERSION = 1
_BYTES = 2**28


@dataclass(frozen=True, slots=True)
class Measured:
    """What is known of this machine.

    Args:
        bandwidth: Bytes a second that all threads together read from memory, 0 where not measured.
        compute: Operations a second in bfloat16 that prefill reaches, 0 where not measured.
        speeds: By scheme, on the CPU.
    """

    bandwidth: float = 0.0
    compute: float = 0.0
    speeds: Mapping[str, Speed] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        speeds = {
            name: {"stream": s.stream, "layer_us": s.layer_us, "token_us": s.token_us, "compute": s.compute}
            for name, s in self.speeds.items()
        }
        return {"version": _VERSION, "bandwidth": self.bandwidth, "compute": self.compute, "speeds": speeds}


def read_measured() -> Measured | None:
    """What the cache holds, None where nothing was measured or it cannot be read."""
    try:
        data = json.loads((cache_dir("placement") / _FILE).read_bytes())
        if data["version"] != _VERSION:
            return None
        speeds = {str(k): Speed(**{n: float(x) for n, x in v.items()}) for k, v in data["speeds"].items()}
        return Measured(float(data["bandwidth"]), float(data["compute"]), speeds)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, QakError):
        return None


def write_measured(found: Measured) -> None:
    """Keep ``found`` beside what is known: bandwidths and rates of 0 and missing schemes leave the old ones.

    Raises:
        OSError: Where the cache cannot be written.
        UsageError: Where there is no cache directory.
    """
    if (old := read_measured()) is not None:
        found = replace(
            found,
            bandwidth=found.bandwidth or old.bandwidth,
            compute=found.compute or old.compute,
            speeds={**old.speeds, **found.speeds},
        )
    write_private(cache_dir("placement") / _FILE, json.dumps(found.to_dict()).encode())


def measure_bandwidth(threads: int, *, size: int = _BYTES, rounds: int = 5) -> float:
    """Bytes a second that ``threads`` threads read together from memory too large for the caches; the best round.

    Takes about a quarter of a second. numpy's reductions release the interpreter's lock, so threads run side by side.
    """
    from concurrent.futures import ThreadPoolExecutor

    import numpy as np

    part = size // max(1, threads) // 8
    parts = [np.ones(part, dtype=np.int64) for _ in range(max(1, threads))]
    best = 0.0
    with ThreadPoolExecutor(max(1, threads)) as pool:
        for _ in range(rounds):
            start = time.perf_counter()
            list(pool.map(lambda array: int(np.bitwise_or.reduce(array)), parts))
            best = max(best, sum(array.nbytes for array in parts) / (time.perf_counter() - start))
    return best
