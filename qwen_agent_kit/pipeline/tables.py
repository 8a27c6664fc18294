"""CSV and JSON Lines, read row by row; a row that cannot be read is an error of that row alone."""

from __future__ import annotations

import csv
import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from qwen_agent_kit.errors import UsageError
from qwen_agent_kit.pipeline.rows import Row, fault

__all__ = ["CsvFile", "JsonLines", "MAX_LINE", "open_regular"]

MAX_LINE = 16 * 2**20
"""Bytes of one line; what is longer is skipped without being kept."""
PEEK = 100
"""Rows in which the columns of a JSON Lines file are looked for."""
_BOMS = ((b"\xff\xfe", "UTF-16"), (b"\xfe\xff", "UTF-16"), (b"\x00\x00\xfe\xff", "UTF-32"))


def open_regular(path: Path, what: str) -> BinaryIO:
    """Open a regular file for reading; a pipe or device cannot hold the process.

    Raises:
        UsageError: Where it cannot be read or is no regular file.
    """
    try:
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "not a path"
        raise UsageError(f"cannot read the {what} `{str(path)[:200]}`: {reason}", hint="check the path") from error
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise UsageError(f"the {what} `{str(path)[:200]}` is no regular file")
    return os.fdopen(handle, "rb")


class JsonLines:
    """A file with one JSON object per line. Empty lines are nothing.

    Args:
        path: UTF-8, a byte order mark allowed.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.root: Path | None = path.parent

    def columns(self) -> tuple[str, ...] | None:
        """The keys of the first rows that can be read, together."""
        found: dict[str, None] = {}
        for number, row in enumerate(self.rows()):
            found |= dict.fromkeys(row.fields)
            if number >= PEEK:
                break
        return tuple(found) or None

    def rows(self) -> Iterator[Row]:
        with open_regular(self.path, "source") as file:
            _refuse_utf16(file, self.path)
            for number, line in _lines(file):
                if line is None:
                    yield fault(f"line {number}", f"it has more than {MAX_LINE} bytes", code="too_large")
                elif line.strip():
                    yield _json_row(f"line {number}", line)

    def reads(self, path: Path) -> bool:
        return path.exists() and path.samefile(self.path)

    def total(self) -> int | None:
        with open_regular(self.path, "source") as file:
            return sum(line is None or bool(line.strip()) for _, line in _lines(file))


class CsvFile:
    """A table with its column names in the first row; every field is text.

    Args:
        path: UTF-8, a byte order mark allowed.
        delimiter: Between cells.
    """

    def __init__(self, path: Path, delimiter: str = ",") -> None:
        self.path = path
        self.root: Path | None = path.parent
        self._delimiter = delimiter

    def columns(self) -> tuple[str, ...] | None:
        """The first row.

        Raises:
            UsageError: Where it names a column twice or cannot be read.
        """
        with open_regular(self.path, "source") as file:
            _refuse_utf16(file, self.path)
            return self._header(self._cells(file))

    def rows(self) -> Iterator[Row]:
        with open_regular(self.path, "source") as file:
            _refuse_utf16(file, self.path)
            records = self._cells(file)
            columns = self._header(records)
            for first, cells in records if columns is not None else ():
                if cells is None or cells:
                    yield _csv_row(f"line {first}", columns or (), cells)

    def reads(self, path: Path) -> bool:
        return path.exists() and path.samefile(self.path)

    def total(self) -> int | None:
        with open_regular(self.path, "source") as file:
            records = self._cells(file)
            return 0 if self._header(records) is None else sum(cells is None or bool(cells) for _, cells in records)

    def _cells(self, file: BinaryIO) -> Iterator[tuple[int, list[str] | None]]:
        """(number of the first line, cells) per record; None for one that the csv module refuses."""
        texts = _Texts(file)
        reader = csv.reader(texts, delimiter=self._delimiter, strict=True)
        while True:
            first = reader.line_num + 1
            texts.record = 0
            try:
                yield first, next(reader)
            except StopIteration:
                return
            except csv.Error:
                yield first, None

    def _header(self, records: Iterator[tuple[int, list[str] | None]]) -> tuple[str, ...] | None:
        for _, cells in records:
            if cells is None or any(_broken(cell) for cell in cells):
                raise UsageError(f"the first row of `{self.path.name[:80]}` cannot be read", hint="is it a CSV file?")
            if cells:
                twice = sorted({cell for cell in cells if cells.count(cell) > 1})
                if twice:
                    raise UsageError(f"`{self.path.name[:80]}` names the column {twice[0][:80]!r} twice")
                return tuple(cells)
        return None


def _lines(file: BinaryIO) -> Iterator[tuple[int, bytes | None]]:
    """Numbered lines without a byte order mark; None for one that is too long."""
    number = 0
    while line := file.readline(MAX_LINE):
        number += 1
        if len(line) == MAX_LINE and not line.endswith(b"\n"):
            while (rest := file.readline(MAX_LINE)) and not rest.endswith(b"\n"):
                pass
            yield number, None
            continue
        yield number, line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line


class _Texts:
    """Lines for the csv module; what is not UTF-8 shows as lone surrogates, and a line that is too long as one NUL.

    Attributes:
        record: Bytes of the record that is being read; a record whose quotes never close is bounded by it.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._lines = _lines(file)
        self.record = 0

    def __iter__(self) -> _Texts:
        return self

    def __next__(self) -> str:
        _, line = next(self._lines)
        if line is None:
            return "\0\n"
        self.record += len(line)
        if self.record > MAX_LINE:
            raise csv.Error("the record is too long")
        return line.decode("utf-8", errors="surrogateescape")


