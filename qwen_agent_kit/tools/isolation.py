"""Runs a tool in a process of its own: fresh interpreter, only its own descriptors, killed with its whole group.

What it is for: a tool that may hang, crash or eat memory. What it is not: a sandbox; the child has the user's rights.

The request goes to the child's standard input, as one line of JSON; that pipe stays open, and the child kills its group
once it closes, so that it does not outlive its parent. The answer comes back over a pipe as an 8-byte length and JSON.
What the tool prints goes to standard error.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from importlib.machinery import PathFinder
from types import ModuleType
from typing import Any

from qwen_agent_kit.errors import UsageError
from qwen_agent_kit.messages import Message, Part, ToolResult
from qwen_agent_kit.tools.definition import Tool
from qwen_agent_kit.tools.signature import plain_function

__all__ = ["MAX_ANSWER", "address_of", "run_isolated"]

MAX_ANSWER = 64 << 20
"""Bytes of the child's answer, media included."""


def address_of(tool: Tool) -> dict[str, str]:
    """Where a fresh interpreter finds a tool's function: ``module`` or ``file``, and ``qualname``.

    Raises:
        UsageError: For what a fresh interpreter cannot find: nested functions, lambdas, bound methods, what was typed
            at a prompt; and on systems without process groups.
    """
    if os.name != "posix":
        raise UsageError(f"tool `{tool.name}`: `isolate=True` needs a POSIX system; found {os.name!r}")
    function = plain_function(tool.function)
    name = getattr(function, "__qualname__", "")
    code = getattr(function, "__code__", None)
    if code is None or function is not tool.function or "<" in name or (tool.signature and tool.signature.unbound):
        raise UsageError(
            f"tool `{tool.name}`: `isolate=True` needs a function at module level; found {name!r}",
            hint="move it to the top of a module",
        )
    module = sys.modules.get(function.__module__)
    if function.__module__ == "__main__":
        spec = getattr(module, "__spec__", None)
        if spec is not None:
            return {"module": spec.name, "qualname": name}
    elif module is not None and _importable(module):
        return {"module": function.__module__, "qualname": name}
    if not os.path.isfile(code.co_filename):
        raise UsageError(
            f"tool `{tool.name}`: `isolate=True` needs the function's file; {code.co_filename!r} is none",
            hint="put the tool into a file",
        )
    return {"file": os.path.abspath(code.co_filename), "qualname": name}


def _importable(module: ModuleType) -> bool:
    """Whether importing the module's name again, elsewhere, gives the same file."""
    name, file = module.__name__, getattr(module, "__file__", None)
    parent, top = name.rpartition(".")[0], name.partition(".")[0]
    if parent and (parent not in sys.modules or PathFinder.find_spec(top) is None):
        return False
    known = sys.modules.get(name)
    path = getattr(sys.modules.get(parent), "__path__", None) if parent else None
    try:
        spec = PathFinder.find_spec(name, path)
    except (ImportError, ValueError):
        return False
    return known is module and file is not None and spec is not None and spec.origin == file


def run_isolated(
    tool: Tool,
    arguments: Mapping[str, Any],
    watch: Callable[[Callable[[float], bool], str], None],
    max_chars: int,
) -> tuple[tuple[Part, ...], bool]:
    """Run one call in a child and return its parts.

    Args:
        tool: An isolated tool.
        arguments: Validated already, as JSON data; the child validates them again.
        watch: Calls a waiting function in ticks and raises on cancel and at the time limit.
        max_chars: Characters of text in the result.
    """
    request = {
        **address_of(tool),
        "name": tool.name,
        "arguments": dict(arguments),
        "max_chars": max_chars,
        "max_answer": MAX_ANSWER,
        "memory": tool.memory,
    }
    read, write = os.pipe()
    try:
        child = subprocess.Popen(  # noqa: S603  # this interpreter, and a module of ours
            [sys.executable, "-P", "-m", "qwen_agent_kit.tools.child", str(write)],
            stdin=subprocess.PIPE,
            stdout=2,
            pass_fds=(write,),
            start_new_session=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)},
        )
    except BaseException:
        os.close(read)
        raise
    finally:
        os.close(write)
    try:
        return _talk(child, read, json.dumps(request).encode() + b"\n", watch)
    finally:
        os.close(read)
        _end(child)


def _talk(child: Any, read: int, request: bytes, watch: Any) -> tuple[tuple[Part, ...], bool]:
    answer = bytearray()
    with suppress(BrokenPipeError):  # it died at once; its exit code says how
        child.stdin.write(request)
        child.stdin.flush()

    def readable(seconds: float) -> bool:
        return bool(select.select([read], [], [], seconds)[0])

    def wait(seconds: float) -> bool:
        if not readable(seconds):
            if child.poll() is None:
                return False
            if not readable(0):
                return True  # it ended, and a process that it started holds the pipe open
        piece = os.read(read, 1 << 20)
        answer.extend(piece)
        return not piece or len(answer) > MAX_ANSWER + 8 or _whole(answer)

    watch(wait, "killed")
    if not _whole(answer) or len(answer) > MAX_ANSWER + 8:
        child.stdin.close()
        raise RuntimeError(_obituary(child))
    return _read(bytes(answer[8:]))


def _whole(answer: bytearray) -> bool:
    return len(answer) >= 8 and len(answer) - 8 >= int.from_bytes(answer[:8], "big")


def _obituary(child: Any) -> str:
    try:
        code = child.wait(timeout=1)
    except subprocess.TimeoutExpired:
        return "its process closed its answer and went on"
    if code < 0:
        with suppress(ValueError):
            return f"its process was ended by {signal.Signals(-code).name} before it returned"
    return f"its process ended with exit code {code} before it returned"


def _read(answer: bytes) -> tuple[tuple[Part, ...], bool]:
    try:
        data = json.loads(answer)
        if "raised" in data:
            raise RuntimeError(str(data["raised"]))
        message = Message.from_dict({"role": "tool", "parts": [data["result"]]})
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise RuntimeError("its process sent back what is no result") from error
    result = message.parts[0]
    assert isinstance(result, ToolResult), "the child sends one result"
    return result.parts, result.is_error


def _end(child: Any) -> None:
    """Kill the child and all of its group, and leave no zombie."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()
    child.stdin.close()
