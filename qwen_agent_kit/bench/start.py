"""How soon things are there, in fresh processes: importing, ``qak --help``, plans, the first token of a cold run."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence

from qwen_agent_kit.bench.rows import Row
from qwen_agent_kit.catalog.released import released
from qwen_agent_kit.errors import QakError, UsageError

__all__ = ["measure"]

_IMPORT = "from qwen_agent_kit import Agent, tool; Agent()"
_QAK = ("-m", "qwen_agent_kit")
_RUN = (*_QAK, "run", "--quiet", "--max-tokens", "2", "Say hello.")


def measure(times: int = 15) -> list[Row]:
    """The median over ``times`` fresh interpreters, each from its start.

    Raises:
        UsageError: Where the model that answers by default is not on this machine.
    """
    _warm()
    plans = plan_times()
    return [
        Row("import Agent and tool, make an Agent", _median(times, "-c", _IMPORT), "ms", 150),
        Row("qak --help", _median(times, *_QAK, "--help"), "ms", 250),
        Row(f"qak plan, median of {len(plans)} models, empty cache", statistics.median(plans), "ms"),
        Row(f"qak plan, slowest of {len(plans)} models, empty cache", max(plans), "ms", 300),
        Row("qak run, process to first token, weight cache warm", _median(times, *_RUN), "ms", 4000),
    ]


def plan_times(times: int = 3) -> list[float]:
    """Milliseconds that ``qak plan`` takes for each released model, offline and with nothing kept: medians."""
    return [statistics.median(_plan(entry.name) for _ in range(times)) for entry in released()]


def _plan(name: str) -> float:
    with tempfile.TemporaryDirectory() as empty:
        environment = {**os.environ, "QAK_HOME": empty, "QAK_OFFLINE": "1"}
        return _first_byte(*_QAK, "plan", name, "--json", environment=environment, allowed=(0, 1))


def _warm() -> None:
    from qwen_agent_kit.host import Host

    try:
        with Host() as host:
            host.target().path()
    except QakError as error:
        raise UsageError(f"`qak bench start` runs the default model: {error.message}", hint=error.hint) from error
    _first_byte(*_RUN)  # unpacks the weights where that was not done yet


def _median(times: int, *arguments: str) -> float:
    return statistics.median(_first_byte(*arguments) for _ in range(times))


def _first_byte(*arguments: str, environment: dict[str, str] | None = None, allowed: Sequence[int] = (0,)) -> float:
    """Milliseconds until the first byte on stdout, or until the end where nothing is written."""
    began = time.perf_counter()
    command = [sys.executable, *arguments]
    with subprocess.Popen(  # noqa: S603  # ourselves
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, env=environment
    ) as child:
        assert child.stdout is not None, "stdout is a pipe"
        child.stdout.read(1)
        spent = (time.perf_counter() - began) * 1000
        child.stdout.read()
    if child.returncode not in allowed:
        raise UsageError(f"`{' '.join(arguments[:3])}` ended with exit code {child.returncode}")
    return spent
