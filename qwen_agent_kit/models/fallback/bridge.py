"""Between transformers' modules and our keys and values.

A module hands its new keys and values to the cache and asks an attention function for the mix; both are ours. Masks are
made from transformers' own mask functions, so that windows and chunks stay what the architecture says. Rows of several
sequences may share one forward; each attends to its own history only.
"""

from __future__ import annotations

import itertools
import sys
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol

import torch
from torch.nn import functional as F  # noqa: N812  # the name everyone knows it by

from qwen_agent_kit import foreign
from qwen_agent_kit.errors import ModelError

__all__ = ["Bridge", "ForeignKV", "Run", "step_cache"]

_NUMBERS = itertools.count()

_SPECIAL = ("softcap", "s_aux", "position_bias")
"""Arguments that change attention itself: where one is given the architecture's own function computes it."""


class ForeignKV(Protocol):
    """One sequence's keys, values and recurrent state."""

    def write(self, layer: int, k: torch.Tensor, v: torch.Tensor, start: int) -> None:
        """Store k and v [n, kv_heads, head_dim] at positions ``start`` on."""

    def read(self, layer: int, end: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values [end, kv_heads, head_dim] of the first ``end`` positions."""

    def state(self, at: int) -> Any:
        """The recurrent state after ``at`` positions, not to be changed; None where it is not kept."""

    def put_state(self, at: int, state: Any) -> None:
        """Keep the recurrent state after ``at`` positions."""


@dataclass(frozen=True, slots=True)
class Run:
    """One sequence's rows ``first`` to ``last`` of a forward, at its positions ``start`` to ``end``."""

    kv: ForeignKV
    first: int
    last: int
    start: int
    end: int


class Bridge:
    """The attention and mask functions of one model, under a name of their own in transformers' registries.

    Args:
        slots: Which layer of our keys and values each of the model's layers owns.
        heads: Key and value heads of a slot; layers with fewer leave the rest unused.
        width: Width of a head; narrower ones are padded.
    """

    def __init__(self, slots: Mapping[int, int], heads: int, width: int) -> None:
        transformers = foreign.transformers()
        self.name = f"qak-{next(_NUMBERS)}"
        self.runs: Sequence[Run] = ()
        self._slots, self._heads, self._width = dict(slots), heads, width
        own = weakref.ref(self)  # the registries outlive models
        transformers.AttentionInterface.register(self.name, _late(own, "attend"))
        transformers.AttentionMaskInterface.register(self.name, _late(own, "mask"))
        weakref.finalize(self, _unregister, transformers, self.name)

    def update(self, keys: torch.Tensor, values: torch.Tensor, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Keep what a layer computed, [1, heads, n, width].

        Returns:
            All of the sequence's so far where there is one; of several the new ones, which ``attend`` replaces.
        """
        slot = self._slots[layer]
        for run in self.runs:
            k, v = (self._padded(t[0, :, run.first : run.last].transpose(0, 1)) for t in (keys, values))
            run.kv.write(slot, k, v, run.start)
        if len(self.runs) > 1:
            return keys, values
        return self._read(self.runs[0], slot, keys, values)

    def _padded(self, t: torch.Tensor) -> torch.Tensor:
        missing = (0, self._width - t.shape[2], 0, self._heads - t.shape[1])
        return F.pad(t, missing) if any(missing) else t

    def _read(self, run: Run, slot: int, keys: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """[1, heads, end, width], as wide as ``keys`` and ``values`` are."""
        k, v = run.kv.read(slot, run.end)
        return (
            k[:, : keys.shape[1], : keys.shape[3]].transpose(0, 1).unsqueeze(0),
            v[:, : values.shape[1], : values.shape[3]].transpose(0, 1).unsqueeze(0),
        )

    def mask(self, *, mask_function: Callable[..., Any], use_vmap: bool = False, **_: Any) -> torch.Tensor:
        """Which positions each row sees, bool [1, 1, n, longest]; what is right of a sequence's own end is False.

        Raises:
            ModelError: For masks that cannot be computed from positions alone.
        """
        if use_vmap:
            raise _unsupported("a mask that depends on more than positions")
        mask = torch.zeros(1, 1, self.runs[-1].last, max(run.end for run in self.runs), dtype=torch.bool)
        zero = torch.zeros((), dtype=torch.long)
        for run in self.runs:
            rows, columns = torch.arange(run.start, run.end).unsqueeze(1), torch.arange(run.end).unsqueeze(0)
            mask[0, 0, run.first : run.last, : run.end] = mask_function(zero, zero, rows, columns)
        return mask

    def attend(
        self,
        module: torch.nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        scaling: float | None = None,
        **more: Any,
    ) -> tuple[torch.Tensor, None]:
        """Mix values for ``query`` [1, heads, n, width]; as transformers asks it of its attention functions.

        Returns:
            [1, n, heads, width], and no weights.
        """
        if attention_mask is None:
            raise _unsupported("attention without a mask")
        several, mixed = len(self.runs) > 1, []
        for run in self.runs:
            k, v = self._read(run, self._slots[_layer(module)], key, value) if several else (key, value)
            q = query[:, :, run.first : run.last]
            seen = attention_mask[0, 0, run.first : run.last, : run.end]
            if any(more.get(name) is not None for name in _SPECIAL):
                mixed.append(_special(module, q, k, v, seen, scaling=scaling, **more))
            else:
                mixed.append(_plain(q, k, v, seen, scaling))
        return torch.cat(mixed, dim=1) if several else mixed[0], None


def _unsupported(what: str) -> ModelError:
    return ModelError(f"the architecture uses {what}, which our cache does not serve", code="unsupported_model")


def _late(bridge: weakref.ref[Bridge], name: str) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        return getattr(bridge(), name)(*args, **kwargs)

    return call


def _unregister(transformers: Any, name: str) -> None:
    for registry in (transformers.AttentionInterface, transformers.AttentionMaskInterface):
        registry._global_mapping.pop(name, None)


def _layer(module: Any) -> int:
    layer: int = module.layer_idx
    return layer


def _plain(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, seen: torch.Tensor, scaling: float | None
) -> torch.Tensor:
    """Softmax attention [1, n, heads, width]; query heads that share a key head are grouped, nothing is copied."""
    n, heads, kv_heads = q.shape[2], q.shape[1], k.shape[1]
    group = heads // kv_heads
    q = q.reshape(kv_heads, group, n, q.shape[3])
    k, v = (t[0].unsqueeze(1).expand(kv_heads, group, -1, -1) for t in (k, v))
    mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=seen, scale=scaling)
    return mixed.reshape(1, heads, n, v.shape[3]).transpose(1, 2)


def _special(
    module: torch.nn.Module, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, seen: torch.Tensor, **more: Any
) -> torch.Tensor:
    """What the architecture's own eager function gives, [1, n, heads, width]."""
    own = vars(sys.modules[type(module).__module__]).get("eager_attention_forward")
    if own is None:
        raise _unsupported("an attention of its own that has no eager function")
    mask = torch.zeros(seen.shape, dtype=q.dtype).masked_fill_(~seen, torch.finfo(q.dtype).min)
    mixed: torch.Tensor = own(module, q, k, v, mask[None, None], **more)[0]
    return mixed


class _Steps:
    """What a module sees as its cache during one forward."""

    layer_class_to_replicate = None
    offloading = False

    def __init__(self, bridge: Bridge, layers: list[Any]) -> None:
        self.layers = layers  # recurrent ones hold their state here
        self._bridge = bridge

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return self._bridge.update(key_states, value_states, layer_idx)

    def get_seq_length(self, *_: Any, **__: Any) -> int:
        return self._bridge.runs[0].start

    def get_query_offset(self, *_: Any, **__: Any) -> int:
        return self._bridge.runs[0].start

    def get_mask_sizes(self, query_length: int, *_: Any, **__: Any) -> tuple[int, int]:
        return self._bridge.runs[0].start + query_length, 0


@cache
def _class() -> type[Any]:
    return type("StepCache", (_Steps, foreign.transformers().Cache), {})


def step_cache(bridge: Bridge, layers: Sequence[Any]) -> Any:
    """A cache for one forward; its ``layers`` are the given ones, with the state after it."""
    return _class()(bridge, list(layers))
