"""What a model takes, in bytes, part by part. Arithmetic over its shape; ``models/packing`` makes what is counted here.

Kept dense in the activations' type: embedding, routers, gates, biases. In float32: norms and encoders. By scheme: every
other matrix and the head, which int4 keeps in int8; a tied head is packed again where the scheme quantises, since the
embedding is looked up and the head is multiplied by, unless rows can be looked up in the packed one.
"""

from __future__ import annotations

from dataclasses import dataclass

from qwen_agent_kit.placement.layout import Layout, head_scheme, layout_of, matrix_bytes
from qwen_agent_kit.placement.shape import Shape

__all__ = ["CHUNK", "Footprint", "OVERHEAD", "PIXELS", "SECONDS", "file_bytes", "footprint", "weight_bytes"]

OVERHEAD = {"cpu": 400 * 2**20, "cuda": 600 * 2**20, "mps": 400 * 2**20, "disk": 0}
"""Fixed costs per device that is used. The CPU's are interpreter, torch, tokenizer and buffers, measured on Linux
x86-64 with torch 2.13 CPU; the others are guesses and said to be so in docs/concepts/placement.md."""

CHUNK = 512
"""Positions of one forward of the engine's prefill."""

PIXELS = 1280 * 28 * 28
"""Pixels per image where nothing was wished: 1,280 patches of 28, Qwen-VL's own recommendation."""

SECONDS = 30.0

PACKING = 32 * 2**20
"""What the native kernels' packing takes besides: some rows in float32."""

TOWER_VALUE = 4
"""Bytes of a weight and of an activation of an encoder: they run in float32 under every scheme."""


@dataclass(frozen=True, slots=True)
class Footprint:
    """A model's parts in bytes under one scheme.

    Args:
        shape: Its sizes.
        scheme: How its matrices are kept.
        value: Of one activation or KV value.
        embedding: Looked up, never multiplied by.
        layers: Weights of each layer.
        head: The head where it is kept apart, and the last norm.
        towers: Weights of vision and audio encoders, in float32 under every scheme.
        read: Of each layer, what drawing one position reads: experts only as far as they are used.
        read_head: The same for the head.
        load_peak: What loading needs besides the weights: the largest matrix as it is read, and while it is packed.
        widest: Weights of a layer's largest matrix.
        stated: Whether ``towers`` was stated by whoever drives the model, work included.
        adapters: LoRA adapters that may be used beside the weights.
    """

    shape: Shape
    scheme: str
    value: int
    embedding: int
    layers: tuple[int, ...]
    head: int
    towers: int
    read: tuple[int, ...]
    read_head: int
    load_peak: int
    widest: int
    stated: bool = False
    adapters: int = 0

    @property
    def beside(self) -> int:
        """What goes with the first layer: embedding, towers and adapters."""
        return self.embedding + self.towers + self.adapters

    @property
    def weights(self) -> int:
        """All of them, towers and adapters included."""
        return self.beside + sum(self.layers) + self.head

    def layer_kv(self, layer: int) -> int:
        """Keys and values of one position."""
        return 0 if self.shape.is_linear(layer) else self.shape.kv_layer_bytes(self.value)

    def layer_state(self, layer: int) -> int:
        """One recurrent state."""
        return self.shape.state_layer_bytes(self.value) if self.shape.is_linear(layer) else 0

    def activations(self, context: int, pixels: int | None = None, seconds: float | None = None) -> int:
        """The most that a forward needs besides weights and KV.

        Stream, qkv and both halves of the MLP for a chunk in float32, the logits of one position, the mask over the
        whole context, a matrix that is unpacked for many rows where the scheme does so, and the towers' share.
        """
        shape = self.shape
        wide = max(shape.intermediate, shape.expert_intermediate * max(1, shape.experts_per_token))
        chunk = min(CHUNK, context)
        streams = chunk * (6 * shape.hidden + 3 * wide) * 4 + 8 * shape.vocab
        mask = chunk * context * (self.value + 1)
        unpacked = self.widest * self.value if layout_of(self.scheme).unpacks else 0
        return streams + mask + unpacked + self._tower_activations(pixels, seconds)

    def _tower_activations(self, pixels: int | None, seconds: float | None) -> int:
        most = 0
        for tower in () if self.stated else self.shape.towers:
            if tower.kind == "vision":
                positions = tower.positions(pixels=PIXELS if pixels is None else pixels)
            else:
                positions = tower.positions(seconds=SECONDS if seconds is None else seconds)
            most = max(most, tower.activation_bytes(positions, TOWER_VALUE))
        return most

    def work(self, context: int, pixels: int | None = None, seconds: float | None = None) -> int:
        """The most besides weights, KV and state: of a forward, or of loading, when there is no KV yet."""
        kept = sum(self.layer_kv(i) * context + self.layer_state(i) for i in range(self.shape.layers))
        return max(self.activations(context, pixels, seconds), self.load_peak - kept)


