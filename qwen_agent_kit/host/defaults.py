"""Which model answers where none is named."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from qwen_agent_kit.backends import Backend
from qwen_agent_kit.errors import ModelError, PluginError, UsageError
from qwen_agent_kit.host.resolve import resolve
from qwen_agent_kit.placement.fetch import locate_model, parse_reference

if TYPE_CHECKING:
    from qwen_agent_kit.host.host import Host

__all__ = ["backends_with_default", "default_model"]


def default_model(host: Host, kinds: frozenset[str]) -> str:
    """The installed entry that answers for the fewest kinds besides ``kinds``; else the default of such a backend.

    A backend's default counts where it is on this machine: nothing is fetched that nobody named.

    Raises:
        UsageError: Where there is none; the hint names the defaults that could be fetched.
        PluginError: Where a backend's default means nothing.
    """
    fitting = [entry for entry in host.entries if kinds <= entry.default_for]
    if fitting:
        return min(fitting, key=lambda entry: len(entry.kinds)).name
    backends = [backend for backend in host.backends if kinds <= backend.accepts]
    if here := backends_with_default(host, backends):
        return str(min(here, key=lambda backend: len(backend.accepts)).default)
    answering = {kind for entry in host.entries for kind in entry.default_for}
    answering |= {kind for backend in backends_with_default(host, host.backends) for kind in backend.accepts}
    named = next((backend.default for backend in backends if backend.default), None)
    raise UsageError(
        f"no model is named, and none installed answers for {sorted(kinds)}; installed for: {sorted(answering)}",
        hint="name one, as in Agent('file.gguf') or QAK_MODEL; "
        + (f"`qak models fetch {named}` brings one, " if named else "")
        + "qwen-agent-kit-miniatures small ones",
        code="model_not_found",
    )


def backends_with_default(host: Host, backends: Sequence[Backend]) -> tuple[Backend, ...]:
    """Those whose default is on this machine."""
    return tuple(b for b in backends if b.default and _is_here(host, b, b.default))


def _is_here(host: Host, backend: Backend, spec: str) -> bool:
    try:
        target = resolve(spec, host.entries, host.engines)
    except ModelError:
        return False  # a path where nothing is
    except UsageError as error:
        raise PluginError(
            f"the backend `{backend.name}` has the default {spec[:80]!r}, which means nothing: {error.message}",
            hint="`Backend.default` is a name that register_models offers, a path, `engine:spec` or a hub id",
        ) from error
    if target.hub:
        reference = parse_reference(spec)
        return reference is not None and locate_model(reference) is not None
    return target.entry is None or (target.entry.locate is not None and target.entry.locate() is not None)
