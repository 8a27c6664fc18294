"""``qak bench agent`` and ``qak bench batch``: a tool loop, and several streams at once, beside other engines.

All sides take turns in one run, so that a busy machine hits them alike; the first turn warms up and does not count.
"""

from __future__ import annotations

import os
import random
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qwen_agent_kit.bench.rows import Row
from qwen_agent_kit.errors import UsageError

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
_CLASS = {"int4": "llama.cpp-q4_0"}


def agent(
    model: str = "smollm2",
    quant: str = "int8",
    against: str = "",
    pairs: int = 7,
    steps: int = 8,
    plot: str | None = None,
) -> list[Row]:
    """A tool loop replayed: 1,500 tokens of system prompt and 14 tools, then steps of 40 ids and 150 of a result.

    The ids are the same for every side: llama.cpp's greedy ones where it takes part, as it cannot be told what to say,
    else our own. Then the loop under the grammar of the tools, with forcing and drafts, and without.

    Args:
        model: A GGUF file or a catalog name.
        quant: ``int8``, ``int4``, ``bf16`` or ``fp32``.
        against: ``transformers`` (a fresh ``generate``, and with its keys and values carried over), ``llama.cpp``, or
            both with a comma.
        pairs: How often each side runs.
        steps: Of the loop.
        plot: A PNG file for seconds per step.
    """
    loaded, threads, path = _opened(model, quant)
    from qwen_agent_kit.bench.ours import Ours
    from qwen_agent_kit.bench.turns import make_workload

    work = make_workload(loaded, steps)
    context = len(work.beginning) + steps * (SAID + 160) + 64
    with ExitStack() as stack:
        sides: list[Any] = [
            stack.enter_context(closing(Ours(loaded, threads=threads, drafts=d))) for d in (True, False)
        ]
        names = list(_named(against, quant))
        sides += [stack.enter_context(closing(_side(name, path, threads, context))) for name in names]
        script = _script(sides, work)
        times = _turns(sides, pairs, lambda side: _loop(side, work, script))
        usages = sides[0].usages
        rows = list(
            _loop_rows(f"agent loop of {steps}, {model}, {quant}", {n: [sum(t) for t in v] for n, v in times.items()})
        )
        rows.append(Row("drafted ids that came true", _share(usages, "accepted_tokens", "drafted_tokens"), "share"))
        if plot:
            _plot_steps(plot, times, steps)
    return rows + _grammar_rows(loaded, threads, work, pairs)


def batch(
    model: str = "smollm2",
    quant: str = "int8",
    against: str = "",
    pairs: int = 7,
    tokens: int = 64,
    plot: str | None = None,
) -> list[Row]:
    """Tokens per second of 1 to 16 streams together, prompts of 32 random ids included; drafts are off.

    Args:
        model: A GGUF file or a catalog name.
        quant: ``int8``, ``int4``, ``bf16`` or ``fp32``.
        against: ``transformers``, ``llama.cpp`` (with 16 slots), or both with a comma.
        pairs: How often each side runs.
        tokens: Generated per stream.
        plot: A PNG file for tokens per second over streams.
    """
    loaded, threads, path = _opened(model, quant)
    from qwen_agent_kit.bench.ours import Ours

    choice = random.Random(1)  # noqa: S311  # no secret
    found: dict[str, dict[int, list[float]]] = {}
    with ExitStack() as stack:
        sides: list[Any] = [stack.enter_context(closing(Ours(loaded, threads=threads, drafts=False)))]
        names = [name for name in _named(against, quant) if name != "transformers-carried"]
        context, slots = 64 + tokens, max(STREAMS)
        sides += [stack.enter_context(closing(_side(name, path, threads, context, slots))) for name in names]
        for count in STREAMS:

            def once(side: Any, n: int = count) -> float:
                prompts = [[choice.randrange(300, 40_000) for _ in range(32)] for _ in range(n)]
                return n * tokens / float(side.run_many(prompts, tokens))

            for name, values in _turns(sides, pairs, once).items():
                found.setdefault(name, {})[count] = values
    rows = [
        _row(f"{n} streams, {model}, {quant}: {name}", "tok/s", v) for name, by in found.items() for n, v in by.items()
    ]
    ours = next(iter(found.values()))
    rows.append(_row("8 streams over 1: ours", "ratio", _ratios(ours[8], ours[1])))
    for name, by in list(found.items())[1:]:
        rows += [_row(f"{n} streams: ours over {name}", "ratio", _ratios(ours[n], by[n])) for n in STREAMS]
    if plot:
        from qwen_agent_kit.bench.plots import lines

        curves = {name: [statistics.median(by[n]) for n in STREAMS] for name, by in found.items()}
        lines(Path(plot), f"{model}, {quant}", "streams", "tokens per second", STREAMS, curves)
    return rows


