"""The other end of ``isolation``: ``python -m qwen_agent_kit.tools.child FD`` runs one call and ends."""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import signal
import sys
import threading
from contextlib import suppress
from typing import Any

from qwen_agent_kit.messages import ToolResult
from qwen_agent_kit.tools.definition import Tool, tool
from qwen_agent_kit.tools.results import UnusableResultError, safe_text, to_parts
from qwen_agent_kit.tools.validation import ArgumentsError

MAX_REQUEST = 256 << 20


def main() -> None:
    """Read the request, run the call, write the answer."""
    out = int(sys.argv[1])
    os.set_inheritable(out, False)
    source = os.fdopen(os.dup(0), "rb")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    request = json.loads(source.readline(MAX_REQUEST))
    threading.Thread(target=_die_with_parent, args=(source,), daemon=True).start()
    _limit(request["memory"])
    try:
        answer = _answer(request)
    except BaseException as error:  # noqa: BLE001  # whatever the tool raises is told to the parent
        answer = _raised(error)
    if len(answer) > request["max_answer"]:
        answer = _raised(
            UnusableResultError(f"it returned {len(answer):,} bytes; at most {request['max_answer']:,} fit")
        )
    with os.fdopen(out, "wb") as pipe:
        pipe.write(len(answer).to_bytes(8, "big") + answer)
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(0)  # without waiting for threads that the tool left behind


def _die_with_parent(source: Any) -> None:
    source.read()
    os.killpg(0, signal.SIGKILL)


def _limit(memory: int | None) -> None:
    import resource

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if memory is not None:
        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))


def _answer(request: dict[str, Any]) -> bytes:
    found = _find(request)
    made = found if isinstance(found, Tool) else tool(found)
    value = made.invoke(made.validate(request["arguments"]))
    if made.is_async:
        import asyncio

        value = asyncio.run(value)
    parts, failed = to_parts(value, request["max_chars"])
    return json.dumps({"result": ToolResult(parts, "", request["name"], failed).to_dict()}).encode()


def _find(request: dict[str, Any]) -> Any:
    if "module" in request:
        here: Any = importlib.import_module(request["module"])
    else:
        spec = importlib.util.spec_from_file_location("__qak_tool__", request["file"])
        if spec is None or spec.loader is None:
            raise ImportError(f"{request['file']} cannot be loaded")
        here = sys.modules["__qak_tool__"] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(here)
    for step in request["qualname"].split("."):
        here = getattr(here, step)
    return here


def _raised(error: BaseException) -> bytes:
    if isinstance(error, ArgumentsError):
        text = error.feedback
    elif isinstance(error, UnusableResultError):
        text = str(error)
    else:
        text = f"{type(error).__name__}: {safe_text(error)[:2000]}"
    return json.dumps({"raised": text}).encode()


if __name__ == "__main__":
    main()
