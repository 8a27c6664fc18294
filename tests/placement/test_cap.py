"""A plan is a promise: a feasible one runs in little more than it says, and too little memory is our error."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from qwen_agent_kit.catalog.released import find
from qwen_agent_kit.placement import Device, make_plan
from qwen_agent_kit.testing.random_model import random_model_dir

CONTEXT = 1024
GROUPS = (Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup"))

CHILD = """
import json, os, resource, sys
path, quant, context, limit, group, disk = *sys.argv[1:3], int(sys.argv[3]), int(sys.argv[4]), *sys.argv[5:7]
if group:
    with open(os.path.join(group, "cgroup.procs"), "w") as file:
        file.write(str(os.getpid()))
else:
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
from qwen_agent_kit import Sampling
from qwen_agent_kit.errors import PlanError
from qwen_agent_kit.host import load_engine
try:
    engine = load_engine(path, quant=quant, context=context, cache=bool(disk), disk=bool(disk))
except PlanError as error:
    print(json.dumps({"refused": error.message}))
    sys.exit(0)
ids = [5 + i % 900 for i in range(context - 8)]
generation = engine.submit(ids, Sampling(max_tokens=4, temperature=0.0))
drawn = list(generation)
engine.close()
print(json.dumps({"reason": generation.finish_reason, "drawn": len(drawn)}))
"""


@contextlib.contextmanager
def control_group(limit: int) -> Iterator[str]:
    """A memory group of this limit, "" where none can be made here."""
    for root in GROUPS:
        one = root / "memory.limit_in_bytes" in [*root.glob("memory.limit_in_bytes")]
        group = root / f"qak-{uuid.uuid4().hex[:12]}"
        name = "memory.limit_in_bytes" if one else "memory.max"
        try:
            group.mkdir()
        except OSError:
            continue
        try:
            (group / name).write_text(str(limit))
            yield str(group)
            return
        except OSError:
            continue
        finally:
            group.rmdir()
    yield ""


def run_under(path: Path, quant: str, limit: int, disk: Path | None = None) -> dict[str, object]:
    with control_group(limit) as group:
        arguments = [str(path), quant, str(CONTEXT), str(limit), group, "disk" if disk else ""]
        environment = {**os.environ, "MALLOC_ARENA_MAX": "2", **({"QAK_HOME": str(disk)} if disk else {})}
        done = subprocess.run(
            [sys.executable, "-c", CHILD, *arguments], capture_output=True, text=True, env=environment, timeout=300
        )
    limiter = "a memory group" if group else "RLIMIT_DATA"
    print(f"{path.name} {quant}: {limit / 2**20:.0f} MiB by {limiter}: {done.stdout.splitlines()[-1:]}")
    assert done.returncode == 0, f"ended with {done.returncode} in {group or 'RLIMIT_DATA'}: {done.stderr[-2000:]}"
    answer: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
    return answer


LARGE: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("SmolLM2-360M-Instruct", {}),
    "qwen2": ("Qwen2.5-0.5B-Instruct", {"num_hidden_layers": 20}),
    "qwen3": ("Qwen3-0.6B", {"num_hidden_layers": 12}),
    "qwen2_moe": ("Qwen1.5-MoE-A2.7B-Chat", {"num_hidden_layers": 3, "num_experts": 8, "vocab_size": 20000}),
    "qwen3_moe": ("Qwen3-30B-A3B", {"num_hidden_layers": 2, "num_experts": 16, "vocab_size": 50000}),
}
"""Released shapes, cut to 300 to 900 MB in bfloat16."""


@pytest.fixture(scope="module", params=LARGE)
def large(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model directory with random weights in bfloat16."""
    name, changes = LARGE[request.param]
    found = find(name)
    assert found is not None
    folder = tmp_path_factory.mktemp(request.param)
    return random_model_dir(folder, {**(found[0].config or {}), **changes})


def weight_files_size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


@pytest.mark.full
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="groups and RLIMIT_DATA are Linux's")
@pytest.mark.parametrize("quant", ["bf16", "int8", "int4"])
def test_large_models_keep_to_their_plans(large: Path, quant: str) -> None:
    """For each architecture and scheme: the whole context in a tenth more than planned, our error in 15 % less."""
    assert 300e6 <= weight_files_size(large) <= 900e6
    ample = [Device("cpu", "cpu", 2**36, 2**36)]
    planned = make_plan("m", large, context=CONTEXT, quant=quant, devices=ample)
    assert run_under(large, quant, planned.total_bytes * 11 // 10) == {"reason": "length", "drawn": 4}
    assert "short" in str(run_under(large, quant, planned.total_bytes * 85 // 100)["refused"])


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="groups and RLIMIT_DATA are Linux's")
@pytest.mark.parametrize("quant", ["bf16", pytest.param("int8", marks=pytest.mark.full)])
def test_a_feasible_plan_runs_at_its_context_in_a_tenth_more(smollm2_gguf: Path, quant: str) -> None:
    """Real weights under a cap of the planned peak + 10 %: the whole context is read and answered."""
    ample = [Device("cpu", "cpu", 2**36, 2**36)]
    planned = make_plan("m", smollm2_gguf, context=CONTEXT, quant=quant, devices=ample)
    answer = run_under(smollm2_gguf, quant, planned.total_bytes * 11 // 10)
    assert answer == {"reason": "length", "drawn": 4}


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="groups and RLIMIT_DATA are Linux's")
def test_too_little_memory_is_our_error(smollm2_gguf: Path) -> None:
    """At the planned peak - 15 % the plan refuses, names the shortage, and nothing is loaded or killed."""
    ample = [Device("cpu", "cpu", 2**36, 2**36)]
    planned = make_plan("m", smollm2_gguf, context=CONTEXT, quant="bf16", devices=ample)
    answer = run_under(smollm2_gguf, "bf16", planned.total_bytes * 85 // 100)
    assert "short" in str(answer["refused"])


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="groups and RLIMIT_DATA are Linux's")
@pytest.mark.parametrize("quant", ["bf16", pytest.param("int8", marks=pytest.mark.full)])
def test_what_does_not_fit_runs_with_layers_on_disk(smollm2_gguf: Path, tmp_path: Path, quant: str) -> None:
    """Under the same too small a cap, with the disk allowed: layers stay there, and the whole context is answered."""
    ample = [Device("cpu", "cpu", 2**36, 2**36)]
    planned = make_plan("m", smollm2_gguf, context=CONTEXT, quant=quant, devices=ample)
    answer = run_under(smollm2_gguf, quant, planned.total_bytes * 85 // 100, tmp_path)
    assert answer == {"reason": "length", "drawn": 4}
