"""What a user set once for all runs: ``config.toml`` under the kit's root, and environment variables over it.

::

    model = "smollm2"        # where no model is named           QAK_MODEL
    quant = "int8"           # auto, fp32, bf16, int8, int4      QAK_QUANT
    context = 4096           # positions per conversation        QAK_CONTEXT
    prefixes = "off"         # on, off: prompts on disk          QAK_PREFIXES
    hub_token = "..."        # for gated repositories            HF_TOKEN

A file that says something else is refused with the key and its line; a secret is never shown.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from qwen_agent_kit.errors import UsageError
from qwen_agent_kit.paths import data_dir

__all__ = ["Settings", "config_path", "load_settings"]

_MOST = 2**16
_SECRET = frozenset({"hub_token"})
_ENVIRONMENT = {
    "model": "QAK_MODEL",
    "quant": "QAK_QUANT",
    "context": "QAK_CONTEXT",
    "prefixes": "QAK_PREFIXES",
    "hub_token": "HF_TOKEN",
}
_TYPES: dict[str, type] = {"model": str, "quant": str, "context": int, "prefixes": str, "hub_token": str}


@dataclass(frozen=True)
class Settings:
    """The settings; None where neither the file nor the environment says anything. ``repr`` shows no secret."""

    model: str | None = None
    quant: str | None = None
    context: int | None = None
    prefixes: str | None = None
    hub_token: str | None = field(default=None, repr=False)

    def to_dict(self) -> dict[str, Any]:
        """JSON data, secrets masked."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return {name: "***" if name in _SECRET and value else value for name, value in values.items()}


def config_path() -> Path:
    """Where the file is looked for."""
    return data_dir() / "config.toml"


def load_settings(path: Path | None = None, environment: Mapping[str, str] = os.environ) -> Settings:
    """Read the file, then the environment, which wins.

    Raises:
        UsageError: For a file that is no TOML, an unknown key or a wrong type, with the line; for a variable that holds
            no such value, with its name.
    """
    path = path or config_path()
    values = _from_file(path) if path.is_file() else {}
    for name, variable in _ENVIRONMENT.items():
        if text := environment.get(variable):
            values[name] = _number(variable, text) if _TYPES[name] is int else text
    return Settings(**values)


def _number(variable: str, text: str) -> int:
    if not (text.isascii() and text.isdigit() and 0 < len(text) < 10):
        raise UsageError(
            f"`{variable}` in the environment is {text[:40]!r}; allowed: a whole number", code="invalid_config"
        )
    return int(text)


def _from_file(path: Path) -> dict[str, Any]:
    try:
        data = path.read_bytes()
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UsageError(f"`{path.name}`, line {line}: it is not UTF-8", code="invalid_config") from error
    except OSError as error:
        raise UsageError(f"cannot read `{path.name}`: {error.strerror}", code="invalid_config") from error
    if len(data) > _MOST:
        raise UsageError(f"`{path.name}` has {len(data)} bytes; allowed: at most {_MOST}", code="invalid_config")
    try:
        values = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise UsageError(f"`{path.name}` is not TOML: {_place(error, text)}", code="invalid_config") from None
    for key, value in values.items():
        _check(key, value, f"`{path.name}`, line {_line(text, key)}")
    return values


def _check(key: str, value: Any, where: str) -> None:
    if key not in _TYPES:
        raise UsageError(
            f"{where}: the key {key[:40]!r} is unknown; allowed: {', '.join(sorted(_TYPES))}", code="invalid_config"
        )
    if not isinstance(value, _TYPES[key]) or isinstance(value, bool) or value in ("", 0):
        shown = "***" if key in _SECRET else repr(value)[:40]
        kind = "a whole number from 1" if _TYPES[key] is int else "a string"
        raise UsageError(f"{where}: `{key}` is {shown}; allowed: {kind}", code="invalid_config")


def _place(error: Exception, text: str) -> str:
    """Where the parser stopped; its own message could quote the file, secrets included."""
    found = re.search(r"at line (\d+), column (\d+)", str(error))
    return f"line {found[1]}, column {found[2]}" if found else f"line {text.count(chr(10)) + 1}, at the end"


def _line(text: str, key: str) -> int:
    pattern = re.compile(rf"""\s*\[*\s*["']?{re.escape(key)}["']?\s*[\].=]""")
    return next((n for n, line in enumerate(text.splitlines(), 1) if pattern.match(line)), 1)
