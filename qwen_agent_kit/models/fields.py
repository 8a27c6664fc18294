"""Values out of a model's own metadata, each checked before it is used for anything."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from qwen_agent_kit.errors import ModelError

__all__ = ["Fields", "parse_json", "read_json", "read_text"]

_LARGEST = 64 * 2**20


class Fields:
    """A mapping from a file, read field by field; what is wrong is named with the field and the file.

    Args:
        data: What the file holds.
        where: The file's name, for messages.
    """

    def __init__(self, data: Mapping[str, Any], where: str) -> None:
        self.data = data
        self.where = where

    def refuse(self, name: str, allowed: str, *, hint: str | None = None) -> NoReturn:
        """Raise a ``ModelError`` that names the field, what was found and what is allowed."""
        found = _short(self.data[name]) if name in self.data else "missing"
        raise ModelError(f"`{name}` in `{self.where}` is {found}; allowed: {allowed}", hint=hint, code="invalid_config")

    def has(self, name: str) -> bool:
        """Whether the field is there and not null."""
        return self.data.get(name) is not None

    def whole(self, name: str, low: int, high: int, default: int | None = None) -> int:
        """An integer in a range; ``default`` where the field is missing or null, unless that is None."""
        value = self.data.get(name)
        if value is None and default is not None:
            return default
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            self.refuse(name, f"a whole number from {low} to {high}")
        return value

    def real(self, name: str, low: float, high: float, default: float | None = None) -> float:
        """A finite number in a range; ``default`` where the field is missing or null, unless that is None."""
        value = self.data.get(name)
        if value is None and default is not None:
            return default
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
            self.refuse(name, f"a number from {low:g} to {high:g}")
        return float(value)

    def flag(self, name: str, default: bool) -> bool:
        """True or false."""
        value = self.data.get(name)
        if value is None:
            return default
        if not isinstance(value, bool):
            self.refuse(name, "true or false")
        return value

    def text(self, name: str, default: str | None = None) -> str:
        """A string."""
        value = self.data.get(name)
        if value is None and default is not None:
            return default
        if not isinstance(value, str):
            self.refuse(name, "a string")
        return value

    def wholes(self, name: str, low: int, high: int, most: int) -> tuple[int, ...]:
        """A list of integers, empty where missing."""
        value = self.data.get(name)
        if value is None:
            return ()
        good = isinstance(value, list | tuple) and len(value) <= most
        if not good or any(isinstance(v, bool) or not isinstance(v, int) or not low <= v <= high for v in value):
            self.refuse(name, f"at most {most} whole numbers from {low} to {high}")
        return tuple(value)

    def part(self, name: str) -> Fields:
        """An object inside, empty where missing."""
        value = self.data.get(name)
        if value is None:
            value = {}
        if not isinstance(value, Mapping):
            self.refuse(name, "an object")
        return Fields(value, self.where)


def _short(value: Any) -> str:
    if isinstance(value, Mapping | list | tuple):
        return f"a {type(value).__name__} of {len(value)}"
    if isinstance(value, int) and value.bit_length() > 256:
        return f"an integer of {value.bit_length()} bits"
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def read_json(path: Path, *, largest: int = _LARGEST) -> dict[str, Any]:
    """The object that a JSON file holds.

    Raises:
        ModelError: Where the file is missing, larger than ``largest`` bytes, not JSON, not an object, or holds NaN,
            an infinity or a key twice.
    """
    return parse_json(_read(path, largest), path.name)


def read_text(path: Path, *, largest: int = _LARGEST) -> str:
    """The text that a UTF-8 file holds.

    Raises:
        ModelError: Where the file is missing, larger than ``largest`` bytes or not UTF-8.
    """
    try:
        return _read(path, largest).decode()
    except UnicodeDecodeError as error:
        raise ModelError(f"`{path.name}` is not UTF-8", code="invalid_config") from error


def parse_json(data: bytes, name: str) -> dict[str, Any]:
    """The object that JSON text holds; see ``read_json``."""
    try:
        found = json.loads(data, parse_constant=_no_constant, object_pairs_hook=_object)
    except (ValueError, RecursionError) as error:
        raise ModelError(f"`{name}` cannot be read: {_reason(error)}", code="invalid_config") from error
    if not isinstance(found, dict):
        raise ModelError(f"`{name}` holds a {type(found).__name__}; allowed: an object", code="invalid_config")
    return found


def _read(path: Path, largest: int) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(largest + 1)
    except FileNotFoundError as error:
        raise ModelError(f"`{path}` is missing", hint="a model directory holds it; fetch the model again") from error
    except OSError as error:
        raise ModelError(f"`{path.name}` cannot be read: {error.strerror}") from error
    if len(data) > largest:
        raise ModelError(f"`{path.name}` has more than {largest} bytes, which is the most that is allowed")
    return data


def _reason(error: BaseException) -> str:
    return str(getattr(error, "msg", None) or error)[:200]


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise ValueError(f"the key {key[:80]!r} is there twice")
            seen.add(key)
    for value in made.values():
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError("a number is not finite")
    return made
