"""How far a scheme's predictions are from those of the unquantised model, on a text of prose, code and JSON.

KL is the mean over positions of the divergence of the scheme's next-token distribution from the reference's, in nats.
A peer that only tells its likeliest tokens is compared over these and the rest as one, and so are we beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from qwen_agent_kit.bench.compare import model_path, named, opened_side, threads_here
from qwen_agent_kit.bench.rows import Row
from qwen_agent_kit.errors import UsageError

if TYPE_CHECKING:
    import torch

    from qwen_agent_kit.models import LoadedModel

__all__ = ["quality", "text_ids"]

WINDOW = 1024
STRIDE = 8
MOST = 64
LIMITS = {"int8": 1.01, "int4": 1.06, "bf16": 1.0001}
"""The perplexity that is promised, over that of bfloat16."""


def quality(model: str = "smollm2", quant: str = "int8", against: str = "") -> list[Row]:
    """KL and perplexity of ``quant`` beside bfloat16, and beside llama.cpp in the same class where it is named."""
    import torch

    from qwen_agent_kit.models import load_model

    if quant not in LIMITS:
        raise UsageError(f"`quant` is {quant!r}; allowed: {', '.join(LIMITS)}")
    torch.set_num_threads(threads_here())
    path = model_path(model, quant)
    loaded = load_model(path, quant="bf16")
    ids = text_ids(loaded)
    reference = _distributions(loaded, ids)
    own = _distributions(load_model(path, quant=quant), ids)
    ratio = _perplexity(own, ids) / _perplexity(reference, ids)
    rows = [
        Row(f"perplexity, {len(ids)} tokens, bf16", _perplexity(reference, ids), ""),
        Row(f"perplexity, {quant}", _perplexity(own, ids), ""),
        Row(f"perplexity, {quant} over bf16", ratio, "ratio", LIMITS[quant]),
        Row(f"KL to bf16, {quant}", float((reference.exp() * (reference - own)).sum(-1).mean()), "nats"),
    ]
    for name in named(against, quant):
        if name.startswith("llama.cpp"):
            rows += _beside(path, name, ids, reference, own)
    return rows


def text_ids(loaded: LoadedModel) -> list[int]:
    """The text in the model's ids."""
    import tokenizers

    text = (Path(__file__).parent / "text.md").read_text(encoding="utf-8")
    ids: list[int] = tokenizers.Tokenizer.from_str(loaded.tokenizer_json).encode(text).ids
    return ids


def _windows(ids: list[int]) -> Iterator[list[int]]:
    return (ids[at : at + WINDOW] for at in range(0, len(ids), WINDOW))


def _distributions(loaded: LoadedModel, ids: list[int]) -> torch.Tensor:
    """Log-probabilities [n, vocab] behind each id, each window on its own."""
    import torch

    from qwen_agent_kit.engine.kv import KVLayout, SequenceKV
    from qwen_agent_kit.models import Segment

    decoder, config, parts = loaded.model, loaded.config, []
    for window in _windows(ids):
        kv = SequenceKV(KVLayout(config.layers, config.kv_heads, config.head_dim, decoder.dtype))
        kv.ensure(len(window), 0, WINDOW)
        logits = decoder.forward_batch(
            torch.tensor(window), torch.arange(len(window)), [Segment(kv, 0, len(window), len(window))]
        )
        parts.append(logits.log_softmax(-1))
    return torch.cat(parts)


def _perplexity(found: torch.Tensor, ids: list[int]) -> float:
    """Over the ids that follow another in their window."""
    import torch

    rows = torch.tensor([i for i in range(len(ids) - 1) if (i + 1) % WINDOW])
    return float((-found[rows, torch.tensor(ids)[rows + 1]]).mean().exp())


def _beside(path: Path, name: str, ids: list[int], reference: torch.Tensor, own: torch.Tensor) -> Iterator[Row]:
    """The divergences over each side's likeliest tokens and the rest, at every eighth position."""
    import torch

    at = [i for i in range(len(ids)) if i % WINDOW % STRIDE == STRIDE - 1]
    told: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
    with closing(opened_side(name, path, threads_here(), WINDOW + 64)) as peer:
        for i in at:
            found = peer.likeliest(ids[i // WINDOW * WINDOW : i + 1], MOST)
            told[i] = torch.tensor([t for t, _ in found]), torch.tensor([p for _, p in found])
    sides: dict[str, Callable[[int], tuple[torch.Tensor, torch.Tensor]]] = {
        "ours": lambda i: (lambda top: (top.indices, top.values))(own[i].topk(MOST)),
        name: told.__getitem__,
    }
    each = {who: torch.tensor([_coarse(reference[i], *side(i)) for i in at]) for who, side in sides.items()}
    for who, found in each.items():
        yield Row(f"KL to bf16 over {MOST} likeliest, {len(at)} positions: {who}", float(found.mean()), "nats")
    apart = each["ours"] - each[name]
    mean, error = float(apart.mean()), float(apart.std()) / len(at) ** 0.5
    yield Row(
        "the same, ours less theirs, within two standard errors", mean, "nats", None, mean - 2 * error, mean + 2 * error
    )


def _coarse(reference: torch.Tensor, tokens: torch.Tensor, found: torch.Tensor) -> float:
    """Divergence over ``tokens`` and all others taken together."""
    import torch

    theirs = reference[tokens].double()
    ours = found.double()
    rest = [(1 - side.exp().sum()).clamp(min=1e-9).log() for side in (theirs, ours)]
    p, q = torch.cat((theirs, rest[0][None])), torch.cat((ours, rest[1][None]))
    return float((p.exp() * (p - q)).sum())
