"""Where the kit keeps things: one root, private to the user.

``QAK_HOME`` names it; without it, XDG's data and cache directories are used (XDG Base Directory Specification 0.8).
Directories are made with mode 0700, files with 0600.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from qwen_agent_kit.errors import UsageError

__all__ = ["cache_dir", "data_dir", "safe_name", "write_private"]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_RESERVED = {"con", "prn", "aux", "nul", *(f"{d}{i}" for d in ("com", "lpt") for i in range(1, 10))}


def data_dir(*parts: str) -> Path:
    """A directory that must outlive the cache, made if missing."""
    return _private(_root("XDG_DATA_HOME", ".local/share", "data").joinpath(*parts))


def cache_dir(*parts: str) -> Path:
    """A directory whose content can be made again, made if missing."""
    return _private(_root("XDG_CACHE_HOME", ".cache", "cache").joinpath(*parts))


def _root(variable: str, fallback: str, under: str) -> Path:
    if home := os.environ.get("QAK_HOME"):
        return Path(home).expanduser().absolute() / under
    xdg = os.environ.get(variable)
    return (Path(xdg) if xdg and os.path.isabs(xdg) else Path.home() / fallback) / "qwen_agent_kit"


def _private(path: Path) -> Path:
    if not path.is_dir():
        try:
            for missing in reversed([one for one in (path, *path.parents) if not one.is_dir()]):
                missing.mkdir(mode=0o700, exist_ok=True)  # `parents=True` would make those above with the umask alone
        except OSError as error:
            raise UsageError(
                f"cannot make the directory `{path}`: {error.strerror}",
                hint="set QAK_HOME to a directory you can write",
            ) from error
    return path


def safe_name(name: str, what: str) -> str:
    """``name`` if it can be a file name everywhere and leave no directory.

    Raises:
        UsageError: Otherwise.
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name) or name.split(".")[0].lower() in _RESERVED:
        raise UsageError(
            f"{what} is {str(name)[:80]!r}; allowed: 1 to 100 letters, digits, `.`, `_` and `-`, beginning with "
            "a letter or digit",
            code="invalid_name",
        )
    return name


def write_private(path: Path, data: bytes) -> None:
    """Write ``path`` whole or not at all, mode 0600: a temporary file beside it, synced, then renamed."""
    import tempfile  # it brings random, hashlib and shutil, which importing an Agent can do without

    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
