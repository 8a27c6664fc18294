"""Several backends as one, for a model whose media no single one covers: each takes the parts of its kinds.

So a model that sees and hears is driven by the backend that sees and the one that hears, without either knowing of the
other, and runs with what is installed of the two.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

from qwen_agent_kit.backends import (
    Backend,
    Embeddings,
    Encoder,
    MediaBudget,
    MediaSpan,
    ModelFacts,
    Run,
    Share,
    Slice,
)
from qwen_agent_kit.errors import MediaError, PluginError, QakError

if TYPE_CHECKING:
    from qwen_agent_kit.messages import Media

__all__ = ["asked", "drivers_of", "joint", "media_driver", "members"]

T = TypeVar("T")


def asked(backend: Backend, name: str, function: Callable[..., T], *given: Any) -> T:
    """What ``function``, called ``name``, of a plugin's backend answers.

    Raises:
        PluginError: Where it fails with an error that is not the kit's; those travel unchanged.
    """
    try:
        return function(*given)
    except QakError:
        raise
    except Exception as error:
        from qwen_agent_kit.plugins.guard import describe

        raise PluginError(
            f"`{name}` of the backend {backend.name!r} failed: {describe(error)}",
            hint="what it refuses is a MediaError; `qak plugins` says whose it is",
        ) from error


def drivers_of(family: str, backends: Sequence[Backend]) -> tuple[Backend, ...]:
    """The backends that can drive a family's models: those that name it, or one made of them.

    Args:
        family: A catalog family, or a plugin's own ``model_type``.
        backends: The installed ones.
    """
    fitting = sorted((b for b in backends if family in b.families), key=lambda b: (len(b.accepts), b.name))
    together: list[Backend] = []
    for backend in fitting:
        media = backend.accepts - {"text"}
        if media and not any(media & other.accepts for other in together):
            together.append(backend)
    if len(together) < 2:
        return tuple(fitting)
    return (joint(family, together), *(backend for backend in fitting if backend not in together))


def media_driver(family: str, backends: Sequence[Backend]) -> Backend | None:
    """The one that takes the media of a family's models, the narrowest; None where none installed does."""
    fitting = drivers_of(family, [backend for backend in backends if backend.widen and backend.encoder])
    return min(fitting, key=lambda backend: (len(backend.accepts), backend.name), default=None)


def joint(family: str, backends: Sequence[Backend]) -> Backend:
    """One backend that hands each part to the one of ``backends`` that takes its kind.

    Args:
        family: What they drive together.
        backends: Two or more; no kind but text is taken by two of them.
    """
    parts = _Parts(tuple(backends))
    return Backend(
        name="+".join(sorted(backend.name for backend in backends)),
        accepts=frozenset().union(*(backend.accepts for backend in backends)),
        families=(family,),
        parts=tuple(part for backend in backends for part in backend.parts),
        resident=all(backend.resident for backend in backends),
        widen=parts.widen if all(backend.widen for backend in backends) else None,
        positions=parts.positions if any(backend.positions for backend in backends) else None,
        encoder=parts.encoder if all(backend.encoder for backend in backends) else None,
        footprint=parts.footprint if all(backend.footprint for backend in backends) else None,
        placeholders=frozenset().union(*(backend.placeholders for backend in backends)),
    )


def members(backend: Backend) -> tuple[Backend, ...]:
    """The ones that a backend was made of by ``joint``; itself, where it was not."""
    parts = getattr(backend.widen, "__self__", None)
    return parts.backends if isinstance(parts, _Parts) else (backend,)


@dataclass(frozen=True, slots=True)
class _Owned:
    """An item, and which of the backends it came from."""

    owner: int
    item: Any

    @property
    def total_pixels(self) -> int:
        """Of the whole item; its first slice counts for all."""
        inner = self.item
        if isinstance(inner, Slice):
            inner = inner.item if inner.start == 0 else None
        return int(getattr(inner, "total_pixels", 0))


