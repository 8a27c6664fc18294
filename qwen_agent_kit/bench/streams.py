"""``qak bench agent`` and ``qak bench batch``: a tool loop, and several streams at once, beside other engines.

All sides take turns in one run, so that a busy machine hits them alike. A turn before the first warms up and does not
count: of the loop it is one step. Processor time of the whole process is given beside the clock's: where others use the
machine it says more, best with one thread, as threads that wait for each other spin.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qwen_agent_kit.bench.compare import checked, opened, opened_side, ratios, summary, turns
from qwen_agent_kit.bench.rows import Row

if TYPE_CHECKING:
    from qwen_agent_kit.bench.ours import Ours
    from qwen_agent_kit.bench.turns import Workload
    from qwen_agent_kit.models import LoadedModel

__all__ = ["agent", "batch"]

SAID = 40
"""Ids generated per step of the loop."""

LONGEST_CALL = 160
"""Ids that a call may take under the grammar; it ends by itself."""

STREAMS = (1, 2, 4, 8, 16)


def agent(
    model: str = "smollm2",
    quant: str = "int8",
    against: str = "",
    pairs: int = 7,
    steps: int = 8,
    threads: int = 0,
    plot: str | None = None,
) -> list[Row]:
    """A tool loop replayed: 1,500 tokens of system prompt and 14 tools, then steps of 40 ids and 150 of a result.

    The ids are the same for every side: llama.cpp's greedy ones where it takes part, as it cannot be told what to say,
    else our own. Without other engines the loop is run under the grammar of the tools, too, with forcing and drafts,
    and without.

    Args:
        model: A GGUF file or a catalog name.
        quant: ``int8``, ``int4``, ``bf16`` or ``fp32``.
        against: ``transformers`` (a fresh ``generate``, and with its keys and values carried over), ``llama.cpp``, the
            name of a single side (``bench.compare.SIDES``), or several with commas.
        pairs: How often each side runs.
        steps: Of the loop.
        threads: For all sides; one per core where 0.
        plot: A PNG file for seconds per step.
    """
    names = checked(against, quant, plot)
    loaded, threads, path = opened(model, quant, threads)
    from qwen_agent_kit.bench.ours import Ours
    from qwen_agent_kit.bench.turns import make_workload

    work = make_workload(loaded, steps)
    context = len(work.beginning) + steps * (SAID + 160) + 64
    with ExitStack() as stack:
        sides: list[Any] = [
            stack.enter_context(closing(Ours(loaded, threads=threads, drafts=d))) for d in (True, False)
        ]
        sides += [stack.enter_context(closing(opened_side(name, path, threads, context))) for name in names]
        script = _script(sides, work)
        spent: dict[str, list[float]] = {}

        def once(side: Any) -> list[float]:
            before = time.process_time()
            seconds = _loop(side, work, script)
            spent.setdefault(side.name, []).append(time.process_time() - before)
            return seconds

        times = turns(sides, pairs, once, warm=lambda side: _loop(side, work, script[:1]))
        usages = sides[0].usages
        rows = list(
            _loop_rows(
                f"agent loop of {steps}, {Path(model).stem}, {quant}",
                {n: [sum(t) for t in v] for n, v in times.items()},
            )
        )
        rows += _loop_rows("processor time of the same", {name: spent[name] for name in times})
        rows.append(Row("drafted ids that came true", _share(usages, "accepted_tokens", "drafted_tokens"), "share"))
        if plot:
            _plot_steps(plot, times, steps)
    return rows if against else rows + _grammar_rows(loaded, threads, work, pairs)


def batch(
    model: str = "smollm2",
    quant: str = "int8",
    against: str = "",
    pairs: int = 7,
    tokens: int = 64,
    threads: int = 0,
    plot: str | None = None,
) -> list[Row]:
    """Tokens per second of 1 to 16 streams together, prompts of 16 random ids included; drafts are off.

    Args:
        model: A GGUF file or a catalog name.
        quant: ``int8``, ``int4``, ``bf16`` or ``fp32``.
        against: ``transformers``, ``llama.cpp`` (with 16 slots), or both with a comma.
        pairs: How often each side runs.
        tokens: Generated per stream.
        threads: For all sides; one per core where 0.
        plot: A PNG file for tokens per second over streams, of the clock's and of processor time.
    """
    names = [name for name in checked(against, quant, plot) if name != "transformers-carried"]
    loaded, threads, path = opened(model, quant, threads)
    from qwen_agent_kit.bench.ours import Ours

    choice = random.Random(1)  # noqa: S311  # no secret
    found: dict[str, dict[int, list[float]]] = {}
    spent: dict[str, dict[int, list[float]]] = {}
    with ExitStack() as stack:
        sides: list[Any] = [stack.enter_context(closing(Ours(loaded, threads=threads, drafts=False)))]
        context, slots = 64 + tokens, max(STREAMS)
        sides += [stack.enter_context(closing(opened_side(name, path, threads, context, slots))) for name in names]
        for count in STREAMS:

            def once(side: Any, n: int = count) -> float:
                prompts = [[choice.randrange(300, 40_000) for _ in range(16)] for _ in range(n)]
                before = time.process_time()
                seconds = float(side.run_many(prompts, tokens))
                rates = spent.setdefault(side.name, {}).setdefault(n, [])
                rates.append(n * tokens / (time.process_time() - before))
                return n * tokens / seconds

            for name, values in turns(sides, pairs, once).items():
                found.setdefault(name, {})[count] = values
                del spent[name][count][0]  # warmed up
    rows = [
        *_batch_rows(f"{Path(model).stem}, {quant}", "tok/s", found),
        *_batch_rows("processor time", "tok/cpu s", spent),
    ]
    if plot:
        from qwen_agent_kit.bench.plots import lines

        both = {**found, **{f"{name}, processor time": by for name, by in spent.items()}}
        curves = {name: [statistics.median(by[n]) for n in STREAMS] for name, by in both.items()}
        title = f"{Path(model).stem}, {quant}, {threads} threads"
        lines(Path(plot), title, "streams", "tokens per second", STREAMS, curves)
    return rows


def _batch_rows(title: str, unit: str, found: Mapping[str, Mapping[int, list[float]]]) -> Iterator[Row]:
    for name, by in found.items():
        yield from (summary(f"{n} streams, {title}: {name}", unit, values) for n, values in by.items())
    (_, ours), *others = found.items()
    yield summary(f"8 streams over 1, {title}: ours", "ratio", ratios(ours[8], ours[1]))
    for name, by in others:
        yield from (
            summary(f"{n} streams, {title}: ours over {name}", "ratio", ratios(ours[n], by[n])) for n in STREAMS
        )


def _script(sides: Sequence[Any], work: Workload) -> list[list[int]]:
    """Per step the ids that are said."""
    teller = next((side for side in sides if hasattr(side, "discover")), None)
    prompt, script = list(work.beginning), []
    for step, result in enumerate(work.results):
        if teller is not None:
            said = list(teller.discover(prompt, SAID, fresh=step == 0))
        else:
            said = list(sides[0].run(prompt, SAID, fresh=step == 0).ids)
        script.append(said)
        prompt = [*prompt, *said, *result]
    return script


def _loop(side: Any, work: Workload, script: Sequence[Sequence[int]]) -> list[float]:
    """Seconds of each step."""
    prompt, seconds = list(work.beginning), []
    for step, (said, result) in enumerate(zip(script, work.results, strict=False)):
        seconds.append(side.run(prompt, len(said), said, fresh=step == 0).total)
        prompt = [*prompt, *said, *result]
    return seconds


def _loop_rows(title: str, seconds: Mapping[str, list[float]]) -> Iterator[Row]:
    names = list(seconds)
    for name in names:
        yield summary(f"{title}: {name}", "s", seconds[name])
    for name in names[1:]:
        yield summary(f"{title}: {name} over ours", "ratio", ratios(seconds[name], seconds[names[0]]))


def _grammar_rows(loaded: LoadedModel, threads: int, work: Workload, pairs: int) -> list[Row]:
    """The loop under the grammar of the 14 tools: how much is forced, and what forcing and drafts are worth."""
    from qwen_agent_kit.bench.ours import Ours

    with ExitStack() as stack:
        on = stack.enter_context(closing(Ours(loaded, threads=threads, end=True)))
        off = stack.enter_context(closing(Ours(loaded, threads=threads, drafts=False, forcing=False, end=True)))
        script: list[list[int]] = []
        _called(on, work, script)
        usages = list(on.usages)
        times = turns([on, off], pairs, lambda side: _called(side, work, script))
    forced = _share(usages, "forced_tokens", "generated_tokens")
    return [
        Row("under the grammar of 14 tools, forced ids of all", forced, "share"),
        *(summary(f"the same loop under the grammar: {name}", "s", v) for name, v in times.items()),
        summary("forcing and drafts off over on", "ratio", ratios(times[off.name], times[on.name])),
    ]


def _called(side: Ours, work: Workload, script: list[list[int]]) -> float:
    """Seconds of a loop of calls; the first fills ``script`` with what was said, later ones say it again."""
    prompt, seconds = list(work.beginning), 0.0
    for step, result in enumerate(work.results):
        told = script[step] if step < len(script) else None
        answer = side.run(prompt, LONGEST_CALL, told, fresh=step == 0, grammar=work.grammar)
        if told is None:
            script.append(list(answer.ids))
        seconds += answer.total
        prompt = [*prompt, *answer.ids, *result]
    return seconds


def _share(usages: Sequence[Any], part: str, whole: str) -> float:
    total = sum(getattr(usage, whole) or 0 for usage in usages)
    return sum(getattr(usage, part) or 0 for usage in usages) / total if total else 0.0


def _plot_steps(plot: str, times: Mapping[str, list[list[float]]], steps: int) -> None:
    from qwen_agent_kit.bench.plots import lines

    curves = {name: [statistics.median(t[i] for t in v) for i in range(steps)] for name, v in times.items()}
    lines(Path(plot), "the agent loop", "step", "seconds", range(1, steps + 1), curves)
