"""A causal language model of transformers with the face of our decoder."""

from __future__ import annotations

import copy
import inspect
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch

from qwen_agent_kit import foreign
from qwen_agent_kit.errors import ModelError
from qwen_agent_kit.models.fallback.bridge import Bridge, Run, step_cache
from qwen_agent_kit.models.segments import Segment

__all__ = ["ForeignConfig", "ForeignDecoder"]

_LAYERS = frozenset(
    {
        "DynamicLayer",
        "DynamicSlidingWindowLayer",
        "LinearAttentionLayer",
        "LinearAttentionAndFullAttentionLayer",
        "LinearAttentionAndSlidingWindowAttentionLayer",
        "DummyLayer",
    }
)
"""transformers' kinds of cache layers that are served; others keep more than keys, values and a recurrent state."""

_CUTS = ((0, 3, 4, 8), (0, 1, 4, 4))
"""How the sequences of the check at load are cut: never alike, a row alone, several after some, one sequence alone."""

_AGREE = {torch.float32: 1e-4, torch.bfloat16: 0.06}
"""How far our logits may be from transformers' own at load, as a part of their length."""

_AGREE_EXPERTS = 0.2
"""The same in bfloat16 where there are experts: two that are nearly as good may change places."""


@dataclass(frozen=True, slots=True)
class ForeignConfig:
    """What the engine needs to know; ``layers``, ``kv_heads`` and ``head_dim`` are of the keys and values kept."""

    model_type: str
    vocab_size: int
    hidden: int
    layers: int
    kv_heads: int
    head_dim: int
    max_positions: int


