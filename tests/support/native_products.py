"""Run as a script: holds every kernel against dequantise-and-matmul and prints the worst errors as JSON.

It is a process of its own because a wrong kernel may end it.
"""

from __future__ import annotations

import json
import sys

import torch
from native_reference import rounded_rows

from qwen_agent_kit.models.native.library import KINDS, Library, MatrixStruct

SHAPES = [(1, 1), (7, 64), (16, 32), (17, 31), (33, 100), (48, 129), (65, 576), (129, 3420), (31, 3424), (576, 17)]
"""N and K: K % 16 and K % 32 of every kind, N odd, one block, part of one."""

ROWS = {"few": [1, 2, 3, 4, 5, 9, 65], "some": [1, 3, 4, 5, 8, 63, 64, 65, 129, 300], "all": list(range(1, 301))}


def check(kernels: Library, kind: str, n: int, k: int, rows: list[int]) -> dict[str, float]:
    """The worst errors: of a matrix's weights, of products against matmul, and of a row alone against in a batch."""
    generator = torch.Generator().manual_seed(n * 10_000 + k)
    weight = torch.randn(n, k, generator=generator)
    bias = torch.randn(n, generator=generator)
    tiles = kernels.pack(weight, kind)
    worst = {"product": 0.0, "alone": 0.0}
    for b in (None, bias):
        struct = MatrixStruct(tiles.data_ptr(), None if b is None else b.data_ptr(), n, k, KINDS[kind], -(-k // 32))
        held = kernels.rows(struct, torch.arange(n))
        worst["weights"] = float((held - weight).norm() / weight.norm())
        for m in rows:
            x = torch.randn(m, k, generator=generator)
            exact = torch.nn.functional.linear(
                rounded_rows(x).double(), held.double(), None if b is None else b.double()
            )
            found = kernels.product(struct, x)
            worst["product"] = max(worst["product"], float((found - exact).norm() / exact.norm()))
            alone = kernels.product(struct, x[m // 2 : m // 2 + 1].contiguous())
            worst["alone"] = max(worst["alone"], float((alone - found[m // 2]).abs().max()))
    return worst


def main(path: str, threads: str, rows: str) -> None:
    torch.set_num_threads(int(threads))
    kernels = Library(path)
    shapes = SHAPES[3:8:2] if rows == "all" else SHAPES
    found = {f"{kind} {n}x{k}": check(kernels, kind, n, k, ROWS[rows]) for kind in KINDS for n, k in shapes}
    sys.stdout.write(json.dumps({"level": kernels.level, "found": found}))


if __name__ == "__main__":
    main(*sys.argv[1:])
