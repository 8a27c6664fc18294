"""Many prompts through one agent."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterable, Mapping
from typing import Any

from qwen_agent_kit.errors import UsageError
from qwen_agent_kit.events import Event, RunDone, RunResult

__all__ = ["run_batch"]


def run_batch(
    stream: Callable[..., Generator[Event, None, None]], prompts: Iterable[Any], concurrency: int
) -> list[RunResult | Exception]:
    """Stream each prompt to its end in one of ``concurrency`` threads; see ``Agent.batch``.

    Raises:
        UsageError: Where ``concurrency`` is no whole number from 1 to 256.
    """
    if isinstance(concurrency, bool) or not isinstance(concurrency, int) or not 1 <= concurrency <= 256:
        raise UsageError(f"`concurrency` is {concurrency!r}; allowed: a whole number from 1 to 256")
    if isinstance(prompts, str):
        raise UsageError("`prompts` is a string; allowed: a list of prompts", hint="run() takes a single one")
    todo = list(prompts)
    results: list[Any] = [None] * len(todo)
    lock, stop = threading.Lock(), threading.Event()
    waiting = iter(range(len(todo)))

    def work() -> None:
        while not stop.is_set():
            with lock:
                index = next(waiting, None)
            if index is None:
                return
            results[index] = _one(stream, todo[index], stop)

    threads = [
        threading.Thread(target=work, name=f"qak-batch-{i}", daemon=True) for i in range(min(concurrency, len(todo)))
    ]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        stop.set()  # Ctrl-C: each run ends at its next event
    return results


def _one(
    stream: Callable[..., Generator[Event, None, None]], prompt: Any, stop: threading.Event
) -> RunResult | Exception | None:
    try:
        events = stream(**prompt) if isinstance(prompt, Mapping) else stream(prompt)
        try:
            for event in events:
                if isinstance(event, RunDone):
                    return event.result
                if stop.is_set():
                    return None
        finally:
            events.close()
    except Exception as error:  # noqa: BLE001  # one prompt's failure is its own result and must not lose the others
        return error
    raise AssertionError("a run ends with RunDone or raises")
