"""What a user set once for all runs: ``config.toml`` under the kit's root, and environment variables over it.

::

    model = "smollm2"        # where no model is named           QAK_MODEL
    quant = "int8"           # auto, fp32, bf16, int8, int4      QAK_QUANT
    context = 4096           # positions per conversation        QAK_CONTEXT
    prefixes = "off"         # on, off: prompts on disk          QAK_PREFIXES
    disk = "on"              # on, off: layers on disk           QAK_DISK
    ahead = "off"            # on, off: work between turns       QAK_AHEAD
    hub_token = "..."        # for gated repositories            HF_TOKEN

A file that says something else is refused with the key and its line, unless the variable says it better; a secret is
never shown.
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
_ALLOWED = {
    "quant": ("auto", "fp32", "bf16", "int8", "int4"),
    "prefixes": ("on", "off"),
    "disk": ("on", "off"),
    "ahead": ("on", "off"),
}
_SECRET = frozenset({"hub_token"})
_ENVIRONMENT = {
    "model": "QAK_MODEL",
    "quant": "QAK_QUANT",
    "context": "QAK_CONTEXT",
    "prefixes": "QAK_PREFIXES",
    "disk": "QAK_DISK",
    "ahead": "QAK_AHEAD",
    "hub_token": "HF_TOKEN",
}
_TYPES: dict[str, type] = {
    "model": str,
    "quant": str,
    "context": int,
    "prefixes": str,
    "disk": str,
    "ahead": str,
    "hub_token": str,
}


@dataclass(frozen=True)
class Settings:
    """The settings; None where neither the file nor the environment says anything. ``repr`` shows no secret."""

    model: str | None = None
    quant: str | None = None
    context: int | None = None
    prefixes: str | None = None
    disk: str | None = None
    ahead: str | None = None
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
        UsageError: For a file that is no TOML, an unknown key or a value that is not allowed, with the line; for a
            variable that holds no such value, with its name.
    """
    path = path or config_path()
    said = {name: text for name, variable in _ENVIRONMENT.items() if (text := environment.get(variable))}
    values = _from_file(path, said) if path.is_file() else {}
    return Settings(**{**values, **{name: _from_variable(name, text) for name, text in said.items()}})


def _from_variable(name: str, text: str) -> Any:
    if _TYPES[name] is not int:
        fine = name not in _ALLOWED or text in _ALLOWED[name]
    else:
        fine = text.isascii() and text.isdigit() and len(text) < 10 and int(text) > 0
    if not fine:
        raise UsageError(
            f"`{_ENVIRONMENT[name]}` in the environment is {text[:40]!r}; allowed: {_kind(name)}", code="invalid_config"
        )
    return int(text) if _TYPES[name] is int else text


def _kind(name: str) -> str:
    if name in _ALLOWED:
        return ", ".join(_ALLOWED[name])
    return "a whole number from 1" if _TYPES[name] is int else "a string"


def _from_file(path: Path, said: Mapping[str, str]) -> dict[str, Any]:
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
        if key not in said:
            _check(key, value, f"`{path.name}`, line {_line(text, key)}", path)
    return values


def _check(key: str, value: Any, where: str, path: Path) -> None:
    if key not in _TYPES:
        raise UsageError(
            f"{where}: the key {key[:40]!r} is unknown; allowed: {', '.join(sorted(_TYPES))}", code="invalid_config"
        )
    fine = isinstance(value, _TYPES[key]) and not isinstance(value, bool) and value != ""
    fine = fine and (value > 0 if isinstance(value, int) else key not in _ALLOWED or value in _ALLOWED[key])
    if not fine:
        shown = "***" if key in _SECRET else repr(value)[:40]
        hint = f"mend it in {path}, or set {_ENVIRONMENT[key]}, which goes over the file"
        raise UsageError(f"{where}: `{key}` is {shown}; allowed: {_kind(key)}", hint=hint, code="invalid_config")


def _place(error: Exception, text: str) -> str:
    """Where the parser stopped; its own message could quote the file, secrets included."""
    found = re.search(r"at line (\d+), column (\d+)", str(error))
    return f"line {found[1]}, column {found[2]}" if found else f"line {text.count(chr(10)) + 1}, at the end"


def _line(text: str, key: str) -> int:
    pattern = re.compile(rf"""\s*\[*\s*["']?{re.escape(key)}["']?\s*[\].=]""")
    return next((n for n, line in enumerate(text.splitlines(), 1) if pattern.match(line)), 1)
