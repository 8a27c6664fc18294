"""A two-layer attention decoder in 60 lines, with a byte tokenizer: for tests of the engine that turn on timing, faults
and accounting, where the model only has to be cheap and to depend on every id and position before it."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import torch

EOS, OPEN, CLOSE = 256, 257, 258
VOCAB = 260


class SmallDecoder:
    """Random weights; ``before`` is called at the start of each forward, and is where tests wait, count or raise."""

    dtype = torch.float32

    def __init__(self, seed: int = 0, vocab: int = VOCAB) -> None:
        generator = torch.Generator().manual_seed(seed)

        def random(*shape: int) -> torch.Tensor:
            return torch.randn(*shape, generator=generator) / 4

        self.layers, self.heads, self.kv_heads, self.dim = 2, 4, 2, 8
        width = self.heads * self.dim
        self.embedding = random(vocab, width) * 4
        self.qkv = [random(width, width + 2 * self.kv_heads * self.dim) for _ in range(self.layers)]
        self.out = [random(width, width) for _ in range(self.layers)]
        self.head = random(width, vocab) * 2
        self.head[:, EOS:] = 0  # never the likeliest: greedy output ends only where a test says so
        self.before: Any = lambda ids, positions, start: None

    def forward(
        self,
        ids: torch.Tensor,
        positions: torch.Tensor,
        kv: Any,
        *,
        start: int,
        logits_from: int | None = None,
        embeds: torch.Tensor | None = None,
    ) -> torch.Tensor:
        self.before(ids, positions, start)
        n, width = len(ids), self.heads * self.dim
        end = start + n
        angle = (positions if positions.ndim == 1 else positions[1]).float()[:, None] * torch.arange(1, width + 1) / 9
        x = self.embedding[ids] + angle.sin()
        mask = torch.arange(end)[None] <= torch.arange(start, end)[:, None]
        for layer in range(self.layers):
            q, k, v = (torch.nn.functional.layer_norm(x, (width,)) @ self.qkv[layer]).split(
                [width, self.kv_heads * self.dim, self.kv_heads * self.dim], dim=-1
            )
            kv.write(layer, k.view(n, self.kv_heads, self.dim), v.view(n, self.kv_heads, self.dim), start)
            keys, values = (t.transpose(0, 1).repeat_interleave(2, 0) for t in kv.read(layer, end))
            q = q.view(n, self.heads, self.dim).transpose(0, 1)
            mixed = torch.nn.functional.scaled_dot_product_attention(q, keys, values, attn_mask=mask)
            x = x + mixed.transpose(0, 1).reshape(n, width) @ self.out[layer]
        return x[n - 1 if logits_from is None else logits_from :] @ self.head

    def forward_batch(self, ids: torch.Tensor, positions: torch.Tensor, segments: Any) -> torch.Tensor:
        """One sequence after the other, through ``forward``, which tests replace."""
        found, first = [], 0
        for segment in segments:
            rows = slice(first, first + segment.count)
            cut = segment.count - segment.wanted
            found.append(
                self.forward(ids[rows], positions[..., rows], segment.kv, start=segment.start, logits_from=cut)
            )
            first += segment.count
        return torch.cat(found)


class PlainKV:
    """Keys and values in a list, grown by concatenation: the slow and obvious way."""

    def __init__(self) -> None:
        self.layers: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def write(self, layer: int, k: torch.Tensor, v: torch.Tensor, start: int) -> None:
        if layer in self.layers:
            old = self.layers[layer]
            k, v = torch.cat([old[0][:start], k]), torch.cat([old[1][:start], v])
        self.layers[layer] = (k, v)

    def read(self, layer: int, end: int) -> tuple[torch.Tensor, torch.Tensor]:
        k, v = self.layers[layer]
        return k[:end], v[:end]


def plain_greedy(model: Any, prompt: list[int], n: int, eos: tuple[int, ...] = (EOS,)) -> list[int]:
    """Greedy output the obvious way: the whole sequence through the model for every id, nothing kept."""
    ids = list(prompt)
    while len(ids) < len(prompt) + n:
        length = len(ids)
        with torch.inference_mode():
            logits = model.forward(torch.tensor(ids), torch.arange(length), PlainKV(), start=0, logits_from=length - 1)[
                -1
            ]
        ids.append(int(logits.argmax()))
        if ids[-1] in eos:
            break
    return ids[len(prompt) :]


def byte_tokenizer() -> str:
    """A tokenizer.json whose ids 0 to 255 are the bytes, followed by three added tokens."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    letters = {**{b: chr(b) for b in (*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100))}}
    hidden = [b for b in range(256) if b not in letters]
    letters |= {b: chr(0x100 + i) for i, b in enumerate(hidden)}
    tokenizer = Tokenizer(models.BPE(vocab={letters[b]: b for b in range(256)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken("<|im_end|>", special=True)])
    tokenizer.add_tokens([AddedToken("<think>", special=False), AddedToken("</think>", special=False)])
    text = str(tokenizer.to_str())
    assert {t["content"]: t["id"] for t in json.loads(text)["added_tokens"]} == {
        "<|im_end|>": EOS,
        "<think>": OPEN,
        "</think>": CLOSE,
    }
    return text


def small_loaded(seed: int = 0, *, max_positions: int = 4096, **fields: Any) -> Any:
    """What ``load_model`` would give for a ``SmallDecoder``."""
    model = SmallDecoder(seed)
    config = SimpleNamespace(
        vocab_size=VOCAB,
        layers=model.layers,
        kv_heads=model.kv_heads,
        head_dim=model.dim,
        max_positions=max_positions,
    )
    given = {"template": None, "special": {}, "eos": (EOS,), "sampling_defaults": {}, "digest": "small", **fields}
    return SimpleNamespace(model=model, config=config, tokenizer_json=byte_tokenizer(), **given)
