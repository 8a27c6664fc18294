"""Tools that run in a process of their own: found there by module and name."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from typing import Any

from qwen_agent_kit.messages import Image
from qwen_agent_kit.tools import tool


@tool(isolate=True)
def add(a: int, b: int = 2) -> dict[str, int]:
    """Add."""
    print("noise on stdout")
    return {"sum": a + b, "pid": os.getpid()}


@tool(isolate=True)
async def later(a: int) -> int:
    """Wait, then give it back."""
    await asyncio.sleep(0.01)
    return a


@tool(isolate=True)
def picture() -> list[Any]:
    """Give pictures."""
    return ["two", Image(b"\x89PNG"), Image("/etc/passwd")]


@tool(isolate=True)
def surroundings(fd: int) -> dict[str, Any]:
    """Tell what the child sees of its parent."""
    return {
        "variable": os.environ.get("QAK_TEST_VARIABLE"),
        "fd": os.path.exists(f"/proc/self/fd/{fd}"),
        "stdin": sys.stdin.read(),
        "leader": os.getpid() == os.getsid(0),
    }


@tool(isolate=True)
def leave(code: int) -> str:
    """End the process."""
    os._exit(code)


@tool(isolate=True)
def die(number: int) -> str:
    """Die of a signal."""
    os.kill(os.getpid(), number)
    time.sleep(10)
    return "alive"


@tool(isolate=True)
def quit_now() -> str:
    """Raise SystemExit."""
    raise SystemExit(3)


@tool(isolate=True)
def fail(text: str) -> str:
    """Raise."""
    raise ValueError(text)


@tool(isolate=True, timeout=4)  # a busy machine starts no interpreter in less
def hang(path: str) -> str:
    """Ignore all that can be ignored, start a grandchild, and hang."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    with open(path, "w") as file:
        file.write(f"{os.getpid()} {child.pid}")
    while True:
        time.sleep(1)


@tool(isolate=True)
def patient(path: str) -> str:
    """Hang, and say under which id."""
    with open(path, "w") as file:
        file.write(str(os.getpid()))
    time.sleep(600)
    return "done"


@tool(isolate=True, memory=600 << 20)
def glutton(megabytes: int) -> int:
    """Allocate."""
    return len(bytearray(megabytes << 20))


@tool(isolate=True)
def long_text(megabytes: int) -> str:
    """Return very much text."""
    return "x" * (megabytes << 20)


@tool(isolate=True)
def big_picture(megabytes: int) -> Image:
    """Return a very big image."""
    return Image(bytes(megabytes << 20))


@tool(isolate=True)
def with_thread() -> str:
    """Leave a thread behind that never ends."""
    threading.Thread(target=time.sleep, args=(600,)).start()
    return "back"