class ForeignDecoder:
    """Ids in, logits out, by transformers' modules over our keys and values.

    Made from a model, it first holds itself against that model's own attention and cache on a few ids, in chunks:
    where there is no recurrent state with two sequences in one forward, else one after the other, else row by row.

    Args:
        model: A causal language model of transformers, with eager attention.
        dtype: Of its weights.

    Raises:
        ModelError: Where it keeps what we do not know, or the two do not agree.
    """

    def __init__(self, model: Any, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self.kernels = f"transformers-{foreign.transformers().__version__}"
        self.native = None
        self._model, self._lock = model, threading.Lock()
        self._text = model.config.get_text_config()
        self._takes = frozenset(inspect.signature(model.forward).parameters)
        with torch.inference_mode():
            self._fresh, slots, sizes, self.state_bytes = self._survey()
            probes = [self._probe(cuts[-1]) for cuts in _CUTS]
            self.config = _config(self._text, len(slots), sizes)
            self._bridge = Bridge(slots, *sizes)
            model.set_attn_implementation(
                self._bridge.name if self._text is model.config else {"text_config": self._bridge.name}
            )
            for packs, single in ((True, False), (False, False), (False, True)):
                self._packs, self._single = packs and not self.state_bytes, single
                if (error := self._disagrees(probes)) is None:
                    return
            raise _refused(self._text, "its results with our cache are not its own") from error

    # --- what the model keeps, and whether we keep it right ----------------------------------------------------------

    def _survey(self) -> tuple[list[Any], dict[int, int], tuple[int, int], int]:
        """(empty cache layers, slot of each layer with keys and values, (heads, width) of a slot, bytes of state)."""
        cache = foreign.transformers().DynamicCache
        used = cache(config=self._text)
        if not used.layers or (strange := sorted({type(layer).__name__ for layer in used.layers} - _LAYERS)):
            raise _refused(self._text, f"it keeps {', '.join(strange) or 'nothing'} per layer" if used.layers else "")
        self._forward(torch.arange(4) % self._text.vocab_size, torch.arange(4), used)
        slots: dict[int, int] = {}
        heads = width = state = 0
        for i, layer in enumerate(used.layers):
            if isinstance(keys := getattr(layer, "keys", None), torch.Tensor) and keys.ndim == 4:
                slots[i] = len(slots)
                heads = max(heads, keys.shape[1], layer.values.shape[1])
                width = max(width, keys.shape[3], layer.values.shape[3])
            state += sum(t.nbytes for t in _state_tensors(layer))
        if not slots and not state:
            raise _refused(self._text, "it does not use the cache that it is given")
        return cache(config=self._text).layers, slots, (max(1, heads), max(1, width)), state

    def _probe(self, n: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Some ids, and the logits [n, vocab] of the model with its own attention and no cache of ours."""
        ids = (torch.arange(n) * 7919 + n) % self._text.vocab_size
        return ids, self._model(input_ids=ids[None], use_cache=False).logits[0].float()

    def _disagrees(self, probes: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> Exception | None:
        """What is wrong where the probes, in chunks and side by side, do not give what the model gave by itself."""
        try:
            off = self._off(probes)
        except Exception as error:  # noqa: BLE001  # whatever foreign modules raise over a cache they do not expect
            return error
        experts = any("experts" in name for name in self._text.to_dict())
        allowed = _AGREE_EXPERTS if experts and self.dtype == torch.bfloat16 else _AGREE[self.dtype]
        return None if off <= allowed else ArithmeticError(f"the logits are off by {off:.2g}")

    def _off(self, probes: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> float:
        """How far the probes' logits are from the model's own, as a part of their length."""
        found: list[list[torch.Tensor]] = [[] for _ in probes]
        kept = [_Kept() for _ in probes]
        for bounds in zip(*(pairwise(cuts) for cuts in _CUTS), strict=True):
            segments = [Segment(kv, a, b - a, b - a) for kv, (a, b) in zip(kept, bounds, strict=True) if b > a]
            ids = torch.cat([p[0][a:b] for p, (a, b) in zip(probes, bounds, strict=True)])
            places = torch.cat([torch.arange(a, b) for a, b in bounds])
            together = self.forward_batch(ids, places, segments)
            rows = torch.split(together, [b - a for a, b in bounds])
            for mine, new in zip(found, rows, strict=True):
                mine.append(new)
        return max(
            float((torch.cat(mine) - own).norm()) / float(own.norm())
            for mine, (_, own) in zip(found, probes, strict=True)
        )

    # --- the face of a decoder ---------------------------------------------------------------------------------------

    @property
    def weight_bytes(self) -> int:
        """What its tensors take, one that is used twice counted once."""
        kept = [*self._model.parameters(), *self._model.buffers()]
        return sum(t.nbytes for t in {t.data_ptr(): t for t in kept}.values())

    def embed(self, ids: torch.Tensor) -> torch.Tensor:
        """The embeddings of ``ids``, float32 [n, hidden]."""
        found: torch.Tensor = self._model.get_input_embeddings()(ids)
        return found.float()

    def forward_batch(
        self,
        ids: torch.Tensor,
        positions: torch.Tensor,
        segments: Sequence[Any],
        *,
        embeds: torch.Tensor | None = None,
        deepstack: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """As ``Decoder.forward_batch``; the segments' ``kv`` are ``ForeignKV``.

        Raises:
            ModelError: For a deepstack, which only our own decoders take.
        """
        if deepstack is not None:
            raise ModelError(f"`{self.config.model_type}` runs through transformers, which takes no deepstack")
        runs, first = [], 0
        for s in segments:
            runs.append(Run(s.kv, first, first + s.count, s.start, s.start + s.count))
            first += s.count
        wanted = torch.cat([torch.arange(r.last - s.wanted, r.last) for r, s in zip(runs, segments, strict=True)])
        rows, states = [], []
        with self._lock, torch.inference_mode():
            for group in [runs] if self._packs else [[run] for run in runs]:
                state = self._state(group[0])
                for piece in _rows(group[0]) if self._single else [group]:
                    logits, state = self._step(ids, positions, piece, embeds, state, wanted)
                    rows.append(logits)
                states.append(state)
            # Kept only now that nothing can fail any more: a step that failed is computed again from the old ones.
            if self.state_bytes:
                for run, state in zip(runs, states, strict=True):
                    run.kv.put_state(run.end, state)
        # Copied outside inference mode, so that samplers may write into it anywhere.
        return torch.cat(rows).float()

    def _state(self, run: Run) -> Any:
        """The recurrent state before a run, with the empty layers of those that have none."""
        state = run.kv.state(run.start) if self.state_bytes and run.start else self._fresh
        assert state is not None, f"no recurrent state was kept after {run.start} positions"
        return state

    def _step(
        self,
        ids: torch.Tensor,
        positions: torch.Tensor,
        runs: Sequence[Run],
        embeds: torch.Tensor | None,
        state: Any,
        wanted: torch.Tensor,
    ) -> tuple[torch.Tensor, Any]:
        """Logits [n, vocab] of those rows of ``runs`` that are wanted, and the recurrent state after all."""
        shift, end = runs[0].first, runs[-1].last
        rows, own = slice(shift, end), wanted[(wanted >= shift) & (wanted < end)] - shift
        runs = [Run(r.kv, r.first - shift, r.last - shift, r.start, r.end) for r in runs]
        self._bridge.runs = runs
        try:
            # Layers that only have keys and values are never changed: those are ours.
            cache = step_cache(self._bridge, copy.deepcopy(state) if self.state_bytes else state)
            given = None if embeds is None else embeds[rows]
            logits = self._forward(ids[rows], positions[..., rows], cache, given, own if len(own) else own.new_zeros(1))
        finally:
            self._bridge.runs = ()
        return logits[: len(own)], cache.layers if self.state_bytes else None

    def _forward(
        self,
        ids: torch.Tensor,
        positions: torch.Tensor,
        cache: Any,
        embeds: torch.Tensor | None = None,
        keep: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Logits [len(keep), vocab] of rows that continue what is in ``cache``; of all where ``keep`` is None."""
        name = "cache_params" if "cache_params" in self._takes else "past_key_values"
        given: dict[str, Any] = {name: cache, "use_cache": True}
        if embeds is None:
            given["input_ids"] = ids[None]
        else:
            given["inputs_embeds"] = embeds[None].to(self.dtype)
        if "position_ids" in self._takes:
            given["position_ids"] = positions[None] if positions.ndim == 1 else positions[:, None]
        if keep is not None and "logits_to_keep" in self._takes:
            given["logits_to_keep"], keep = keep, None
        logits: torch.Tensor = self._model(**given).logits[0]
        return logits if keep is None else logits[keep]


def _rows(run: Run) -> list[list[Run]]:
    """A run whose rows go one by one once there is a history: not every recurrent module takes up its own state."""
    if not run.start or run.first == run.last:
        return [[run]]
    return [
        [Run(run.kv, run.first + i, run.first + i + 1, run.start + i, run.start + i + 1)]
        for i in range(run.last - run.first)
    ]


class _Kept:
    """Keys, values and state of one short sequence, for the check at load."""

    def __init__(self) -> None:
        self._layers: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self._states: dict[int, Any] = {}

    def write(self, layer: int, k: torch.Tensor, v: torch.Tensor, start: int) -> None:
        old = self._layers.get(layer, (k[:0], v[:0]))
        self._layers[layer] = torch.cat((old[0][:start], k)), torch.cat((old[1][:start], v))

    def read(self, layer: int, end: int) -> tuple[torch.Tensor, torch.Tensor]:
        keys, values = self._layers[layer]
        return keys[:end], values[:end]

    def slabs(self) -> None:
        """Not in slabs."""

    def state(self, at: int) -> Any:
        return self._states.get(at)

    def put_state(self, at: int, state: Any) -> None:
        self._states[at] = state


def _state_tensors(layer: Any) -> list[torch.Tensor]:
    kept = [*getattr(layer, "conv_states", {}).values(), *getattr(layer, "recurrent_states", {}).values()]
    return [t for t in kept if isinstance(t, torch.Tensor)]


def _config(text: Any, layers: int, sizes: tuple[int, int]) -> ForeignConfig:
    return ForeignConfig(
        model_type=text.model_type,
        vocab_size=text.vocab_size,
        hidden=text.hidden_size,
        layers=layers,
        kv_heads=sizes[0],
        head_dim=sizes[1],
        max_positions=getattr(text, "max_position_embeddings", None) or 32768,
    )


def _refused(text: Any, why: str) -> ModelError:
    return ModelError(
        f"`{text.model_type}` cannot run over the engine's cache: {why or 'it has no cache of layers'}",
        hint="use another engine for it, as in vllm:...",
        code="unsupported_model",
    )
