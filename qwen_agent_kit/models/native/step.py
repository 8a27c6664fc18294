"""A whole step of the decoder in one native call."""

from __future__ import annotations

import weakref
from array import array
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from qwen_agent_kit.errors import EngineError
from qwen_agent_kit.models.native.library import (
    LayerStruct,
    Library,
    MatrixStruct,
    MlpStruct,
    ModelStruct,
    SegmentStruct,
    library,
)
from qwen_agent_kit.models.native.linear import NativeLinear

if TYPE_CHECKING:
    from qwen_agent_kit.models.decoder import Decoder
    from qwen_agent_kit.models.segments import Segment

__all__ = ["NativeStep", "native_step"]

_MOST_DIM = 256
_MOST_GROUP = 64


class NativeStep:
    """Runs a decoder whose matrices are all native.

    Args:
        model: The decoder; its tensors are used where they lie.
        loaded: The kernels.
    """

    def __init__(self, model: Decoder, loaded: Library) -> None:
        self._library = loaded
        self._vocab = model.config.vocab_size
        self._kept: list[Any] = []
        self._bytes = array("q", [0])
        self._struct = self._model(model)
        # Late threads may look at norms and structures until they have been stopped.
        weakref.finalize(self, _release, loaded, [self._kept, self._struct, self._bytes])

    @property
    def expert_bytes(self) -> int:
        """Bytes of experts' matrices that were read so far."""
        return self._bytes[0]

    def __call__(
        self,
        ids: torch.Tensor,
        angles: tuple[torch.Tensor, torch.Tensor],
        segments: Sequence[Segment],
        embeds: torch.Tensor | None,
        stretch: torch.Tensor | None,
    ) -> torch.Tensor | None:
        """Logits [sum of wanted, vocab] of the segments' rows; None where keys and values lie as it cannot read them.

        Args:
            ids: int64 [n].
            angles: Cosine and signed sine, float32 [n, 1, head_dim] each.
            segments: Whose rows they are.
            embeds: float32 [n, hidden] instead of the embeddings of ``ids``, contiguous.
            stretch: float32, what queries are scaled by, row by row.

        Raises:
            EngineError: Where there is no memory for the activations.
        """
        described = (SegmentStruct * len(segments))()
        addresses = []
        for into, segment in zip(described, segments, strict=True):
            slabs = segment.kv.slabs()
            if slabs is None or slabs[0][0].dtype != torch.bfloat16:
                return None
            both = array("Q", [t.data_ptr() for pair in zip(*slabs, strict=True) for t in pair])
            addresses.append(both)
            capacity = slabs[0][0].shape[1]
            assert segment.start + segment.count <= capacity, "room was made for the rows"
            into.slabs, into.capacity = both.buffer_info()[0], capacity
            into.start, into.count, into.wanted = segment.start, segment.count, segment.wanted
        ids = ids.contiguous()
        assert ids.dtype == torch.int64, "ids are int64"
        logits = torch.empty(sum(s.wanted for s in segments), self._vocab)
        failed = self._library.step(
            self._struct,
            ids.data_ptr(),
            None if embeds is None else embeds.data_ptr(),
            angles[0].data_ptr(),
            angles[1].data_ptr(),
            None if stretch is None else stretch.data_ptr(),
            described,
            len(segments),
            logits.data_ptr(),
            torch.get_num_threads(),
        )
        if failed:
            raise EngineError("there is no memory for a step's activations", code="out_of_memory")
        return logits

    def _model(self, model: Decoder) -> ModelStruct:
        config = model.config
        layers = (LayerStruct * config.layers)(*(self._layer(layer) for layer in model.layers))
        dense = model.embedding
        widest = max(config.intermediate, config.expert_intermediate, config.shared_intermediate)
        self._kept += [layers, dense, model.head]
        return ModelStruct(
            layers=layers,
            norm=self._norm(model.norm),
            dense=None if dense is None else dense.data_ptr(),
            head=_struct(model.head),
            expert_bytes=self._bytes.buffer_info()[0],
            count=config.layers,
            hidden=config.hidden,
            heads=config.heads,
            kv_heads=config.kv_heads,
            dim=config.head_dim,
            vocab=config.vocab_size,
            widest=widest,
            experts=config.experts,
            top=config.experts_per_token,
            normalise=config.norm_topk,
            eps=config.norm_eps,
        )

    def _layer(self, layer: Any) -> LayerStruct:
        struct = LayerStruct(
            attn_norm=self._norm(layer.attn_norm),
            mlp_norm=self._norm(layer.mlp_norm),
            qkv=_struct(layer.qkv),
            out=_struct(layer.out),
            window=layer.window or 0,
        )
        if layer.qk_norm is not None:
            weight = _plain(layer.qk_norm)
            struct.q_norm, struct.k_norm = self._keep(weight[0]), self._keep(weight[-1])
        self._kept += [layer.qkv, layer.out]
        mlp: Any = layer.mlp
        if not hasattr(mlp, "experts"):
            struct.mlp = self._mlp(mlp)
            return struct
        struct.expert = (MlpStruct * len(mlp.experts))(*(self._mlp(e) for e in mlp.experts))
        struct.router = self._keep(mlp.router.weight.float())
        if mlp.shared is not None:
            struct.mlp = self._mlp(mlp.shared)
            struct.shared = self._keep(mlp.shared_gate.weight.float())
        return struct

    def _mlp(self, mlp: Any) -> MlpStruct:
        self._kept.append(mlp)
        return MlpStruct(gate_up=_struct(mlp.gate_up), down=_struct(mlp.down))

    def _norm(self, norm: Any) -> int:
        return self._keep(_plain(norm))

    def _keep(self, tensor: torch.Tensor) -> int:
        tensor = tensor.contiguous()
        self._kept.append(tensor)
        return tensor.data_ptr()


def native_step(model: Decoder) -> NativeStep | None:
    """The step for ``model``, None where one of its matrices is not native, or a size is more than the kernels take."""
    loaded, config = library() if isinstance(model.head, NativeLinear) else None, model.config
    if loaded is None or config.head_dim > _MOST_DIM or config.heads // config.kv_heads > _MOST_GROUP:
        return None
    matrices = [m for layer in model.layers for m in _matrices(layer)]
    if not all(isinstance(m, NativeLinear) for m in matrices):
        return None
    return NativeStep(model, loaded)


def _matrices(layer: Any) -> list[Any]:
    mlps = [
        m for m in (*getattr(layer.mlp, "experts", (layer.mlp,)), getattr(layer.mlp, "shared", None)) if m is not None
    ]
    return [layer.qkv, layer.out, *(m for mlp in mlps for m in (mlp.gate_up, mlp.down))]


def _plain(norm: Any) -> torch.Tensor:
    """The norm's weight as the checkpoint has it: ours carries the root of the size."""
    weight: torch.Tensor = norm.weight / norm.weight.shape[-1] ** 0.5
    return weight


def _struct(linear: Any) -> MatrixStruct:
    struct: MatrixStruct = linear.struct
    return struct


def _release(loaded: Library, kept: list[Any]) -> None:
    loaded.quiesce()
    kept.clear()
