"""The sizes of a model: parameters, keys and values, recurrent state. Arithmetic only.

Every count follows transformers' classes (models/llama, qwen2, qwen2_moe, qwen3, qwen3_moe, qwen3_next, qwen3_5,
qwen3_5_moe) and equals what they hold when built on the meta device.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from qwen_agent_kit.placement.layout import layout_of, matrix_bytes
from qwen_agent_kit.placement.towers import Tower

__all__ = ["Delta", "Matrix", "STATES", "Shape"]

STATES = 4
"""Recurrent states that are kept of a conversation: such a state cannot be cut, so some are kept to go back to."""


@dataclass(frozen=True, slots=True)
class Matrix:
    """``count`` matrices [rows, columns] of one layer.

    Args:
        name: Which, as the packed model names it.
        rows: N.
        columns: K.
        count: How many.
        bias: Whether each has a bias of N values.
        dense: Whether it stays in the activations' type (routers and gates).
        share: Part of them that a token goes through.
    """

    name: str
    rows: int
    columns: int
    count: int = 1
    bias: bool = False
    dense: bool = False
    share: float = 1.0

    @property
    def parameters(self) -> int:
        """Of all of them, biases left out."""
        return self.rows * self.columns * self.count

    def bytes(self, scheme: str) -> int:
        """Of all of them, packed, biases included."""
        layout = layout_of(scheme)
        kept = self.rows * self.columns * layout.value if self.dense else matrix_bytes(scheme, self.rows, self.columns)
        return self.count * (kept + (self.rows * (layout.bias or layout.value) if self.bias else 0))


@dataclass(frozen=True, slots=True)
class Delta:
    """The gated delta net of hybrid models: heads, their widths, and the convolution's kernel."""

    key_heads: int
    value_heads: int
    key_dim: int
    value_dim: int
    kernel: int

    @property
    def keys(self) -> int:
        """Width of all keys."""
        return self.key_heads * self.key_dim

    @property
    def values(self) -> int:
        """Width of all values."""
        return self.value_heads * self.value_dim

    @property
    def channels(self) -> int:
        """What the convolution runs over."""
        return 2 * self.keys + self.values