def footprint(shape: Shape, scheme: str) -> Footprint:
    """The parts of a model of ``shape`` under ``scheme``.

    Raises:
        UsageError: For an unknown scheme.
    """
    layout = layout_of(scheme)
    value, quantised = layout.value, layout.bits < 16
    head_matrix = matrix_bytes(head_scheme(scheme), shape.vocab, shape.hidden)
    own_head = not shape.tied or quantised
    layers, read, widest = [], [], 0
    same: dict[tuple[bool, bool], tuple[int, int, int]] = {}
    for i in range(shape.layers):
        kind = (shape.is_linear(i), shape.is_sparse(i))
        if kind not in same:
            matrices = list(shape.matrices(i))
            norms = 4 * shape.norms(i)
            kept = sum(matrix.bytes(scheme) for matrix in matrices) + norms
            used = sum(int(matrix.bytes(scheme) * matrix.share) for matrix in matrices) + norms
            same[kind] = kept, used, max(matrix.rows * matrix.columns for matrix in matrices)
        layers.append(same[kind][0])
        read.append(same[kind][1])
        widest = max(widest, same[kind][2])
    embedding = 0 if shape.tied and layout.lookup else shape.embedding_parameters * value
    return Footprint(
        shape=shape,
        scheme=scheme,
        value=value,
        embedding=embedding,
        layers=tuple(layers),
        head=(head_matrix if own_head else 0) + 4 * shape.hidden,
        towers=sum(tower.parameters for tower in shape.towers) * TOWER_VALUE,
        read=tuple(read),
        read_head=head_matrix if own_head else embedding,
        load_peak=_load_peak(shape, layout, widest),
        widest=widest,
    )


def _load_peak(shape: Shape, layout: Layout, widest: int) -> int:
    """Matrices come one at a time: embedding and head whole, a layer's largest in two parts that are then joined."""
    largest, read = max(widest, shape.embedding_parameters), shape.read_value
    if layout.bits < 16:
        # Ours are made float32 a few rows at a time; torch's schemes whole, and then twice for what they round.
        return max(shape.embedding_parameters, 2 * widest) * read + (PACKING if layout.lookup else 8 * largest)
    if read == layout.value:
        return widest * read  # what is read is what is kept, once its parts are joined
    return max(shape.embedding_parameters, 2 * widest) * read


def weight_bytes(shape: Shape, scheme: str) -> int:
    """The bytes of the packed weights, towers included."""
    return footprint(shape, scheme).weights


def file_bytes(shape: Shape, scheme: str) -> int:
    """The bytes of a released file: matrices by scheme; embedding, head, norms, routers and towers in bfloat16."""
    dense = 2 * (shape.embedding_parameters * (1 if shape.tied else 2) + shape.small_parameters)
    towers = 2 * sum(tower.parameters for tower in shape.towers)
    matrices = 0
    for i in range(shape.layers):
        for m in shape.matrices(i):
            matrices += m.count * (2 * m.rows * m.columns if m.dense else matrix_bytes(scheme, m.rows, m.columns))
    return dense + towers + matrices
