"""From what a user writes as a model to the files or the engine behind it."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from qwen_agent_kit.backends import EngineSpec
from qwen_agent_kit.catalog import ModelEntry
from qwen_agent_kit.errors import ModelError, UsageError
from qwen_agent_kit.placement.fetch import Reference, fetch_model, locate_model, parse_reference
from qwen_agent_kit.placement.sources import Header

__all__ = ["Target", "resolve"]

_PREFIX = re.compile(r"([a-z][a-z0-9_-]+):(.+)", re.DOTALL)


@dataclass(frozen=True)
class Target:
    """A model that can be opened: an engine of a plugin with the rest of the name, or files (found when asked for).

    Args:
        name: As it is shown.
        engine: Of a plugin; it has no files of ours.
        rest: What the engine gets of the name.
        entry: The plugin's entry, where the name is one.
        files: Finds or fetches the files.
        hub: Whether the name is a hub's.
        header: Reads the model's headers without its weights, where that can be done.
    """

    name: str
    engine: EngineSpec | None = None
    rest: str = ""
    entry: ModelEntry | None = None
    files: Callable[[], Path] | None = None
    hub: bool = False
    header: Callable[[], Header] | None = None

    def path(self) -> Path:
        """The directory or file with the weights.

        Raises:
            ModelError: Where it is not on this machine; the hint says how to get it.
            FetchError: Where fetching it failed.
        """
        assert self.files is not None, "an engine's model has no files of ours"
        return self.files()


def resolve(
    spec: str, entries: Sequence[ModelEntry], engines: Sequence[EngineSpec], token: str | None = None
) -> Target:
    """Find what ``spec`` means: a catalog name, a path, ``engine:spec`` or a hub id, in this order.

    Args:
        spec: What the user wrote.
        entries: The models that plugins offer.
        engines: The engines that plugins offer.
        token: For gated repositories of the hub.

    Raises:
        UsageError: Where it can mean nothing.
    """
    if not isinstance(spec, str) or not spec.strip() or "\0" in spec or len(spec) > 4096:
        raise UsageError(f"the model is {str(spec)[:80]!r}; allowed: a name, a path, `engine:spec` or a hub id")
    for entry in entries:
        if entry.answers_to(spec):
            return Target(entry.name, entry=entry, files=partial(_located, entry))
    path = Path(spec).expanduser()
    if path.is_dir() or path.is_file():
        return Target(path.name, files=lambda: path.resolve())
    reference = parse_reference(spec)
    if reference is not None and (reference.file or spec.startswith(("hf:", "modelscope:"))):
        return _of_hub(reference, token)
    if match := _PREFIX.fullmatch(spec):
        return _engine(match[1], match[2], engines)
    if spec.endswith((".gguf", "/", "\\")) or spec.startswith((".", "/", "~")):
        raise ModelError(f"there is no file or directory `{spec}`", hint="check the path", code="model_not_found")
    if reference is not None:
        return _of_hub(reference, token)
    names = [entry.name for entry in entries]
    close = difflib.get_close_matches(spec, names, 1)
    raise UsageError(
        f"no model is named {spec!r}; installed: {', '.join(map(repr, names)) or 'none'}",
        hint=f"did you mean `{close[0]}`?" if close else "`qak models` lists them; a hub id has the form owner/name",
        code="model_not_found",
    )


def _of_hub(reference: Reference, token: str | None) -> Target:
    return Target(
        str(reference),
        files=lambda: fetch_model(reference, token=token),
        hub=True,
        header=lambda: _header(reference, token),
    )


def _header(reference: Reference, token: str | None) -> Header:
    from qwen_agent_kit.placement.fetch_header import read_header  # it brings the network

    return read_header(locate_model(reference) or reference, token=token)


def _engine(prefix: str, rest: str, engines: Sequence[EngineSpec]) -> Target:
    for engine in engines:
        if engine.prefix == prefix:
            return Target(f"{prefix}:{rest}", engine=engine, rest=rest)
    known = ", ".join(repr(engine.prefix) for engine in engines) or "none"
    raise UsageError(
        f"no engine is named {prefix!r}; installed: {known}",
        hint=f'pip install "qwen-agent-kit-{prefix}", or check the path',
        code="engine_not_found",
    )


def _located(entry: ModelEntry) -> Path:
    path = entry.locate() if entry.locate is not None else None
    if path is None:
        hint = entry.hint or f"`qak models fetch {entry.name}`"
        raise ModelError(f"the model `{entry.name}` is not on this machine", hint=hint, code="model_not_here")
    return path
