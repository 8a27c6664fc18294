"""The native kernels' threads: those of forks, those that lose their core, those of several models at once."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from native_build import compiled, python

from qwen_agent_kit.models.native.build import built_library
from qwen_agent_kit.placement.kernels import compiler

pytestmark = pytest.mark.skipif(compiler() is None, reason="there is no C compiler")


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library, built once for this file."""
    library = built_library(tmp_path_factory.mktemp("native"))
    assert library is not None
    return library


def test_a_forked_child_has_threads_of_its_own(built: Path) -> None:
    """A child of fork has none of its parent's threads; it computes the same and ends, also while its parent's other
    threads are inside a step."""
    done = python(
        """
        import os, sys, threading
        import torch
        from qwen_agent_kit.models.native.library import KINDS, Library, MatrixStruct
        kernels = Library(sys.argv[1])
        torch.set_num_threads(2)
        tiles = kernels.pack(torch.randn(512, 512), "int8")
        struct = MatrixStruct(tiles.data_ptr(), None, 512, 512, KINDS["int8"], 16)
        x = torch.randn(64, 512)
        expected = kernels.product(struct, x)
        stop = threading.Event()
        def busy():
            while not stop.is_set():
                kernels.product(struct, x)
        for others in (0, 2):
            threads = [threading.Thread(target=busy) for _ in range(others)]
            for thread in threads:
                thread.start()
            children = []
            for _ in range(10):
                pid = os.fork()
                if not pid:
                    os._exit(0 if all(bool((kernels.product(struct, x) == expected).all()) for _ in range(5)) else 1)
                children.append(pid)
            codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]
            stop.set()
            for thread in threads:
                thread.join()
            stop.clear()
            assert codes == [0] * 10, codes
        """,
        str(built),
    )
    assert done.returncode == 0, done.stderr


POOL = """
#include "native.c"
#include <assert.h>
#include <stdio.h>
static _Atomic int mine, late;
typedef struct { int unused; } none_t;
static void program(const job_t *job, int thread) {
    CHUNKS(i, job, 0, 100) {
        if (thread) { atomic_fetch_add(&late, 1); while (atomic_load(&mine) < 99) usleep(1000); }
        else { atomic_fetch_add(&mine, 1); usleep(1000); }
    }
    settle(job, 0, 100);
}
int main(void) {
    none_t none = {0};
    enter();
    assert(make_phases(1));
    perform(program, &none, sizeof none, 2, 1);
    leave();
    assert(mine + late == 100 && late <= 1);

    /* most of the time was spent waiting for a thread that lost its core: fewer threads, for longer each time */
    int64_t pauses[3];
    for (int i = 0; i < 3; i++) {
        waited = 900000;
        learn(2, now() - 1000000);
        assert(threads_for(2, now()) == 1 && threads_for(8, now()) == 1);
        pauses[i] = pool.pause;
        assert(threads_for(2, pool.until + 1) == 2);
    }
    assert(pauses[0] < pauses[1] && pauses[1] < pauses[2]);
    /* a step without waiting ends it */
    waited = 0;
    learn(2, now() - 1000000);
    assert(pool.pause == 0);
    printf("done\\n");
    return 0;
}
"""


def test_a_thread_that_lost_its_core_holds_up_one_chunk(tmp_path: Path) -> None:
    """Counted, not timed: with a second thread that stands still, the first does all other chunks; and where most of a
    step was waiting, the next ones use fewer threads, longer each time, until a step runs without."""
    (tmp_path / "pool.c").write_text(POOL)
    program = compiled(tmp_path / "pool", ("-march=native", "-Wno-unused-function"), tmp_path / "pool.c")
    done = subprocess.run([str(program)], capture_output=True, text=True, timeout=60)
    assert done.stdout == "done\n", done.stderr


STEPS = """
import sys, threading
import torch
from native_reference import slab_kv
from qwen_agent_kit.models import load_model
from qwen_agent_kit.models.native.library import Library, library
from qwen_agent_kit.models.native.step import NativeStep

torch.set_num_threads(3)
stumbling = Library(sys.argv[1])
models = [load_model(folder, quant="int8").model for folder in sys.argv[2:]]

def steps(model, rows):
    # Logits of a prompt of some rows, then of ids one at a time.
    kv, found, at = slab_kv(model, 128), [], 0
    for n in (rows, *[1] * 8):
        ids = torch.arange(at, at + n) % 90
        found.append(model.forward(ids, torch.arange(at, at + n), kv, start=at))
        at += n
    return torch.cat(found)

def equal(worst):
    for model, known in zip(models, exact):
        for rows in ROWS:
            if not torch.equal(steps(model, rows), known[rows]):
                worst.append(rows)

ROWS = (3, 40)
exact = [{rows: steps(model, rows) for rows in ROWS} for model in models]
for model in models:
    model.native = NativeStep(model, stumbling)
wrong = []
TURNS
assert not wrong, wrong
"""

TURNS = {
    "in turn": "for _ in range(3): equal(wrong)",
    "at once": """
threads = [threading.Thread(target=lambda: [equal(wrong) for _ in range(1)]) for _ in range(3)]
[t.start() for t in threads]
[t.join() for t in threads]
""",
}


@pytest.fixture(scope="session")
def stumbling(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A library whose threads lose their core, and whose scratch is full of NaN before each step."""
    place = tmp_path_factory.mktemp("stumbling") / "stumbling.so"
    return compiled(place, ("-shared", "-march=native", "-DQAK_STUMBLE=1000"))


@pytest.mark.parametrize("how", TURNS)
def test_threads_that_come_back_late_change_nothing(tmp_path: Path, stumbling: Path, how: str) -> None:
    """Three models of unlike sizes used in turn or by three threads at once, with threads that lose their core between
    chunks and come back in the middle of another model's step: logits are those of undisturbed threads, to the bit."""
    from qwen_agent_kit.testing.models import tiny_model_dir

    shapes = ({"hidden": 64}, {"hidden": 256, "heads": 8, "kv_heads": 2}, {"hidden": 96, "layers": 5})
    folders = [tiny_model_dir(tmp_path / str(at), "qwen3", **shape) for at, shape in enumerate(shapes)]
    done = python(STEPS.replace("TURNS", TURNS[how]), str(stumbling), *map(str, folders))
    assert done.returncode == 0, done.stderr
