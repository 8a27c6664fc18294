"""What this machine can do, and how far the planner's predictions are from what the engine does.

Three coefficients per scheme, each timed by itself, so that noise in one is not made up for by another:

- what a position costs besides, and what a layer does: two real decoders so narrow that their weights are nothing, one
  of two layers and one of many; the difference is layers, what is left is the position;
- how much of the memory bandwidth the kernels reach: a real decoder of few wide layers, whose weights are several times
  what caches hold, less what its layers and the position cost besides.

They are kept in the cache and used by every plan from then on. Then models of known shapes are predicted, by the table
that comes with the kit and by what was just measured, and only then made, run and compared.
"""

from __future__ import annotations

import itertools
import os
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from qwen_agent_kit.backends import Sampling
from qwen_agent_kit.bench.rows import Row
from qwen_agent_kit.catalog.released import find
from qwen_agent_kit.errors import UsageError
from qwen_agent_kit.placement import Wishes, footprint, inventory, plan_model, shape_from_config
from qwen_agent_kit.placement.footprint import CHUNK
from qwen_agent_kit.placement.hardware import Speed
from qwen_agent_kit.placement.measured import Measured, measure_bandwidth, write_measured
from qwen_agent_kit.placement.planner import Model
from qwen_agent_kit.placement.sources import limited
from qwen_agent_kit.testing.random_model import random_model

if TYPE_CHECKING:
    from qwen_agent_kit.engine import Engine
    from qwen_agent_kit.models import LoadedModel

__all__ = ["calibrate", "compare", "measure"]

SCHEMES = ("bf16", "int8", "int4")
MODELS = ("SmolLM2-135M-Instruct", "Qwen2.5-0.5B-Instruct", "Qwen2.5-1.5B-Instruct")
PROMPT = 128
DRAWN = 24
ROUNDS = 5

_FEW, _MANY = (128, 256, 2, 512), (128, 256, 26, 512)
_WIDE = (1024, 4096, 8, 65536)
"""Hidden width, MLP width, layers, vocabulary. The last takes 105 MB in int4, the least of the schemes."""


def measure(
    rounds: int = ROUNDS, models: Sequence[str] = (), schemes: Sequence[str] = (), table_only: bool = False
) -> list[Row]:
    """Calibrate, keep the result, then predict and run shapes under schemes.

    Args:
        rounds: How often each model answers.
        models: Catalogued models whose shapes are run, with random weights; three where empty.
        schemes: bf16, int8, int4; all three where empty.
        table_only: Measure and keep nothing of the machine: hold the built-in table against what is drawn.

    Raises:
        UsageError: For a model that is not catalogued.
    """
    os.environ.setdefault("GOMP_SPINCOUNT", "3000")  # before torch is loaded, as the host does
    models, schemes = models or MODELS, schemes or SCHEMES
    if unknown := next((name for name in models if find(name) is None), None):
        raise UsageError(f"no model {unknown!r} is catalogued", hint="`qak models` lists them")
    if not table_only:
        write_measured(calibrate(rounds, schemes))
    rows = []
    for name, scheme, built_in, predicted, found in compare(models, schemes, rounds):
        shown = [("predicted by the table", "the table off by", built_in)]
        shown += [] if table_only else [("predicted as measured", "as measured off by", predicted)]
        rows += [Row(f"{name} {scheme}: {what}", value, "token/s") for what, _, value in shown]
        rows += [Row(f"{name} {scheme}: drawn, median", found, "token/s")]
        rows += [Row(f"{name} {scheme}: {off}", abs(value / found - 1), "ratio", 0.3) for _, off, value in shown]
    return rows


