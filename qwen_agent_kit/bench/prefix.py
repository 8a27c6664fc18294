"""``qak bench prefix``: a second ``qak run`` with the same long system prompt, in a process of its own.

Each pair starts from an empty directory of prefixes: one cold run, then the same again with another question. Weights
are in the cache both times, so what differs is the system prompt's prefill. The answer is streamed, so that the first
token is seen when it comes; what was computed is read off the line that ``qak run`` ends with.
"""

from __future__ import annotations

import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from qwen_agent_kit.bench.rows import Row
from qwen_agent_kit.errors import UsageError
from qwen_agent_kit.paths import cache_dir, data_dir

__all__ = ["measure", "system_prompt", "usage_of"]

_RECORD = "Order {}: two parcels of books and one lamp leave on Tuesday; the invoice is {}. "
_STATES = ("open", "paid", "disputed", "waiting for an address")
_USAGE = re.compile(
    r"prompt (?P<prompt>[0-9]+) \(cached (?P<cached>[0-9]+)\).* first token (?P<first_ms>[0-9]+(?:\.[0-9]+)?) ms"
)

MOST_SECONDS = 120
"""A run that takes longer to end, once its first token came, hangs."""

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
    _pair(model, "Be short.", _QUESTIONS[:1])  # unpacks the weights where that was not done yet
    found = [_pair(model, system, _QUESTIONS) for _ in range(pairs)]
    cold, warm = zip(*found, strict=True)
    return [
        _row("cold: computed ids of the prompt", "ids", [_computed(run) for run in cold]),
        _row("warm: computed ids of the prompt", "ids", [_computed(run) for run in warm]),
        _row("cold: submitted to first token", "ms", [run["first_ms"] for run in cold]),
        _row("warm: submitted to first token", "ms", [run["first_ms"] for run in warm]),
        _row("cold over warm", "ratio", [c["first_ms"] / w["first_ms"] for c, w in found]),
        _row("cold: process to first token", "ms", [run["process_ms"] for run in cold]),
        _row("warm: process to first token", "ms", [run["process_ms"] for run in warm]),
    ]


def _pair(model: str, system: str, questions: Sequence[str]) -> list[dict[str, float]]:
    """Runs one after the other over prefixes that are theirs alone."""
    with tempfile.TemporaryDirectory(prefix="qak-prefix-") as folder:
        _share(Path(folder))
        return [_run(model, system, question, folder) for question in questions]


def _computed(run: dict[str, float]) -> float:
    return run["prompt"] - run["cached"]


def _share(home: Path) -> None:
    """A root whose data and caches are this one's, but for prefixes."""
    (home / "data").symlink_to(data_dir())
    real = cache_dir("weights").parent
    (home / "cache").mkdir()
    for folder in real.iterdir():
        if folder.name != "prefixes":
            (home / "cache" / folder.name).symlink_to(folder)


def _run(model: str, system: str, question: str, home: str) -> dict[str, float]:
    """What a run of two tokens computed, and the milliseconds to the first, from its submission and from the start."""
    command = [sys.executable, "-m", "qwen_agent_kit", "run", question, "--max-tokens", "2", "--system", system]
    command += ["--model", model] if model else []
    environment = {**os.environ, "QAK_HOME": home}
    with tempfile.TemporaryFile() as talk:  # a pipe that nobody reads would fill up
        began = time.perf_counter()
        with subprocess.Popen(  # noqa: S603  # ourselves
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=talk, env=environment
        ) as child:
            assert child.stdout is not None, "stdout is a pipe"
            child.stdout.read(1)
            spent = (time.perf_counter() - began) * 1000
            try:
                child.communicate(timeout=MOST_SECONDS)
            except subprocess.TimeoutExpired:
                child.kill()
        talk.seek(0)
        said = talk.read().decode(errors="replace")
    if child.returncode not in (0, 1):  # 1: the answer was cut off, as it should
        raise UsageError(f"`qak run` ended with exit code {child.returncode}: {said[-200:]}")
    return {**usage_of(said), "process_ms": spent}


def usage_of(said: str) -> dict[str, float]:
    """The numbers of the last line that ``qak run`` writes to stderr.

    Raises:
        UsageError: Where it is not there.
    """
    found = _USAGE.search(said)
    if found is None:
        raise UsageError(f"`qak run` did not say what it computed: {said[-200:]!r}")
    return {name: float(value) for name, value in found.groupdict().items()}


def _row(name: str, unit: str, values: Sequence[float]) -> Row:
    return Row(name, statistics.median(values), unit, least=min(values), most=max(values))
