"""The files of a folder as items, in the order of their names."""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Iterator
from pathlib import Path

from qwen_agent_kit.errors import UsageError
from qwen_agent_kit.pipeline.rows import Row, fault

__all__ = ["COLUMNS", "Folder", "inside"]

COLUMNS = ("path", "name", "stem", "suffix", "file")


class Folder:
    """Every regular file below a folder; names that begin with a dot are left out.

    Links to files inside the folder are followed. A link that leads out of it, and every link to a folder, is an item
    with an error.

    Args:
        path: The folder.
        pattern: Which names are items, as in ``*.png``; all where None.
        outside: Whether links may lead out of the folder, and to folders.

    Raises:
        UsageError: Where the folder cannot be read.
    """

    def __init__(self, path: Path, pattern: str | None = None, *, outside: bool = False) -> None:
        self.root: Path | None = path
        self._path = path
        self._pattern = pattern
        self._outside = outside
        try:
            self._real = path.resolve(strict=True)
            os.scandir(path).close()
        except (OSError, RuntimeError) as error:
            reason = getattr(error, "strerror", None) or "a loop of links"
            raise UsageError(f"cannot read the folder `{str(path)[:200]}`: {reason}", hint="check the path") from error

    def columns(self) -> tuple[str, ...] | None:
        return COLUMNS

    def rows(self) -> Iterator[Row]:
        open_folders = [self._names(self._path, "")]  # a stack, as folders may lie deeper than Python calls
        above = [_identity(self._path)]
        while open_folders:
            found = next(open_folders[-1], None)
            if found is None:
                open_folders.pop()
                above.pop()
            elif isinstance(found, Row):
                yield found
            elif (identity := _identity(found[0])) in above:
                yield self._fault(found[1], "it is a link to a folder that holds it")
            else:
                open_folders.append(self._names(found[0], f"{found[1]}/"))
                above.append(identity)

    def reads(self, path: Path) -> bool:
        wanted = self._pattern is None or fnmatch.fnmatchcase(path.name, self._pattern)
        return wanted and not path.name.startswith(".") and inside(path, self._real)

    def total(self) -> int | None:
        return sum(1 for _ in self.rows())

    def _names(self, folder: Path, prefix: str) -> Iterator[Row | tuple[Path, str]]:
        """What lies in one folder: rows, and (path, name) for folders."""
        try:
            with os.scandir(folder) as entries:
                names = sorted(entry.name for entry in entries if not entry.name.startswith("."))
        except OSError as error:
            yield self._fault(prefix.rstrip("/"), f"the folder cannot be read: {error.strerror}")
            return
        for name in names:
            path = folder / name
            if not path.is_dir():
                if self._pattern is None or fnmatch.fnmatchcase(name, self._pattern):
                    yield self._file(path, prefix + name)
            elif path.is_symlink() and not self._outside:
                yield self._fault(prefix + name, "it is a link to a folder", code="outside_root")
            else:
                yield path, prefix + name

    def _file(self, path: Path, name: str) -> Row:
        try:
            name.encode("utf-8")
        except UnicodeEncodeError:
            return self._fault(name, "its name is not UTF-8")
        if not self._outside and path.is_symlink() and not inside(path, self._real):
            return self._fault(name, "it is a link that leads out of the folder", code="outside_root")
        fields = {"path": name, "name": path.name, "stem": path.stem, "suffix": path.suffix}
        return Row(name, fields, name=name, file=path)

    def _fault(self, name: str, problem: str, code: str = "unreadable") -> Row:
        raw = os.fsencode(name)
        shown = raw.decode("utf-8", errors="replace")
        row = fault(
            shown, problem, raw, hint="--allow-outside follows it" if code == "outside_root" else None, code=code
        )
        return Row(shown, name=shown, raw=raw, error=row.error)


def inside(path: Path, real_root: Path) -> bool:
    """Whether a path, its links followed, lies below a folder; a broken link counts as inside, reading it will fail."""
    try:
        return path.resolve().is_relative_to(real_root)
    except (OSError, RuntimeError, ValueError):
        return False


def _identity(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_dev, status.st_ino
