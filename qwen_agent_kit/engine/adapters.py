"""The adapters that an engine serves, by name, read on first use."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qwen_agent_kit.errors import UsageError

if TYPE_CHECKING:
    from qwen_agent_kit.models import Adapter, LoadedModel

__all__ = ["Adapters"]

_MOST_NAME = 128


class Adapters:
    """Thread-safe.

    Args:
        loaded: Whose adapters they are.
        folders: Where each lies.

    Raises:
        UsageError: For a name that is no short printable text, or a place that is no path.
    """

    def __init__(self, loaded: LoadedModel, folders: Mapping[str, str | Path]) -> None:
        self._loaded = loaded
        self._folders = {_named(name): _placed(name, folder) for name, folder in folders.items()}
        self._read: dict[str, Adapter] = {}
        self._lock = threading.Lock()

    def get(self, name: Any) -> Adapter | None:
        """The adapter of that name; None for None.

        Raises:
            UsageError: For a name that is not known.
            ModelError: Where its files are missing or refused, or it is for another model.
        """
        if name is None:
            return None
        if not isinstance(name, str) or name not in self._folders:
            known = ", ".join(sorted(self._folders)) or "none is known"
            raise UsageError(
                f"`adapter` is {str(name)[:80]!r}; allowed: {known}",
                hint='Host(adapters={"name": "folder"}) makes one known',
                code="adapter_not_found",
            )
        with self._lock:
            if name not in self._read:
                self._read[name] = self._loaded.adapter(self._folders[name])
            return self._read[name]


def _named(name: Any) -> str:
    if not isinstance(name, str) or not 0 < len(name) <= _MOST_NAME or not name.isprintable():
        raise UsageError(f"a name of `adapters` is {str(name)[:80]!r}; allowed: 1 to {_MOST_NAME} printable characters")
    return name


def _placed(name: str, folder: Any) -> Path:
    if not isinstance(folder, str | Path):
        raise UsageError(f"`adapters[{name!r}]` is a {type(folder).__name__}; allowed: the path of a directory")
    return Path(folder).expanduser()