def _refuse_utf16(file: BinaryIO, path: Path) -> None:
    head = file.read(4)
    file.seek(0)
    for mark, name in _BOMS:
        if head.startswith(mark):
            hint = f"convert it, as in `iconv -f {name.lower()} -t utf-8`"
            raise UsageError(f"`{path.name[:80]}` is {name}; allowed: UTF-8", hint=hint, code="invalid_encoding")


def _broken(text: str) -> bool:
    return "\0" in text or any("\ud800" <= char <= "\udfff" for char in text if char > "\ud7ff")


def _csv_row(where: str, columns: tuple[str, ...], cells: list[str] | None) -> Row:
    if cells is None:
        hint = f"a cell has at most {csv.field_size_limit()} characters, and every quote a partner; or use JSON Lines"
        return fault(where, "the record cannot be read", hint=hint)
    raw = "\x1f".join(cells).encode("utf-8", errors="surrogateescape")
    if any(_broken(cell) for cell in cells):
        return fault(where, "a cell holds a NUL or bytes that are not UTF-8, or the line is too long", raw)
    if len(cells) != len(columns):
        return fault(where, f"it has {len(cells)} cells; the first row has {len(columns)}", raw)
    return Row(where, dict(zip(columns, cells, strict=True)))


def _json_row(where: str, line: bytes) -> Row:
    try:
        data = json.loads(line.decode("utf-8"), object_pairs_hook=_once, parse_constant=_refuse)
        json.dumps(data, ensure_ascii=False).encode("utf-8")  # lone surrogates, spelt as escapes
    except _BadRowError as error:
        return fault(where, str(error), line)
    except UnicodeDecodeError as error:
        return fault(where, f"byte {error.start} is not UTF-8", line)
    except UnicodeEncodeError:
        return fault(where, "a text holds half of a surrogate pair", line)
    except RecursionError:
        return fault(where, "the JSON is nested too deeply", line)
    except json.JSONDecodeError as error:
        return fault(where, f"no JSON from column {error.colno}", line)
    except ValueError:
        return fault(where, "a number in it is too long", line)
    if not isinstance(data, dict):
        return fault(where, f"it holds a {type(data).__name__}; allowed: an object", line)
    return Row(where, data)


class _BadRowError(Exception):
    """JSON that the standard library reads and we do not."""


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    data = dict(pairs)
    if len(data) != len(pairs):
        raise _BadRowError("an object in it has a key twice")
    return data


def _refuse(name: str) -> Any:
    raise _BadRowError(f"it holds {name}, which is no JSON")