@dataclass(frozen=True, slots=True)
class Shape:
    """What the formulae need.

    Args:
        model_type: As config.json or GGUF names it; that of its decoder where nobody knows the model's own.
        layers: How many.
        hidden: Width of the residual stream.
        heads: Query heads.
        kv_heads: Key and value heads.
        head_dim: Width of one.
        intermediate: Width of the dense MLP.
        vocab: Rows of the embedding.
        context: Positions that the model was trained for.
        tied: Whether the head is the embedding.
        experts: In a sparse layer, 0 for a dense model.
        expert_intermediate: Width of each.
        shared_intermediate: Width of the shared expert, 0 for none.
        experts_per_token: How many a token goes through.
        sparse: Per layer, whether it has experts; empty for all where there are any.
        linear: Per layer, whether it is a gated delta net; empty for none.
        delta: Its sizes.
        qkv_bias: On q, k and v.
        out_bias: On the attention's output.
        mlp_bias: On the MLP.
        qk_norm: A norm over each query and key head.
        gated: The queries come with a gate of the same width.
        towers: Vision and audio encoders.
        read_value: Bytes of a value as it comes from the files.
    """

    model_type: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocab: int
    context: int
    tied: bool
    experts: int = 0
    expert_intermediate: int = 0
    shared_intermediate: int = 0
    experts_per_token: int = 0
    sparse: tuple[bool, ...] = ()
    linear: tuple[bool, ...] = ()
    delta: Delta | None = None
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    gated: bool = False
    towers: tuple[Tower, ...] = ()
    read_value: int = 2

    def is_linear(self, layer: int) -> bool:
        """Whether a layer keeps a recurrent state instead of keys and values."""
        return bool(self.linear) and self.linear[layer]

    def is_sparse(self, layer: int) -> bool:
        """Whether a layer has experts."""
        return bool(self.experts) and (not self.sparse or self.sparse[layer])

    @property
    def full_layers(self) -> int:
        """Layers that keep keys and values."""
        return self.layers - sum(self.linear)

    def matrices(self, layer: int) -> Iterator[Matrix]:
        """The matrices of a layer, fused as the kit packs them."""
        hidden, wide = self.hidden, self.head_dim
        if self.is_linear(layer):
            yield from self._delta_matrices()
        else:
            queries = self.heads * wide
            yield Matrix(
                "qkv", queries * (2 if self.gated else 1) + 2 * self.kv_heads * wide, hidden, bias=self.qkv_bias
            )
            yield Matrix("out", hidden, queries, bias=self.out_bias)
        if self.is_sparse(layer):
            yield from self._expert_matrices()
        else:
            yield Matrix("gate_up", 2 * self.intermediate, hidden, bias=self.mlp_bias)
            yield Matrix("down", hidden, self.intermediate, bias=self.mlp_bias)

    def _delta_matrices(self) -> Iterator[Matrix]:
        delta = self.delta
        assert delta is not None, "a linear layer has the sizes of its delta net"
        yield Matrix("in_proj", delta.channels + delta.values, self.hidden)
        yield Matrix("in_gates", 2 * delta.value_heads, self.hidden, dense=True)
        yield Matrix("out", self.hidden, delta.values)

    def _expert_matrices(self) -> Iterator[Matrix]:
        hidden, wide = self.hidden, self.expert_intermediate
        share = self.experts_per_token / self.experts
        yield Matrix("router", self.experts, hidden, dense=True)
        yield Matrix("expert_gate_up", 2 * wide, hidden, self.experts, share=share)
        yield Matrix("expert_down", hidden, wide, self.experts, share=share)
        if wide := self.shared_intermediate:
            yield Matrix("shared_gate_up", 2 * wide, hidden)
            yield Matrix("shared_down", hidden, wide)
            yield Matrix("shared_gate", 1, hidden, dense=True)

    def norms(self, layer: int) -> int:
        """Values of a layer that are neither matrices nor biases."""
        count = 2 * self.hidden
        if self.is_linear(layer) and self.delta is not None:
            delta = self.delta
            # Convolution, dt_bias and A_log, and the norm over each value head.
            return count + delta.channels * delta.kernel + 2 * delta.value_heads + delta.value_dim
        return count + (2 * self.head_dim if self.qk_norm else 0)

    @property
    def linear_parameters(self) -> int:
        """Weights of the layers' matrices, the head excluded."""
        return sum(matrix.parameters for i in range(self.layers) for matrix in self.matrices(i))

    @property
    def active_parameters(self) -> int:
        """Those that a token goes through, embedding and head counted as in ``parameters``."""
        idle = sum(m.parameters - int(m.parameters * m.share) for i in range(self.layers) for m in self.matrices(i))
        return self.parameters - idle

    @property
    def embedding_parameters(self) -> int:
        """Of the input embedding; an untied head has as many again."""
        return self.vocab * self.hidden

    @property
    def small_parameters(self) -> int:
        """Norms and biases."""
        biases = sum(m.rows * m.count for i in range(self.layers) for m in self.matrices(i) if m.bias)
        return biases + sum(self.norms(i) for i in range(self.layers)) + self.hidden

    @property
    def parameters(self) -> int:
        """All of them, towers included, a tied head counted once."""
        head = 0 if self.tied else self.embedding_parameters
        towers = sum(tower.parameters for tower in self.towers)
        return self.linear_parameters + self.embedding_parameters + head + self.small_parameters + towers

    def kv_bytes(self, bytes_per_value: int) -> int:
        """Per position: keys and values of every layer that keeps them."""
        return self.full_layers * self.kv_layer_bytes(bytes_per_value)

    def kv_layer_bytes(self, bytes_per_value: int) -> int:
        """Per position: keys and values of one layer that keeps them."""
        return 2 * self.kv_heads * self.head_dim * bytes_per_value

    def state_layer_bytes(self, bytes_per_value: int) -> int:
        """One of a delta net: its state (float32) and the tail of its convolution."""
        if self.delta is None:
            return 0
        delta = self.delta
        state = delta.value_heads * delta.key_dim * delta.value_dim * 4
        return state + delta.channels * delta.kernel * bytes_per_value

    def state_bytes(self, bytes_per_value: int) -> int:
        """Per conversation: the recurrent states of every layer that has one."""
        return STATES * sum(self.linear) * self.state_layer_bytes(bytes_per_value)
