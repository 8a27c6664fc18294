"""How torch is loaded: what its libraries read from the environment, set where the user did not, and undisturbed."""

from __future__ import annotations

import contextlib
import gc
import os
from collections.abc import Iterator

__all__ = ["own_process", "tune", "undisturbed"]

PRIMITIVES = "128"
"""Kernels that oneDNN keeps, one for each shape it met. Each takes some hundred KB, and prompts, media and batches come
in any number of rows: by its own measure, 1024, a process of many requests grows by a hundred MB and gains nothing."""


_OWN: list[bool] = []
"""Not empty where the process is the kit's own."""


def own_process() -> None:
    """Say that the process is the kit's own, as a command's is.

    What there is when a model was opened is then never walked again. In another's process that would keep what becomes
    garbage later.
    """
    _OWN.append(True)


def tune() -> None:
    """Call it before torch is imported; later, what it sets may come too late to count."""
    # Threads that spin long at barriers collapse when another process takes a core, and those that never spin lose
    # a fifth on a quiet machine (docs/benchmarks.md).
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "3000")
    for name in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):  # oneDNN's own, and torch's above it
        os.environ.setdefault(name, PRIMITIVES)


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Without the collector of cycles.

    Torch's modules are hundreds of thousands of objects that all stay; walking them again and again while they are made
    took a sixth of the time to the first token.
    """
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if _OWN:
            gc.freeze()
        if was:
            gc.enable()
