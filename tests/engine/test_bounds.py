"""In int8 and int4 the kernels depend on how many rows a step has, and so do the logits, a little. How little is held
here, on real weights: the KL divergence between the same ids computed in one way and in another."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from qwen_agent_kit.backends import Sampling
from qwen_agent_kit.engine import Engine
from qwen_agent_kit.engine.sampling import Draw, Sampler
from qwen_agent_kit.models import load_model

TEXT = """Rivers carry more than water. In spring the snow of the hills melts and fills them with clay and small stones,
which settle wherever the current is slow: behind fallen trees, in the inner side of a bend, and at last in the flat
mouth where fresh water meets the sea. Whoever builds a bridge there has to dig until the ground is firm, and that can
take a year. An old engineer once wrote: "Measure twice, and ask the people who fish." He was right about most of it.
for (int i = 0; i < count; i++) { if (depth[i] > limit) total += depth[i] - limit; }
The invoice of the second customer is still open. {"id": 17, "status": "open", "note": "call before noon"}
def total(rows):
    return sum(row["amount"] for row in rows if row["status"] == "open")
The team moved the meeting to the afternoon, because the report on energy use was due. {"id": 18, "status": "open",
"note": "call before noon"} The invoice of the third customer is still open, and the invoice of the fourth customer"""
SAID = 24

MEAN, MOST = 2.5e-3, 2e-2
"""Nats per token where torch's kernels run; measured: at most 1.2e-3 in the mean and 8.8e-3 for one token. Our own
kernels compute each row alike whatever runs beside it: there the logits are equal."""


class _Recording(Sampler):
    """Says given ids and keeps the log-probabilities that it was given for each."""

    def __init__(self, vocab: int, script: Sequence[int]) -> None:
        super().__init__(Sampling(temperature=0), vocab)
        self.script, self.seen = list(script), []

    def __call__(self, logits: torch.Tensor, mask: Any = None) -> Draw:
        self.seen.append(logits.float().log_softmax(0))
        return Draw(self.script[len(self.seen) - 1])


class _Recorder(Engine):
    """An engine whose requests say what follows their prompt in the text."""

    ids: Sequence[int] = ()

    def _sampler(self, sampling: Sampling, prompt: Any) -> Sampler:
        return _Recording(self._loaded.config.vocab_size, self.ids[len(prompt) :])


def _said(engine: _Recorder, cut: int, n: int = SAID) -> tuple[torch.Tensor, Any]:
    generation = engine.submit(list(engine.ids[:cut]), Sampling(max_tokens=n))
    list(generation)
    return torch.stack(generation._request.rules.sampler.seen), generation.usage


def _kl(a: torch.Tensor, b: torch.Tensor) -> tuple[float, float]:
    """Mean and largest KL divergence of rows of log-probabilities."""
    rows = (a.exp() * (a - b)).sum(1)
    return float(rows.mean()), float(rows.max())


@pytest.mark.parametrize(
    ("quant", "native"),
    [("int8", "1"), ("int4", "1"), ("int8", "0"), pytest.param("int4", "0", marks=pytest.mark.full)],
)
def test_ways_to_compute_the_same_differ_little(
    quant: str, native: str, smollm2_gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Chunked, after a prefix from memory and from disk, beside three others, and drafted: against cold, whole, alone
    and plain the divergence per token stays below the bound, and each way was really taken."""
    from tokenizers import Tokenizer

    monkeypatch.setenv("QAK_NATIVE", native)
    loaded = load_model(smollm2_gguf, quant=quant)
    _Recorder.ids = Tokenizer.from_str(loaded.tokenizer_json).encode(TEXT).ids
    cut = len(_Recorder.ids) - SAID
    with _Recorder(loaded, drafts=False, prefixes=tmp_path) as engine:
        cold, usage = _said(engine, cut)
        assert usage.cached_tokens == 0
    found: dict[str, tuple[float, float]] = {}
    with _Recorder(loaded, drafts=False, prefixes=tmp_path) as engine:
        disk, usage = _said(engine, cut)
        assert usage.cached_tokens == cut - 1
        found["disk"] = _kl(cold, disk)
    with _Recorder(loaded, drafts=False) as engine:
        _said(engine, cut // 2, 1)
        warm, usage = _said(engine, cut)
        assert usage.cached_tokens == cut // 2
        found["warm"] = _kl(cold, warm)
    with _Recorder(loaded, drafts=False, chunk=19) as engine:
        found["chunked"] = _kl(cold, _said(engine, cut)[0])
    with _Recorder(loaded, drafts=False) as engine:
        beside = [engine.submit(list(engine.ids[: cut - i]), Sampling(max_tokens=SAID), salt=str(i)) for i in (1, 2, 3)]
        found["batched"] = _kl(cold, _said(engine, cut)[0])
        assert engine.counters.forwards < 4 * SAID
        for generation in beside:
            list(generation)
    with _Recorder(loaded) as engine:
        drafted, usage = _said(engine, cut)
        assert usage.accepted_tokens > 0
        found["drafted"] = _kl(cold, drafted)
    bounds = (0.0, 0.0) if loaded.model.native is not None else (MEAN, MOST)
    assert max(mean for mean, _ in found.values()) <= bounds[0], found
    assert max(most for _, most in found.values()) <= bounds[1], found
