"""The code behind a backend: what it made of a picture before it changed must not stand for what it makes now."""

from __future__ import annotations

import contextlib
import hashlib
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from qwen_agent_kit.backends import Backend
from qwen_agent_kit.host.joint import members

__all__ = ["code_of"]


def code_of(backend: Backend) -> str:
    """The hex sha256 of the Python files of the packages that its functions come from.

    What is not in a file, such as a function typed into a notebook, is not covered.
    """
    whole = hashlib.sha256()
    for package in sorted({name for one in members(backend) for name in _packages(one)}):
        for name, path in sorted(_files(package)):
            with contextlib.suppress(OSError):  # one that goes while it is read is no longer of the package
                content = path.read_bytes()
                whole.update(f"{name}\0{len(content)}\0".encode() + content)
    return whole.hexdigest()


def _packages(backend: Backend) -> Iterable[str]:
    for function in (backend.widen, backend.encoder, backend.positions):
        function = getattr(function, "func", function)  # of a functools.partial
        module = getattr(function, "__module__", None)
        if function is not None and isinstance(module, str):
            yield module.partition(".")[0]


def _files(package: str) -> Iterator[tuple[str, Path]]:
    """(name within the package, path) of its files; of a module that is no package, its own."""
    module = sys.modules.get(package)
    folders = [Path(folder) for folder in getattr(module, "__path__", ())]
    for folder in folders:
        for path in folder.rglob("*.py"):
            yield str(path.relative_to(folder)), path
    file = getattr(module, "__file__", None)
    if file and not folders:
        yield Path(file).name, Path(file)
