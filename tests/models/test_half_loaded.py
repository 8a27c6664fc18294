"""F60: a load that fails on the way keeps nothing, in memory or on disk."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from gguf_files import write_gguf
from oracle import our_logits

from qwen_agent_kit.errors import ModelError, PlanError
from qwen_agent_kit.models import load as loading
from qwen_agent_kit.models import load_model
from qwen_agent_kit.testing.models import tiny_model_dir

AFTER = 7
"""Tensors that are packed before something goes wrong."""

CHILD = """
import json, resource, sys
from pathlib import Path
from qwen_agent_kit.errors import PlanError
from qwen_agent_kit.models import load_model
path, cache, room = sys.argv[1], sys.argv[2], int(sys.argv[3])
rows = dict(line.split(":", 1) for line in open("/proc/self/status") if line[:2] == "Vm")
limit = int(rows["VmData"].split()[0]) * 1024 + room
resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
try:
    load_model(path, quant="bf16", cache=cache or None)
    print(json.dumps({"code": ""}))
except PlanError as error:
    left = sorted(p.name for p in Path(cache).iterdir()) if cache else []
    print(json.dumps({"code": error.code, "message": error.message, "left": left}))
"""


@pytest.fixture(params=["safetensors", "gguf"])
def weights(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, Path]:
    """A model, and the file that holds its weights."""
    folder = tiny_model_dir(tmp_path / "model", "qwen2")
    if request.param == "safetensors":
        return folder, folder / "model.safetensors"
    file = write_gguf(folder, tmp_path / "model.gguf")
    return file, file


def failing(after: int, fault: Any) -> Any:
    pack = loading.pack

    def faulty(*args: Any) -> Iterator[tuple[str, torch.Tensor]]:
        for n, packed in enumerate(pack(*args)):
            if n == after:
                fault()
            yield packed

    return faulty


def tensors() -> int:
    gc.collect()
    return sum(issubclass(type(found), torch.Tensor) for found in gc.get_objects())


@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize("scheme", ["fp32", "int8"])
def test_f60_a_file_cut_while_it_is_read(
    weights: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scheme: str, cached: bool
) -> None:
    """It is an error that names the file, not a signal; no tensor and no cache entry stays, and a whole file loads."""
    model, file = weights
    whole, cache = file.read_bytes(), tmp_path / "cache"
    before = tensors()
    with monkeypatch.context() as patched:
        patched.setattr(loading, "pack", failing(AFTER, lambda: os.truncate(file, file.stat().st_size // 3)))
        with pytest.raises(ModelError, match=r"was cut while it was read|ends") as caught:
            load_model(model, quant=scheme, cache=cache if cached else None)
    assert file.name in str(caught.value)
    assert tensors() == before
    assert not cached or {p.suffix for p in cache.iterdir()} <= {".digest"}
    file.write_bytes(whole)
    again = load_model(model, quant=scheme, cache=cache if cached else None)
    assert our_logits(again.model, [5, 6, 7]).isfinite().all()


@pytest.mark.parametrize(
    "fault",
    [
        MemoryError(),
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
        torch.OutOfMemoryError("CUDA out of memory"),
    ],
    ids=["python", "torch", "cuda"],
)
def test_f60_memory_refused_on_the_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: Exception) -> None:
    """Whoever refuses it, it is a plan error; no tensor and no cache entry stays while the error is kept."""
    folder, cache = tiny_model_dir(tmp_path / "model", "qwen2"), tmp_path / "cache"

    def refuse() -> None:
        raise fault

    before = tensors()
    monkeypatch.setattr(loading, "pack", failing(AFTER, refuse))
    with pytest.raises(PlanError, match="no memory left while `model` was loaded") as caught:
        load_model(folder, cache=cache)
    assert caught.value.code == "out_of_memory"
    assert tensors() == before
    assert {p.suffix for p in cache.iterdir()} <= {".digest"}


def test_f60_another_fault_on_the_way_is_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A device that is lost is reported as it is, and nothing stays either."""

    def lost() -> None:
        raise RuntimeError("CUDA error: device lost")

    folder, cache = tiny_model_dir(tmp_path / "model", "qwen2"), tmp_path / "cache"
    before = tensors()
    monkeypatch.setattr(loading, "pack", failing(AFTER, lost))
    with pytest.raises(RuntimeError, match="device lost"):
        load_model(folder, cache=cache)
    assert tensors() == before
    assert {p.suffix for p in cache.iterdir()} <= {".digest"}


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="RLIMIT_DATA is Linux's")
@pytest.mark.parametrize("cached", [True, False])
def test_f60_the_system_refuses_memory(smollm2_gguf: Path, tmp_path: Path, cached: bool) -> None:
    """The same by the system's own limit, half of what the weights take: a plan error, and what is kept is whole."""
    cache = tmp_path / "cache"
    arguments = [str(smollm2_gguf), str(cache) if cached else "", str(2**27)]
    done = subprocess.run([sys.executable, "-c", CHILD, *arguments], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    answer = json.loads(done.stdout.splitlines()[-1])
    assert answer["code"] == "out_of_memory"
    assert smollm2_gguf.name in answer["message"]
    assert not [name for name in answer["left"] if name.startswith(".")]
