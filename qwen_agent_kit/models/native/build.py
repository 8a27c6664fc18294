"""Builds the native kernels with the machine's C compiler, once, and keeps them.

The result lies in the cache directory under a name made of the source, the compiler and the CPU's instruction sets,
with its SHA-256 beside it. A new build proves itself in a process of its own before it is kept. Nothing here is
required: without a compiler, or with ``QAK_NATIVE=0``, the layers are torch's own.
"""

from __future__ import annotations

import hashlib
import logging
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

from qwen_agent_kit.errors import UsageError
from qwen_agent_kit.paths import cache_dir, write_private
from qwen_agent_kit.placement.kernels import compiler

__all__ = ["LAYOUT", "built_library", "cpu_features", "source_digest"]

_LOG = logging.getLogger("qwen_agent_kit")

LAYOUT = "tiles3"
"""Names the layout of packed models; raised with it."""

_FLAGS = ("-O3", "-march=native", "-std=gnu11", "-fPIC", "-shared", "-pthread", "-fno-math-errno", "-Wno-psabi")
_SECONDS = 120
_CHECK = "import ctypes, sys; sys.exit(ctypes.CDLL(sys.argv[1]).qak_check())"


def built_library(folder: Path | None = None) -> Path | None:
    """The shared library, built now where it is not there or not whole; None where that cannot be.

    Args:
        folder: Where it is kept; the cache directory's ``native`` where None.
    """
    command = compiler()
    if command is None:
        return None
    try:
        folder = folder or cache_dir("native")
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        library = folder / f"{_key(command)}.so"
        if _whole(library):
            return library
        _build(command, library)
    except (OSError, UsageError, subprocess.SubprocessError) as error:
        _LOG.warning("native kernels cannot be built, torch's are used: %s", _reason(error))
        return None
    return library


def _sources() -> list[Path]:
    return sorted(p for p in Path(__file__).parent.iterdir() if p.suffix in (".c", ".h"))


def _key(command: Path) -> str:
    known = command.resolve().stat()
    together = hashlib.sha256(f"{_FLAGS}\0{command.resolve()}\0{known.st_size}\0{known.st_mtime_ns}\0".encode())
    together.update(cpu_features())
    together.update(source_digest().encode())
    return together.hexdigest()[:32]


def source_digest() -> str:
    """SHA-256 of the sources, in hexadecimal."""
    together = hashlib.sha256()
    for source in _sources():
        together.update(source.name.encode() + b"\0" + source.read_bytes() + b"\0")
    return together.hexdigest()


def cpu_features() -> bytes:
    """What tells one instruction set from another."""
    try:
        lines = Path("/proc/cpuinfo").read_bytes().splitlines()
    except OSError:
        return f"{platform.machine()} {platform.processor()}".encode()
    return b"\n".join(
        sorted({line for line in lines if line.lower().startswith((b"flags", b"features", b"model name"))})
    )


def _whole(library: Path) -> bool:
    try:
        wanted = library.with_suffix(".sha256").read_text()
        return hashlib.sha256(library.read_bytes()).hexdigest() == wanted
    except (OSError, ValueError):
        return False


def _build(command: Path, library: Path) -> None:
    """Compile beside the place, check in a child, then rename; two processes at once make the same file."""
    with tempfile.TemporaryDirectory(dir=library.parent, prefix=".build-") as there:
        made = Path(there) / "native.so"
        source = Path(__file__).parent / "native.c"
        run = [str(command), *_FLAGS, str(source), "-o", str(made), "-lm"]
        subprocess.run(run, check=True, capture_output=True, timeout=_SECONDS)  # noqa: S603  # the user's own compiler
        check = [sys.executable, "-I", "-S", "-c", _CHECK, str(made)]
        subprocess.run(check, check=True, capture_output=True, timeout=_SECONDS)  # noqa: S603  # ourselves
        made.chmod(0o600)
        digest = hashlib.sha256(made.read_bytes()).hexdigest()
        os.replace(made, library)
        write_private(library.with_suffix(".sha256"), digest.encode())


def _reason(error: Exception) -> str:
    if isinstance(error, subprocess.CalledProcessError):
        last = (error.stderr or b"").decode(errors="replace").strip().splitlines()
        what = "the check failed" if error.cmd and error.cmd[0] == sys.executable else "the compiler failed"
        return f"{what} with {error.returncode}" + (f": {last[-1][:200]}" if last else "")
    return str(error) or type(error).__name__
