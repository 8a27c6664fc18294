"""What is kept of a load takes its own bytes, whatever was made and dropped between."""

from __future__ import annotations

import platform
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from qwen_agent_kit.models.heap import gathered


def anonymous() -> int:
    """Bytes of this process that no file holds."""
    rows = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(rows["RssAnon"].split()[0]) * 1024


def made() -> Iterator[tuple[str, torch.Tensor]]:
    """100 small tensors to keep, each made between two large ones that are gone when the last of them is handed out."""
    torch.ones(2**21)  # from now on glibc takes what is smaller from its heap
    large, small = [], []
    for _ in range(100):
        large.append(torch.ones(2**19))
        small.append(torch.ones(2**14))
    large.clear()
    yield from ((str(n), tensor) for n, tensor in enumerate(small))


@pytest.mark.skipif(
    not sys.platform.startswith("linux") or platform.libc_ver()[0] != "glibc", reason="the heap is glibc's"
)
def test_gaps_are_given_back() -> None:
    """6.5 MB are kept of 216: the process grows by little more."""
    before = anonymous()
    kept = gathered(made())
    grown = anonymous() - before
    assert sum(tensor.nbytes for tensor in kept.values()) == 100 * 2**16
    assert grown < 32 * 2**20
