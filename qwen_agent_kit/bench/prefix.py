"""``qak bench prefix``: a second ``qak run`` with the same long system prompt, in a process of its own.

Each pair starts from an empty directory of prefixes: one cold run, then the same again with another question. Weights
are in the cache both times, so what differs is the system prompt's prefill.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from qwen_agent_kit.bench.rows import Row
from qwen_agent_kit.errors import UsageError
from qwen_agent_kit.paths import cache_dir

__all__ = ["measure", "system_prompt"]

_RECORD = "Order {}: two parcels of books and one lamp leave on Tuesday; the invoice is {}. "
_STATES = ("open", "paid", "disputed", "waiting for an address")
_QUESTIONS = ("Which orders are open?", "Which orders are paid?")


def system_prompt(tokens: int) -> str:
    """About so many tokens of plain text, the same every time; a record takes about 22."""
    records = (_RECORD.format(100 + at, _STATES[at % len(_STATES)]) for at in range(max(1, tokens // 22)))
    return "You keep the books of a small shop. " + "".join(records)


def measure(model: str = "", pairs: int = 7, tokens: int = 1500) -> list[Row]:
    """Cold and warm runs in turn.

    Args:
        model: The model; else the one that answers by default.
        pairs: How often both run.
        tokens: About how long the system prompt is.

    Raises:
        UsageError: Where a run fails.
    """
    system = system_prompt(tokens)
    _run(model, system, _QUESTIONS[0])  # unpacks the weights where that was not done yet
    found: list[tuple[dict[str, Any], dict[str, Any]]] = []
    for _ in range(pairs):
        with tempfile.TemporaryDirectory(prefix="qak-prefix-") as folder:
            _share_cache(Path(folder))
            found.append((_run(model, system, _QUESTIONS[0], folder), _run(model, system, _QUESTIONS[1], folder)))
    cold, warm = zip(*found, strict=True)
    return [
        _row("cold: computed ids of the prompt", "ids", [_computed(run) for run in cold]),
        _row("warm: computed ids of the prompt", "ids", [_computed(run) for run in warm]),
        _row("cold: submitted to first token", "ms", [run["first_token_ms"] for run in cold]),
        _row("warm: submitted to first token", "ms", [run["first_token_ms"] for run in warm]),
        _row("cold over warm", "ratio", [c["first_token_ms"] / w["first_token_ms"] for c, w in found]),
        _row("cold: process to end of two tokens", "ms", [run["process_ms"] for run in cold]),
        _row("warm: process to end of two tokens", "ms", [run["process_ms"] for run in warm]),
    ]


def _computed(run: dict[str, Any]) -> int:
    return int(run["prompt_tokens"] - run["cached_tokens"])


def _share_cache(home: Path) -> None:
    """A root whose caches are this one's, but for prefixes."""
    real = cache_dir("weights").parent
    (home / "cache").mkdir()
    for folder in real.iterdir():
        if folder.name != "prefixes":
            (home / "cache" / folder.name).symlink_to(folder)


def _run(model: str, system: str, question: str, home: str | None = None) -> dict[str, Any]:
    """The usage of a run of two tokens, with the milliseconds from the process's start to its answer."""
    command = [sys.executable, "-m", "qwen_agent_kit", "run", question, "--json", "--max-tokens", "2"]
    command += ["--system", system, *(("--model", model) if model else ())]
    environment = {**os.environ, **({"QAK_HOME": home} if home else {})}
    began = time.perf_counter()
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, env=environment) as child:  # noqa: S603  # ourselves
        assert child.stdout is not None, "stdout is a pipe"
        first = child.stdout.read(1)
        spent = (time.perf_counter() - began) * 1000
        answer = first + child.stdout.read()
    if child.returncode:
        raise UsageError(f"`qak run` ended with exit code {child.returncode}")
    usage: dict[str, Any] = json.loads(answer)["usage"]
    return {**usage, "process_ms": spent}


def _row(name: str, unit: str, values: Sequence[float]) -> Row:
    return Row(name, statistics.median(values), unit, least=min(values), most=max(values))
