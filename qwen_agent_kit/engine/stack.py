"""Room for code that goes down deep on its stack and ends the process where there is none."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

__all__ = ["on_deep_stack"]

_T = TypeVar("_T")

_BYTES = 256 * 2**20
"""Of addresses; memory is taken for what is used only."""

_LOCK = threading.Lock()


def on_deep_stack(call: Callable[[], _T]) -> _T:
    """The result of ``call``, run in a thread of its own with a deep stack; in this one where none can be started."""
    results: list[_T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(call())
        except BaseException as error:  # noqa: BLE001  # raised where it was called
            errors.append(error)

    thread = threading.Thread(target=run, name="qak-deep", daemon=True)
    with _LOCK:
        before = threading.stack_size(_BYTES)
        try:
            thread.start()
        except RuntimeError:
            return call()
        finally:
            threading.stack_size(before)
    thread.join()
    if errors:
        raise errors[0]
    return results[0]