def calibrate(rounds: int = ROUNDS, schemes: Sequence[str] = SCHEMES) -> Measured:
    """Measure this machine: bandwidth, and each scheme's coefficients. Takes some seconds per scheme."""
    bandwidth = measure_bandwidth(inventory().threads)
    speeds, rates = {}, {}
    for scheme in schemes:
        models = [random_model(_probe(*sizes), scheme) for sizes in (_FEW, _MANY, _WIDE)]
        few, many, wide = (drawn for _, drawn in _timed(models, PROMPT, rounds))
        speeds[scheme] = _speed(scheme, few, many, wide, bandwidth)
        shape = shape_from_config(_probe(*_WIDE))
        rates[scheme] = 2 * shape.linear_parameters / _timed(models[-1:], CHUNK, rounds)[0][0]
    compute = max(rates.values())
    speeds = {scheme: replace(speed, compute=rates[scheme] / compute) for scheme, speed in speeds.items()}
    return Measured(bandwidth, compute, speeds)


def compare(
    names: Sequence[str], schemes: Sequence[str], rounds: int = ROUNDS
) -> Iterator[tuple[str, str, float, float, float]]:
    """(model, scheme, predicted by the table, predicted as measured, drawn) per second, predicted before it is made."""
    here = limited(inventory())
    fresh = replace(here, devices=tuple(replace(d, bandwidth=0.0, measured=False) for d in here.devices), measured=None)
    for name in names:
        known = find(name)
        assert known is not None, "the names are the catalogue's"
        config = known[0].config or {}
        for scheme in schemes:
            wishes = Wishes(context=PROMPT + DRAWN + 1, quant=scheme)
            model = Model(name, shape_from_config(config))
            table, measured = (plan_model(one, model, wishes).decode_tokens_per_second for one in (fresh, here))
            ((_, seconds),) = _timed([random_model(config, scheme)], PROMPT, rounds)
            yield name, scheme, table, measured, 1 / seconds


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


def _timed(models: Sequence[LoadedModel], prompt: int, rounds: int) -> list[tuple[float, float]]:
    """Median seconds per position of the prompt, and per position drawn after it, of each model.

    They take turns, so that what disturbs the machine for a while disturbs all alike.
    """
    from qwen_agent_kit.engine import Engine

    # What random weights say repeats itself, and would be drafted.
    engines = [Engine(m, context=prompt + DRAWN + 8, stop_repetition=False, drafts=False) for m in models]
    found: list[tuple[list[float], list[float]]] = [([], []) for _ in engines]
    try:
        for n in range(rounds + 1):  # the first one warms up
            for engine, (read, drawn) in zip(engines, found, strict=True):
                first, each = _once(engine, [2 + (i * 7 + n * 13) % 200 for i in range(prompt)])
                if n:
                    read.append(first / prompt)
                    drawn.append(each)
    finally:
        for engine in engines:
            engine.close()
    return [(statistics.median(read), statistics.median(drawn)) for read, drawn in found]


def _once(engine: Engine, ids: list[int]) -> tuple[float, float]:
    """Seconds until the first id was there, and the median between the ones after it."""
    start, times = time.perf_counter(), list[float]()
    for _ in engine.submit(ids, Sampling(max_tokens=DRAWN, temperature=0.0)):
        times.append(time.perf_counter())
    return times[0] - start, statistics.median(b - a for a, b in itertools.pairwise(times))


def _speed(scheme: str, few: float, many: float, wide: float, bandwidth: float) -> Speed:
    """The coefficients, from the seconds that a position took in each of the three decoders."""
    layer = max(0.0, many - few) / (_MANY[2] - _FEW[2])
    token = max(0.0, few - _FEW[2] * layer)
    shape = shape_from_config(_probe(*_WIDE))
    parts = footprint(shape, scheme)
    kept = sum(parts.layer_kv(i) for i in range(shape.layers)) * PROMPT
    reading = wide - shape.layers * layer - token
    # Where a machine was so busy that fixed costs seem to be all, a tenth is left to reading: never less than nothing.
    rate = (sum(parts.read) + parts.read_head + kept) / max(reading, wide / 10)
    return Speed(rate / bandwidth, layer * 1e6, token * 1e6, 1.0)
