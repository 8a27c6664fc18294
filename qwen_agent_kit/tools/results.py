"""What a tool returned, as parts of a message: bounded in time and size, whatever it was."""

from __future__ import annotations

import base64
import dataclasses
import enum
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Set
from itertools import islice
from typing import Any

from qwen_agent_kit.messages import Media, Part, Reasoning, Text, ToolResult

__all__ = ["MAX_CHARS", "UnusableResultError", "clean", "safe_text", "to_parts"]

MAX_CHARS = 20_000
"""Characters of text in one result; the rest is cut."""
MAX_MEDIA = 64
MAX_NODES = 200_000
MAX_DEPTH = 64
MAX_BITS = 10_000

Parts = tuple[Part, ...]


class UnusableResultError(Exception):
    """A tool returned something that no model can read; the text says what and what to return in its place."""


def to_parts(value: Any, max_chars: int = MAX_CHARS) -> tuple[Parts, bool]:
    """A tool's return value as text and media parts, and whether it was a ``ToolResult`` that is an error.

    Text past ``max_chars`` is cut, with a notice that says how many characters are missing. Media come out ``found``,
    unless their source is bytes.

    Raises:
        UnusableResultError: For a generator or any other iterator.
    """
    if type(value) is str and len(value) <= max_chars:
        return (Text(clean(value)),), False
    parts: list[Part] = []
    left, missing, dropped = max_chars, 0, 0
    for item in _flat(value):
        media: list[Media] = [item] if isinstance(item, Media) else []
        if not media:
            text = _text(item, media)
            if left or not text:
                _append_text(parts, clean(text[:left]), join=not isinstance(value, ToolResult))
            missing += max(0, len(text) - left)
            left = max(0, left - len(text))
        kept = media[: max(0, MAX_MEDIA - sum(isinstance(part, Media) for part in parts))]
        dropped += len(media) - len(kept)
        parts += [_found(medium) for medium in kept]
    if missing:
        _append_text(parts, f"[cut: {missing:,} more characters are missing]", join=True)
    if dropped:
        _append_text(parts, f"[{dropped} images, clips or documents are missing: at most {MAX_MEDIA} fit]", join=True)
    return tuple(parts), isinstance(value, ToolResult) and value.is_error


def _flat(value: Any) -> list[Any]:
    if isinstance(value, ToolResult):
        return [inner for part in value.parts for inner in _flat(part)]
    if isinstance(value, list | tuple) and any(isinstance(item, Media | Text | ToolResult) for item in value):
        return [inner for item in value for inner in _flat(item)]
    return [value]


def _found(medium: Media) -> Media:
    return medium if isinstance(medium.source, bytes) else medium.found()


def _append_text(parts: list[Part], text: str, *, join: bool) -> None:
    last = parts[-1] if parts else None
    if join and isinstance(last, Text):
        parts[-1] = Text(f"{last.text}\n{text}")
    else:
        parts.append(Text(text))


def clean(text: str) -> str:
    """The text with U+FFFD for each half of a surrogate pair, so that it can be encoded."""
    if text.isascii():
        return text
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def safe_text(value: Any) -> str:
    """``str(value)``, also where that raises."""
    try:
        return str.__str__(str(value))
    except Exception as error:  # noqa: BLE001  # a hostile __str__ may raise anything, and text is still needed
        return f"<{type(value).__name__} whose text raised {type(error).__name__}>"


def _text(value: Any, media: list[Media]) -> str:
    if isinstance(value, Text | Reasoning):
        return value.text
    if isinstance(value, str) and not isinstance(value, enum.Enum):
        return str.__str__(value)
    if isinstance(value, bytes | bytearray | memoryview):
        return _bytes_text(bytes(value))
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        return json.dumps(_Plain(media).of(value, 0), ensure_ascii=False, allow_nan=False)


def _bytes_text(data: bytes) -> str:
    if b"\0" in data[:8192]:
        return f"[{len(data):,} bytes that are no text]"
    return data.decode("utf-8", "replace")


class _Plain:
    """Turns a value into JSON data: at most ``MAX_DEPTH`` levels and ``MAX_NODES`` values, media set aside."""

    def __init__(self, media: list[Media]) -> None:
        self.media = media
        self.nodes = 0

    def of(self, value: Any, depth: int) -> Any:
        self.nodes += 1
        if value is None or value is True or value is False:
            return value
        if isinstance(value, enum.Enum):
            return self.of(value.value, depth + 1) if depth < MAX_DEPTH else safe_text(value)
        if isinstance(value, str):
            return str.__str__(value)
        if isinstance(value, int | float):
            return _number(value)
        if depth >= MAX_DEPTH:
            return "[nested too deep]"
        return self._inside(value, depth)

    def _inside(self, value: Any, depth: int) -> Any:
        if isinstance(value, Media):
            self.media.append(value)
            return f"[{value.kind} {len(self.media)}]"
        if isinstance(value, Text | Reasoning):
            return value.text
        if isinstance(value, bytes | bytearray | memoryview):
            return base64.b64encode(bytes(value)[:65536]).decode("ascii")
        if isinstance(value, Mapping):
            return self._members(value.items(), len(value), depth)
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            fields = dataclasses.fields(value)
            return self._members(((f.name, getattr(value, f.name, None)) for f in fields), len(fields), depth)
        if hasattr(type(value), "model_dump"):
            return self.of(value.model_dump(), depth)
        if isinstance(value, list | tuple | Set) or type(value).__name__ in ("deque", "range"):
            return self._items(value, len(value), depth)
        if isinstance(value, Iterator) or hasattr(value, "__anext__"):
            raise UnusableResultError(f"it returned a {type(value).__name__}, which is not read; a tool returns a list")
        return self._other(value, depth)

    def _other(self, value: Any, depth: int) -> Any:
        size = getattr(value, "size", None)  # numpy arrays and scalars
        if hasattr(type(value), "tolist") and isinstance(size, int) and size <= MAX_NODES:
            return self.of(value.tolist(), depth)
        for method in ("isoformat", "as_posix"):  # dates and times; paths
            if hasattr(type(value), method):
                return safe_text(getattr(value, method)())
        return safe_text(value)

    def _members(self, items: Iterable[tuple[Any, Any]], count: int, depth: int) -> dict[str, Any]:
        plain: dict[str, Any] = {}
        for key, value in items:
            if self.nodes >= MAX_NODES:
                plain["…"] = f"[{count - len(plain):,} more members are missing]"
                break
            plain[_key(key)] = self.of(value, depth + 1)
        return plain

    def _items(self, items: Iterable[Any], count: int, depth: int) -> list[Any]:
        plain: list[Any] = []
        for value in islice(items, count):
            if self.nodes >= MAX_NODES:
                plain.append(f"[{count - len(plain):,} more items are missing]")
                break
            plain.append(self.of(value, depth + 1))
        return plain


def _key(key: Any) -> str:
    if isinstance(key, enum.Enum):
        key = key.value
    if isinstance(key, str):
        return str.__str__(key)
    if key is None or isinstance(key, bool):
        return json.dumps(key)
    return safe_text(key)


def _number(value: int | float) -> Any:
    if isinstance(value, float):
        if math.isfinite(value):
            return float(value)
        return "NaN" if math.isnan(value) else ("Infinity" if value > 0 else "-Infinity")
    return int(value) if value.bit_length() <= MAX_BITS else f"[an integer of {value.bit_length():,} bits]"
