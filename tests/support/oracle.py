"""transformers as the oracle for our decoder, and the plain ways to run ours."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from qwen_agent_kit import foreign
from qwen_agent_kit.models import Decoder


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
