"""``qak bench kernels``: what is measured is right, and what dies is a row."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from qwen_agent_kit.bench import kernels as bench
from qwen_agent_kit.models import make_linear
from qwen_agent_kit.placement.kernels import compiler
from qwen_agent_kit.testing.models import tiny_model_dir


@pytest.mark.parametrize("scheme", ["int8", "int4", "bf16", "fp32"])
def test_the_matrix_is_held_exactly(scheme: str) -> None:
    """Multiplying by a single one gives its columns back: what a kernel is off by is its own."""
    weight = bench.exact_matrix(48, 128, scheme, torch.Generator().manual_seed(1))
    layer = make_linear(weight, None, scheme)
    eye = torch.eye(128).to(torch.float32 if scheme == "fp32" else torch.bfloat16)
    torch.testing.assert_close(layer(eye).float().T, weight, rtol=0.005, atol=1e-6)


def test_every_kernel_is_checked_timed_and_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each has its error within the bound and a time per number of rows; the best of a scheme is the least of them."""
    monkeypatch.setattr(bench, "KERNELS", tuple(k for k in bench.KERNELS if k.scheme == "int8"))
    rows = {row.name: row for row in bench.kernels(str(tiny_model_dir(tmp_path, "qwen2")))}
    assert all(row.ok for row in rows.values())
    names = ["torch int8", *(["native int8"] if compiler() else [])]
    for m in bench.ROWS:
        times = {name: rows[f"{name}: a layer, {m} rows"].value for name in names}
        best = min(times, key=times.__getitem__)
        assert rows[f"best for int8, {m} rows: {best}"].value == times[best] > 0


def test_a_kernel_that_dies_or_is_not_there_is_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """The others are measured all the same."""
    assert bench._measured(bench.Kernel("unknown", "int3"), [(32, 64)]) == "ended with 1"
    monkeypatch.setenv("QAK_NATIVE", "0")
    assert bench._measured(bench.Kernel("native int8", "int8", native=True), [(32, 64)]) == "is not there"
