"""A journal as a Parquet file: written row group by row group beside its place, then renamed into it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from qwen_agent_kit.errors import StoreError, UsageError
from qwen_agent_kit.pipeline.journal import read_lines

__all__ = ["require_pyarrow", "write_parquet"]

GROUP = 1000
"""Rows per row group."""
GROUP_BYTES = 32 * 2**20
"""Characters of answers after which a row group ends early."""
_SCALARS = {"string": str, "integer": int, "number": float, "boolean": bool}
_INT64 = 2**63


def require_pyarrow() -> Any:
    """The module pyarrow.

    Raises:
        UsageError: Where it is not installed.
    """
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise UsageError(
            "a Parquet sink needs pyarrow, which is not installed", hint='pip install "qwen-agent-kit[pipeline]"'
        ) from error
    return pyarrow


def write_parquet(journal: Path, path: Path, schema: Mapping[str, Any] | None) -> None:
    """Write every result of a journal to ``path``, whole or not at all.

    Columns: ``key``, ``index``, ``text`` (the answer as text, or as JSON where a schema was asked for), ``output`` (the
    typed answer, where the schema can be a column type; null where a value does not fit it), ``stop_reason``,
    ``attempts``, ``error`` (code), ``error_message``.

    Raises:
        StoreError: Where the disk refuses.
    """
    arrow = require_pyarrow()
    typed = _Typed(schema)
    temporary = path.with_name(f".{path.name}.new")
    columns = [("key", arrow.string()), ("index", arrow.int64()), ("text", arrow.large_string())]
    columns += [("output", typed.arrow(arrow))] if typed.usable else []
    columns += [("stop_reason", arrow.string()), ("attempts", arrow.int64())]
    columns += [("error", arrow.string()), ("error_message", arrow.string())]
    shape = arrow.schema(columns)
    try:
        with arrow.parquet.ParquetWriter(str(temporary), shape) as writer:
            for group in _groups(read_lines(journal)):
                rows = [_row(record, typed) for record in group]
                writer.write_table(arrow.Table.from_pylist(rows, schema=shape))
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise StoreError(
            f"cannot write `{path.name[:80]}`: {error.strerror or type(error).__name__}",
            hint="the results are safe in the journal beside it; the same command writes the file again",
        ) from error


def _groups(records: Iterator[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """Records in lists whose size is bounded by number and by text."""
    group: list[dict[str, Any]] = []
    size = 0
    for record in records:
        group.append(record)
        size += len(record["output"]) if isinstance(record["output"], str) else 200
        if len(group) >= GROUP or size >= GROUP_BYTES:
            yield group
            group, size = [], 0
    if group:
        yield group


def _row(record: Mapping[str, Any], typed: _Typed) -> dict[str, Any]:
    output, error = record["output"], record["error"]
    text = output if output is None or isinstance(output, str) else json.dumps(output, ensure_ascii=False)
    if typed.schema is not None and error is None:
        text = json.dumps(output, ensure_ascii=False)
    row = {"key": record["key"], "index": record["index"], "text": text, "stop_reason": record["stop_reason"]}
    row |= {"attempts": record["attempts"]}
    row |= {"error": error and error["code"], "error_message": error and error["message"]}
    row = {name: _utf8(value) if isinstance(value, str) else value for name, value in row.items()}
    return row | ({"output": typed.value(output) if error is None else None} if typed.usable else {})


def _utf8(text: str) -> str:
    """Parquet holds UTF-8: half of a surrogate pair becomes a question mark."""
    return text.encode("utf-8", errors="replace").decode("utf-8")


class _Typed:
    """A JSON schema as a column type: objects of named fields, lists and scalars; anything else has none."""

    def __init__(self, schema: Mapping[str, Any] | None) -> None:
        self.schema = schema
        self._type = _type_of(schema) if schema is not None else None
        self.usable = self._type is not None

    def arrow(self, arrow: Any) -> Any:
        """The Arrow type."""
        return _arrow(self._type, arrow)

    def value(self, output: Any) -> Any:
        """The answer as that type takes it; None where it does not fit."""
        return output if _fits(output, self._type) else None


def _type_of(schema: Any, depth: int = 0) -> Any:
    """A scalar type, [type] for a list, {name: type} for an object; None where the schema is something else."""
    if not isinstance(schema, Mapping) or depth > 20:
        return None
    kind = schema.get("type")
    if kind in _SCALARS:
        return _SCALARS[kind]
    if kind == "array":
        inner = _type_of(schema.get("items"), depth + 1)
        return [inner] if inner is not None else None
    properties = schema.get("properties")
    if kind != "object" or not isinstance(properties, Mapping) or not properties:
        return None
    types = {str(name): _type_of(value, depth + 1) for name, value in properties.items()}
    return None if None in types.values() else types


def _arrow(kind: Any, arrow: Any) -> Any:
    if isinstance(kind, list):
        return arrow.list_(_arrow(kind[0], arrow))
    if isinstance(kind, dict):
        return arrow.struct([(name, _arrow(value, arrow)) for name, value in kind.items()])
    return {str: arrow.large_string(), int: arrow.int64(), float: arrow.float64(), bool: arrow.bool_()}[kind]


def _fits(value: Any, kind: Any) -> bool:
    if isinstance(kind, list):
        return isinstance(value, list) and all(_fits(inner, kind[0]) for inner in value)
    if isinstance(kind, dict):
        known = isinstance(value, dict) and set(value) <= set(kind)
        return known and all(_fits(inner, kind[name]) for name, inner in value.items())
    if isinstance(value, bool) or kind is bool:
        return isinstance(value, bool) and kind is bool
    if kind is int:
        return isinstance(value, int) and -_INT64 <= value < _INT64
    if kind is float:
        return isinstance(value, float) or (isinstance(value, int) and abs(value) <= 2**53)
    return isinstance(value, str) and value == _utf8(value)
