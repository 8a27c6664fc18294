"""Run as a script by ``qak bench load``: open a model, say one token, print when it was there and the peak memory."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

__all__: list[str] = []

_PROMPT = [400, 500, 600, 700, 800, 900, 1000, 1100]


def _ours(path: Path, quant: str, threads: int) -> None:
    from qwen_agent_kit.host.tuning import own_process, undisturbed

    own_process()
    with undisturbed():  # as `qak run` opens models
        from qwen_agent_kit.bench.ours import Ours, opened

        ours = Ours(opened(path, quant, threads), threads=threads)
    ours.run(_PROMPT, 1)


def _llama(path: Path, name: str, threads: int) -> None:
    from qwen_agent_kit.bench.sides import open_side

    open_side(name, path, threads=threads, context=512).run(_PROMPT, 1)


def _transformers(path: Path, threads: int) -> None:
    import torch

    from qwen_agent_kit import foreign

    torch.set_num_threads(threads)
    model = foreign.transformers().AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.bfloat16
    )
    ids = torch.tensor([_PROMPT])
    model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=1, do_sample=False)


def _main(name: str, path: str, quant: str, threads: str) -> None:
    os.environ.setdefault("GOMP_SPINCOUNT", "3000")
    if name == "ours":
        _ours(Path(path), quant, int(threads))
    elif name == "transformers":
        _transformers(Path(path), int(threads))
    else:
        _llama(Path(path), name, int(threads))
    at = time.perf_counter()
    status = Path("/proc/self/status").read_text()  # getrusage's figure outlives exec: it may be the parent's
    peak = next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM"))
    sys.stdout.write("\n" + json.dumps({"at": at, "peak": peak}) + "\n")
    sys.stdout.flush()
    os._exit(0)  # tearing down is not measured


if __name__ == "__main__":
    _main(*sys.argv[1:])
