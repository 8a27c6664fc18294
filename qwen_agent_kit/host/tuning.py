"""What torch's libraries read from the environment when they are loaded, set where the user did not set it."""

from __future__ import annotations

import os

__all__ = ["tune"]

PRIMITIVES = "128"
"""Kernels that oneDNN keeps, one for each shape it met. Each takes some hundred KB, and prompts, media and batches come
in any number of rows: by its own measure, 1024, a process of many requests grows by a hundred MB and gains nothing."""


def tune() -> None:
    """Call it before torch is imported; later, what it sets may come too late to count."""
    # Threads that spin long at barriers collapse when another process takes a core, and those that never spin lose
    # a fifth on a quiet machine (docs/benchmarks.md).
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "3000")
    for name in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):  # oneDNN's own, and torch's above it
        os.environ.setdefault(name, PRIMITIVES)