class _Parts:
    """The functions of a joint backend."""

    def __init__(self, backends: tuple[Backend, ...]) -> None:
        self.backends = backends

    def widen(self, part: Media, facts: ModelFacts, budget: MediaBudget) -> tuple[int, str, Any] | list[Run]:
        owner = self._owner(part)
        made = self._widened(owner, part, facts, budget)
        if isinstance(made, tuple):
            return made[0], made[1], _Owned(owner, made[2])
        runs: list[Run] = []
        shared: dict[int, tuple[int, str, Any]] = {}
        for run in made:
            if isinstance(run, Run):
                runs.append(replace(run, item=_Owned(owner, run.item)))
                continue
            if id(run.part) not in shared:
                shared[id(run.part)] = self._whole(run.part, facts, budget)
            _add(runs, run, *shared[id(run.part)])
        return runs

    def _whole(self, part: Media, facts: ModelFacts, budget: MediaBudget) -> tuple[int, str, Any]:
        made = self.widen(part, facts, budget)
        assert isinstance(made, tuple), "a part that is shared has one run"
        return made

    def _widened(
        self, owner: int, part: Media, facts: ModelFacts, budget: MediaBudget
    ) -> tuple[int, str, Any] | Sequence[Run | Share]:
        backend = self.backends[owner]
        assert backend.widen is not None, "checked where it was made"
        return asked(backend, "widen", backend.widen, part, facts, budget)

    def _owner(self, part: Media) -> int:
        for number, backend in enumerate(self.backends):
            if part.kind in backend.accepts:
                return number
        raise MediaError(f"no installed backend takes a part of kind {part.kind!r} for this model")

    def positions(self, ids: Sequence[int], spans: Sequence[MediaSpan]) -> tuple[Any, int]:
        """Of the one that has positions of its own; it gets every item as its maker made it."""
        positions = next(backend.positions for backend in self.backends if backend.positions)
        found: tuple[Any, int] = positions(ids, [replace(span, item=span.item.item) for span in spans])
        return found

    def encoder(self, facts: ModelFacts, tensors: Any, device: str) -> Encoder:
        return _Encoder(self.backends, facts, tensors, device)

    def footprint(self, facts: ModelFacts, budget: MediaBudget) -> int:
        stating = [(backend, backend.footprint) for backend in self.backends if backend.footprint]
        return sum(asked(backend, "footprint", states, facts, budget) for backend, states in stating)


def _add(runs: list[Run], share: Share, length: int, digest: str, owned: _Owned) -> None:
    """Put a share of an item of ``length`` placeholders behind the runs so far."""
    start, stop = share.start, length if share.stop is None else min(share.stop, length)
    if start < stop:
        item = _Owned(owned.owner, Slice(owned.item, start, stop))
        runs.append(Run(stop - start, f"{digest}-{start}-{stop}", item, after=share.after, token=share.token))
    elif share.after:
        assert runs, "a backend begins with a run of its own"
        runs[-1] = replace(runs[-1], after=(*runs[-1].after, *share.after))


class _Encoder:
    """The towers of all, each read on the first item that is its own."""

    def __init__(self, backends: tuple[Backend, ...], facts: ModelFacts, tensors: Any, device: str) -> None:
        self._backends = backends
        self._from = (facts, tensors, device)
        self._made: dict[int, Encoder] = {}

    def encode(self, items: Sequence[_Owned]) -> list[Embeddings]:
        """One result an item; an item that is there in slices is encoded once."""
        wholes = [owned.item.item if isinstance(owned.item, Slice) else owned.item for owned in items]
        made: dict[int, Embeddings] = {}
        for owner in dict.fromkeys(owned.owner for owned in items):
            own = {id(whole): whole for owned, whole in zip(items, wholes, strict=True) if owned.owner == owner}
            made |= dict(zip(own, self._encoder(owner).encode(list(own.values())), strict=True))
        return [_sliced(owned.item, made[id(whole)]) for owned, whole in zip(items, wholes, strict=True)]

    def _encoder(self, owner: int) -> Encoder:
        if owner not in self._made:
            encoder = self._backends[owner].encoder
            assert encoder is not None, "checked where it was made"
            self._made[owner] = encoder(*self._from)
        return self._made[owner]


def _sliced(item: Any, made: Embeddings) -> Embeddings:
    if not isinstance(item, Slice):
        return made
    deep = None if made.deepstack is None else made.deepstack[:, item.start : item.stop].clone()
    return Embeddings(made.hidden[item.start : item.stop].clone(), deep)
