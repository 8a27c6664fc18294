"""transformers as the oracle for our decoder, and the plain ways to run ours."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from qwen_agent_kit import foreign
from qwen_agent_kit.models import Decoder

YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 32}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}

MODELS: dict[str, dict[str, Any]] = {
    "llama": {"family": "llama"},
    "llama tied, one kv head, biases": {
        "family": "llama",
        "tied": True,
        "kv_heads": 1,
        "attention_bias": True,
        "mlp_bias": True,
    },
    "qwen2": {"family": "qwen2"},
    "qwen2 tied": {"family": "qwen2", "tied": True, "hidden": 96, "heads": 6, "kv_heads": 3},
    "qwen2 sliding": {"family": "qwen2", "use_sliding_window": True, "sliding_window": 9, "max_window_layers": 1},
    "qwen3": {"family": "qwen3"},
    "qwen3 tied, wide heads, bias": {"family": "qwen3", "tied": True, "head_dim": 32, "attention_bias": True},
    "qwen2_moe": {"family": "qwen2_moe"},
    "qwen2_moe normalised, every other layer": {
        "family": "qwen2_moe",
        "layers": 4,
        "norm_topk_prob": True,
        "decoder_sparse_step": 2,
        "mlp_only_layers": [1],
    },
    "qwen3_moe": {"family": "qwen3_moe"},
    "qwen3_moe tied, not normalised, a dense layer": {
        "family": "qwen3_moe",
        "tied": True,
        "norm_topk_prob": False,
        "mlp_only_layers": [0],
        "layers": 3,
        "head_dim": 32,
    },
    "yarn": {"family": "qwen3", "context": 128, "rope_parameters": YARN},
    "yarn with its options": {
        "family": "llama",
        "context": 128,
        "rope_parameters": {**YARN, "attention_factor": 1.3, "beta_fast": 16, "beta_slow": 2, "truncate": False},
    },
    "yarn with mscale": {
        "family": "qwen2",
        "context": 96,
        "rope_parameters": {**YARN, "mscale": 0.7, "mscale_all_dim": 0.4},
    },
    "yarn of transformers 4": {
        "family": "qwen2",
        "context": 128,
        "rope_parameters": None,
        "rope_theta": 10000.0,
        "rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32},
    },
    "linear": {"family": "llama", "rope_parameters": {"rope_type": "linear", "rope_theta": 5000.0, "factor": 3.0}},
    "llama3": {"family": "llama", "rope_parameters": LLAMA3},
}
"""Configurations of tiny models, by what is special about them."""


class DenseKV:
    """Keys and values in one tensor per layer, for one sequence."""

    def __init__(self) -> None:
        self._kept: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def write(self, layer: int, k: torch.Tensor, v: torch.Tensor, start: int) -> None:
        old = self._kept.get(layer, (k[:0], v[:0]))
        self._kept[layer] = (torch.cat((old[0][:start], k)), torch.cat((old[1][:start], v)))

    def read(self, layer: int, end: int) -> tuple[torch.Tensor, torch.Tensor]:
        keys, values = self._kept[layer]
        assert len(keys) >= end
        return keys[:end], values[:end]

    def slabs(self) -> None:
        """Not in slabs: the decoder computes with torch."""


def their_model(folder: Path, **fields: Any) -> Any:
    """The directory as transformers opens it, float32."""
    transformers = foreign.transformers()
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **fields)
    return model.eval()


def their_greedy(model: Any, prompt: list[int], count: int) -> list[int]:
    """What transformers' generate gives, ends of a turn ignored."""
    ids = torch.tensor([prompt])
    with torch.no_grad():
        out = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=count,
            min_new_tokens=count,
            pad_token_id=0,
            eos_token_id=None,
        )
    return out[0, len(prompt) :].tolist()


def their_logits(model: Any, prompt: list[int]) -> torch.Tensor:
    """[n, vocab]."""
    with torch.no_grad():
        return model(torch.tensor([prompt])).logits[0].float()


def our_logits(model: Decoder, prompt: list[int], *, chunks: tuple[int, ...] = ()) -> torch.Tensor:
    """[n, vocab], the prompt cut at ``chunks``."""
    kv, parts = DenseKV(), []
    bounds = (0, *chunks, len(prompt))
    for start, end in pairwise(bounds):
        ids = torch.tensor(prompt[start:end])
        parts.append(model.forward(ids, torch.arange(start, end), kv, start=start, logits_from=0))
    return torch.cat(parts)


def our_greedy(model: Decoder, prompt: list[int], count: int, *, chunks: tuple[int, ...] = ()) -> list[int]:
    """Prefill, cut at ``chunks``, then one id at a time."""
    kv = DenseKV()
    bounds = (0, *chunks, len(prompt))
    logits = torch.empty(0)
    for start, end in pairwise(bounds):
        logits = model.forward(torch.tensor(prompt[start:end]), torch.arange(start, end), kv, start=start)
    ids: list[int] = []
    while True:
        ids.append(int(logits[-1].argmax()))
        if len(ids) == count:
            return ids
        at = len(prompt) + len(ids) - 1
        logits = model.forward(torch.tensor(ids[-1:]), torch.tensor([at]), kv, start=at)


def random_prompts(count: int, vocab: int, *, low: int = 4, high: int = 48, seed: int = 0) -> list[list[int]]:
    """Ids drawn evenly."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(low, high, (count,), generator=generator).tolist()
    return [torch.randint(0, vocab, (n,), generator=generator).tolist() for n in lengths]
