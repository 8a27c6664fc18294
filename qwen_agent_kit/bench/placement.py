"""What this machine can do, and how far the planner's predictions are from what the engine does.

Three random models, one of many narrow layers, one of few with a large head, one of wide ones, give the three
coefficients that a scheme has: how much of the memory bandwidth its kernels reach, what a layer costs besides, and what
a position costs besides. They are kept in the cache and used by every plan from then on. Then models of known shapes
are predicted, run and compared.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from qwen_agent_kit.backends import Sampling
from qwen_agent_kit.bench.rows import Row
from qwen_agent_kit.catalog.released import find
from qwen_agent_kit.placement import Wishes, footprint, inventory, plan_model, shape_from_config
from qwen_agent_kit.placement.footprint import CHUNK
from qwen_agent_kit.placement.hardware import Speed
from qwen_agent_kit.placement.measured import Measured, measure_bandwidth, write_measured
from qwen_agent_kit.placement.planner import Model
from qwen_agent_kit.placement.sources import limited
from qwen_agent_kit.testing.random_model import random_model

if TYPE_CHECKING:
    from qwen_agent_kit.models import LoadedModel

__all__ = ["calibrate", "compare", "measure"]

SCHEMES = ("bf16", "int8", "int4")
MODELS = ("SmolLM2-135M-Instruct", "Qwen2.5-0.5B-Instruct", "Qwen2.5-1.5B-Instruct")
PROMPT = 128
DRAWN = 24
ROUNDS = 3

_PROBES = ((512, 1536, 30, 65536), (1024, 4096, 6, 131072), (1536, 8960, 14, 65536))
"""Hidden width, MLP width, layers, vocabulary. Each has more bytes than caches hold, in int4 too."""


def measure(rounds: int = ROUNDS) -> list[Row]:
    """Calibrate, keep the result, then predict and run three shapes under three schemes."""
    write_measured(calibrate(rounds))
    rows = []
    for name, scheme, predicted, found in compare(MODELS, SCHEMES, rounds):
        rows += [
            Row(f"{name} {scheme}: predicted", predicted, "token/s"),
            Row(f"{name} {scheme}: measured, median", found, "token/s"),
            Row(f"{name} {scheme}: off by", abs(predicted / found - 1), "ratio", 0.3),
        ]
    return rows


def calibrate(rounds: int = ROUNDS, schemes: Sequence[str] = SCHEMES) -> Measured:
    """Measure this machine: bandwidth, and each scheme's coefficients. Takes some seconds per scheme."""
    threads = inventory().threads
    bandwidth = measure_bandwidth(threads)
    speeds, rates = {}, {}
    for scheme in schemes:
        timed = [(_probe(*sizes), random_model(_probe(*sizes), scheme)) for sizes in _PROBES]
        decode = [_timed(model, PROMPT, rounds)[1] for _, model in timed]
        speeds[scheme] = _fit([config for config, _ in timed], scheme, decode, bandwidth)
        rates[scheme] = _prefill_rate(timed[-1][0], timed[-1][1], rounds)
    compute = max(rates.values())
    speeds = {scheme: replace(speed, compute=rates[scheme] / compute) for scheme, speed in speeds.items()}
    return Measured(bandwidth, compute, speeds)


def compare(
    names: Sequence[str], schemes: Sequence[str], rounds: int = ROUNDS
) -> Iterator[tuple[str, str, float, float]]:
    """(model, scheme, predicted, measured) tokens per second, each predicted before the model is made."""
    here = limited(inventory())
    for name in names:
        known = find(name)
        assert known is not None, "the names are the catalogue's"
        config = known[0].config or {}
        for scheme in schemes:
            wishes = Wishes(context=PROMPT + DRAWN + 1, quant=scheme)
            plan = plan_model(here, Model(name, shape_from_config(config)), wishes)
            seconds = _timed(random_model(config, scheme), PROMPT, rounds)[1]
            yield name, scheme, plan.decode_tokens_per_second, 1 / seconds


def _probe(hidden: int, wide: int, layers: int, vocab: int) -> dict[str, Any]:
    return {
        "model_type": "qwen2",
        "hidden_size": hidden,
        "intermediate_size": wide,
        "num_hidden_layers": layers,
        "num_attention_heads": hidden // 64,
        "num_key_value_heads": 2,
        "vocab_size": vocab,
        "max_position_embeddings": 4096,
        "tie_word_embeddings": True,
    }


def _timed(model: LoadedModel, prompt: int, rounds: int) -> tuple[float, float]:
    """Median seconds per position of the prompt, and per position drawn after it."""
    from qwen_agent_kit.engine import Engine

    engine = Engine(model, context=prompt + DRAWN + 8, stop_repetition=False)
    read, drawn = [], []
    try:
        for n in range(rounds + 1):  # the first one warms up
            ids = [2 + (i * 7 + n * 13) % 200 for i in range(prompt)]
            generation = engine.submit(ids, Sampling(max_tokens=DRAWN, temperature=0.0))
            start, times = time.perf_counter(), list[float]()
            for _ in generation:
                times.append(time.perf_counter())
            if n and len(times) > 2:
                read.append((times[0] - start) / prompt)
                drawn.append(statistics.median(b - a for a, b in itertools.pairwise(times)))
    finally:
        engine.close()
    return statistics.median(read), statistics.median(drawn)


def _fit(configs: Sequence[Mapping[str, Any]], scheme: str, seconds: Sequence[float], bandwidth: float) -> Speed:
    """The coefficients of ``read / (bandwidth * stream) + layers * layer_us + token_us``; each probe counts alike."""
    import numpy as np

    rows = []
    for config in configs:
        shape = shape_from_config(config)
        parts = footprint(shape, scheme)
        kept = sum(parts.layer_kv(i) for i in range(shape.layers)) * PROMPT
        rows.append([(sum(parts.read) + parts.read_head + kept) / bandwidth, shape.layers / 1e6, 1 / 1e6])
    relative = np.array(rows) / np.array(seconds)[:, None]
    best, least = (1.0, 0.0, 0.0), float("inf")
    for used in ([0, 1, 2], [0, 1], [0, 2], [0]):  # noise can turn a small cost negative: then it is left out
        found = np.zeros(3)
        found[used] = np.linalg.lstsq(relative[:, used], np.ones(len(rows)), rcond=None)[0]
        error = float(((relative @ found - 1) ** 2).sum())
        if (found >= 0).all() and found[0] > 0 and error < least:
            best, least = (float(found[0]), float(found[1]), float(found[2])), error
    return Speed(1 / best[0], best[1], best[2], 1.0)


def _prefill_rate(config: Mapping[str, Any], model: LoadedModel, rounds: int) -> float:
    """Operations a second that a chunk's matrices reach."""
    shape = shape_from_config(config)
    return 2 * shape.linear_parameters / _timed(model, CHUNK, rounds)[0]
