"""One decode step of our decoder over paged keys and values: fixed shapes, nothing read back, so it can be captured.

Layers may lie on several devices, as the plan placed them; the stream goes from one to the next.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch.nn import functional as F  # noqa: N812  # the name everyone knows it by

from qwen_agent_kit.errors import ModelError, PlanError
from qwen_agent_kit.models.cuda.attention import attend, store
from qwen_agent_kit.models.cuda.paged import PagedPool
from qwen_agent_kit.models.decoder import Decoder, Layer
from qwen_agent_kit.models.linear import Linear
from qwen_agent_kit.models.moe import MLP
from qwen_agent_kit.models.rope import rotate

__all__ = ["DecodeStep", "Span", "devices_of", "draw", "move", "spread"]


class Span(Protocol):
    """What a plan says of one device: ``placement.Placement`` is one."""

    @property
    def device(self) -> str: ...

    @property
    def layers(self) -> tuple[int, int]: ...


def devices_of(spans: Sequence[Span], layers: int) -> list[str]:
    """The device of each layer.

    Raises:
        PlanError: Where a layer is on none, on two, or on the disk.
    """
    found: list[str | None] = [None] * layers
    for span in spans:
        for layer in range(*span.layers):
            if layer >= layers or found[layer] is not None or span.device == "disk":
                raise PlanError(f"layer {layer} cannot be placed on `{span.device}`", hint="plan the model again")
            found[layer] = span.device
    if None in found:
        raise PlanError(f"layer {found.index(None)} is on no device", hint="plan the model again")
    return [device for device in found if device is not None]


def move(model: Decoder, devices: Sequence[str]) -> None:
    """Put each layer on its device, in place; the embedding goes with the first, last norm and head with the last.

    A tied head stays where the embedding is: the last layer's rows go back to it, which is less than a second copy.

    Raises:
        ModelError: For native kernels, which are the CPU's.
    """
    if model.embedding is None:
        raise ModelError("the model was packed for the CPU's kernels", hint="load it in bf16 for a card")
    tied = getattr(model.head, "weight", None) is model.embedding
    for layer, device in zip(model.layers, devices, strict=True):
        _move(layer, device)
    model.embedding = model.embedding.to(devices[0])
    if tied:
        model.head = Linear(model.embedding)
    model.head_device = torch.device(devices[0] if tied else devices[-1])
    for part, device in ((model.norm, devices[-1]), (model.head, str(model.head_device)), (model._rotary, devices[0])):
        _move(part, device)


def spread(tensors: Iterable[tuple[str, torch.Tensor]], devices: Sequence[str]) -> Iterator[tuple[str, torch.Tensor]]:
    """Packed tensors, each on its layer's device as soon as it is made, so that no more than one is on the way.

    Args:
        tensors: As ``packing.pack`` gives them.
        devices: Of each layer.
    """
    ends = {"embedding": devices[0], "norm": devices[-1], "head": devices[-1]}
    for name, tensor in tensors:
        first, _, rest = name.partition(".")
        yield name, tensor.to(devices[int(rest.partition(".")[0])] if first == "layers" else ends[first])


def _move(whole: object, device: str) -> None:
    """Weights are plain attributes, which ``Module.to`` does not see."""
    for part in whole.modules() if isinstance(whole, torch.nn.Module) else [whole]:
        for name, value in vars(part).items():
            if isinstance(value, torch.Tensor):
                setattr(part, name, value.to(device))


@dataclass(frozen=True, slots=True)
class _Shared:
    """What the layers of one device share: everything about where rows are, and their rotations."""

    cos: torch.Tensor
    sin: torch.Tensor
    tables: torch.Tensor
    lengths: torch.Tensor
    slots: torch.Tensor


class DecodeStep:
    """The next position of several sequences.

    Args:
        model: Dense, its layers where ``devices`` says.
        pool: Has their keys and values, layer by layer on the same devices.
        devices: Of each layer.

    Raises:
        ModelError: For experts, whose choice has to be read back, and for Qwen 1.0's log_n scaling.
    """

    def __init__(self, model: Decoder, pool: PagedPool, devices: Sequence[str]) -> None:
        if model.config.logn_from is not None or not all(isinstance(x.mlp, MLP) for x in model.layers):
            raise ModelError(f"`{model.config.model_type}` has no captured decode step", hint="use the engine's own")
        self._model, self._pool, self.devices = model, pool, list(devices)

    def __call__(
        self, ids: torch.Tensor, positions: torch.Tensor, tables: torch.Tensor, lengths: torch.Tensor
    ) -> torch.Tensor:
        """Logits float32 [n, vocab] after the rows.

        Args:
            ids: int64 [n], the last of each sequence, not yet in the pool.
            positions: int64 [n], or [3, n] for m-rope.
            tables: int32 [n, most blocks], with room for the new position.
            lengths: int32 [n], with the new position.
        """
        model, page = self._model, self._pool.keys[0].shape[1]
        assert model.embedding is not None, "`move` refuses models without one"
        at = lengths.long() - 1
        slots = tables.long().gather(1, (at // page).unsqueeze(1)).squeeze(1) * page + at % page
        cos, sin = model._rotary(positions, model.dtype)  # one package: the decoder's own rotation
        shared: dict[str, _Shared] = {}
        x = F.embedding(ids, model.embedding).float()
        for index, (layer, device) in enumerate(zip(model.layers, self.devices, strict=True)):
            if device not in shared:
                shared[device] = _Shared(*(t.to(device) for t in (cos, sin, tables, lengths, slots)))
            x = self._layer(layer, index, x.to(device), shared[device])
        return model.logits(x).float()

    def _layer(self, layer: torch.nn.Module, index: int, x: torch.Tensor, at: _Shared) -> torch.Tensor:
        assert isinstance(layer, Layer), "a decoder has layers of one kind"
        config, keys, values = self._model.config, self._pool.keys[index], self._pool.values[index]
        heads, kv_heads = config.heads, config.kv_heads
        qkv = layer.qkv(layer.attn_norm(x)).view(len(x), heads + 2 * kv_heads, config.head_dim)
        qk, v = qkv[:, : heads + kv_heads], qkv[:, heads + kv_heads :]
        if layer.qk_norm is not None:
            qk = layer.qk_norm(qk)
        qk = rotate(qk, at.cos, at.sin)
        store(keys, values, qk[:, heads:], v, at.slots)
        mixed = attend(qk[:, :heads], keys, values, at.tables, at.lengths, layer.window)
        x = x + layer.out(mixed.flatten(1))
        result: torch.Tensor = x + layer.mlp(layer.mlp_norm(x))
        return result


def draw(buffers: Mapping[str, torch.Tensor], logits: torch.Tensor) -> torch.Tensor:
    """The next ids, int64 [n], without reading anything back.

    Args:
        buffers: ``mask`` [n, vocab], 0 where the grammar allows an id and minus infinity where not; ``temperature``
            [n], 0 for greedy; ``noise`` [n, vocab], exponential variates: the largest of p / noise is a draw from p.
        logits: float32 [n, vocab].
    """
    allowed = logits + buffers["mask"]
    warm = buffers["temperature"].unsqueeze(1)
    drawn = allowed / warm.clamp(min=1e-6) - buffers["noise"].clamp(min=1e-30).log()
    return torch.where(warm > 0, drawn, allowed).argmax(-1)