def _opened(model: str, quant: str) -> tuple[LoadedModel, int, Path]:
    os.environ.setdefault("GOMP_SPINCOUNT", "3000")  # before torch is loaded, as the host does
    from qwen_agent_kit.bench.ours import opened
    from qwen_agent_kit.host import Host

    path = Path(model) if Path(model).is_file() else Host().target(model).path()
    threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return opened(path, quant, threads), threads, path


def _named(against: str, quant: str) -> Iterator[str]:
    known = {
        "transformers": ("transformers", "transformers-carried"),
        "llama.cpp": (_CLASS.get(quant, "llama.cpp-q8_0"),),
    }
    for name in (part.strip() for part in against.split(",")):
        if name and name not in known:
            raise UsageError(f"`--against` names {name[:40]!r}; allowed: {', '.join(known)}")
        yield from known.get(name, ())


def _side(name: str, path: Path, threads: int, context: int, slots: int = 1) -> Any:
    from qwen_agent_kit.bench.sides import open_side

    return open_side(name, path, threads=threads, context=context, slots=slots)


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
    for step, (said, result) in enumerate(zip(script, work.results, strict=True)):
        seconds.append(side.run(prompt, len(said), said, fresh=step == 0).total)
        prompt = [*prompt, *said, *result]
    return seconds


def _turns(sides: Sequence[Any], pairs: int, once: Callable[[Any], Any]) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = {side.name: [] for side in sides}
    for turn in range(pairs + 1):
        for side in sides if turn % 2 else list(reversed(sides)):
            value = once(side)
            if turn:  # the first warms up
                found[side.name].append(value)
    return found


def _loop_rows(title: str, seconds: Mapping[str, list[float]]) -> Iterator[Row]:
    names = list(seconds)
    for name in names:
        yield _row(f"{title}: {name}", "s", seconds[name])
    for name in names[1:]:
        yield _row(f"the time of {name} over ours", "ratio", _ratios(seconds[name], seconds[names[0]]))


def _grammar_rows(loaded: LoadedModel, threads: int, work: Workload, pairs: int) -> list[Row]:
    """The loop under the grammar of the 14 tools: how much is forced, and what forcing and drafts are worth."""
    from qwen_agent_kit.bench.ours import Ours

    with ExitStack() as stack:
        on = stack.enter_context(closing(Ours(loaded, threads=threads, end=True)))
        off = stack.enter_context(closing(Ours(loaded, threads=threads, drafts=False, forcing=False, end=True)))
        script: list[list[int]] = []
        _called(on, work, script)
        usages = list(on.usages)
        times = _turns([on, off], pairs, lambda side: _called(side, work, script))
    forced = _share(usages, "forced_tokens", "generated_tokens")
    return [
        Row("under the grammar of 14 tools, forced ids of all", forced, "share"),
        *(_row(f"the same loop under the grammar: {name}", "s", v) for name, v in times.items()),
        _row("forcing and drafts off over on", "ratio", _ratios(times[off.name], times[on.name])),
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


def _ratios(over: Sequence[float], under: Sequence[float]) -> list[float]:
    return [a / b for a, b in zip(over, under, strict=True)]


def _row(name: str, unit: str, values: Sequence[float]) -> Row:
    return Row(name, statistics.median(values), unit, least=min(values), most=max(values))


def _plot_steps(plot: str, times: Mapping[str, list[list[float]]], steps: int) -> None:
    from qwen_agent_kit.bench.plots import lines

    curves = {name: [statistics.median(t[i] for t in v) for i in range(steps)] for name, v in times.items()}
    lines(Path(plot), "the agent loop", "step", "seconds", range(1, steps + 1), curves)
