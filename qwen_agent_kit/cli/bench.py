"""``qak bench``: what the kit itself costs, measured here.

A measurement is a function that takes keyword arguments and returns rows; it becomes a command by a line in the table
below.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from qwen_agent_kit.cli.output import json_option, note, print_json, print_table

if TYPE_CHECKING:
    from qwen_agent_kit.bench.rows import Row

__all__ = ["bench_command"]

_STEPS = click.option(
    "--steps",
    type=click.IntRange(min=40),
    default=1000,
    show_default=True,
    metavar="N",
    help="How many steps the conversation grows to.",
)
_REPEATS = click.option(
    "--repeats",
    type=click.IntRange(min=1),
    default=3,
    show_default=True,
    metavar="N",
    help="How often each part runs.",
)

_TIMES = click.option(
    "--times",
    type=click.IntRange(min=1),
    default=15,
    show_default=True,
    metavar="N",
    help="How many fresh processes; the median counts.",
)

_ROUNDS = click.option(
    "--rounds",
    type=click.IntRange(min=1),
    default=3,
    show_default=True,
    metavar="N",
    help="How often each model answers; the median counts.",
)
_ITEMS = click.option(
    "--items", type=click.IntRange(min=2), default=128, show_default=True, metavar="N", help="How many items a job has."
)
_TOKENS = click.option(
    "--tokens", type=click.IntRange(min=1), default=32, show_default=True, metavar="N", help="The most per answer."
)
_CONCURRENCY = click.option(
    "--concurrency", type=click.IntRange(2, 256), default=16, show_default=True, metavar="N", help="Items at once."
)
_MODEL = click.option(
    "--model", "-m", default="", metavar="SPEC", help="The model; else the one that answers by default."
)

_BENCHES: dict[str, tuple[str, str, tuple[Callable[..., Any], ...]]] = {
    "loop": ("qwen_agent_kit.bench.loop:measure", "The agent's loop, the model's work left out.", (_STEPS, _REPEATS)),
    "placement": (
        "qwen_agent_kit.bench.placement:measure",
        "This machine's bandwidth and kernels, kept for plans; then predicted and measured speeds.",
        (
            _ROUNDS,
            click.option(
                "--model", "models", multiple=True, metavar="NAME", help="A catalogued model's shape; repeatable."
            ),
            click.option(
                "--quant",
                "schemes",
                multiple=True,
                type=click.Choice(["bf16", "int8", "int4"]),
                help="A scheme; repeatable.",
            ),
            click.option(
                "--table-only", is_flag=True, help="Measure the models only, and hold the table against them."
            ),
        ),
    ),
    "pipeline": (
        "qwen_agent_kit.bench.pipeline:measure",
        "A pipeline, batched against one item at a time.",
        (
            _ITEMS,
            _TOKENS,
            _CONCURRENCY,
            _REPEATS,
            _MODEL,
            click.option("--images", is_flag=True, help="Pictures in place of texts."),
        ),
    ),
    "media": (
        "qwen_agent_kit.bench.media:measure",
        "A question about a picture and one about a clip: a cold run, and with the model open.",
        (
            click.option(
                "--times",
                type=click.IntRange(1),
                default=5,
                show_default=True,
                metavar="N",
                help="How often; the median counts.",
            ),
        ),
    ),
    "start": (
        "qwen_agent_kit.bench.start:measure",
        "How soon importing, --help, plans and a cold run are there.",
        (_TIMES,),
    ),
}


_SIDES = (
    click.option(
        "--model",
        default="smollm2",
        show_default=True,
        metavar="MODEL",
        help="A GGUF file, a catalog name, or a shape with random weights: qwen2.5-0.5b, qwen2.5-1.5b.",
    ),
    click.option(
        "--quant", type=click.Choice(["int8", "int4", "bf16", "fp32"]), default="int8", show_default=True, help="Ours."
    ),
    click.option("--against", default="", metavar="NAMES", help="transformers, llama.cpp, or both with a comma."),
    click.option(
        "--pairs", type=click.IntRange(1), default=7, show_default=True, metavar="N", help="Runs of each side."
    ),
    click.option("--plot", metavar="FILE.png", help="Draw the figures, too; needs matplotlib."),
)
_THREADS = click.option(
    "--threads", type=click.IntRange(0, 256), default=0, metavar="N", help="Of every side; one per core where 0."
)
_LOOP = click.option(
    "--steps", type=click.IntRange(1, 32), default=8, show_default=True, metavar="N", help="Of the loop."
)
_EACH = click.option(
    "--tokens", type=click.IntRange(2, 1024), default=64, show_default=True, metavar="N", help="Generated per stream."
)
_LONG = click.option(
    "--tokens", type=click.IntRange(200), default=1500, show_default=True, metavar="N", help="Of the system prompt."
)
_PAIRS = click.option(
    "--pairs", type=click.IntRange(1), default=7, show_default=True, metavar="N", help="Runs of each kind."
)
_CONTEXT = click.option(
    "--context",
    type=click.IntRange(1, 7000),
    default=32,
    show_default=True,
    metavar="N",
    help="Tokens that come before.",
)
_PROMPTS = click.option("--tokens", default="512,2048", show_default=True, metavar="N,N", help="The prompts' lengths.")
_CLOCK = click.option(
    "--clock",
    type=click.Choice(["wall", "cpu"]),
    default="wall",
    show_default=True,
    help="Seconds that pass, or of processor time, which a busy machine hardly changes.",
)
_BENCHES |= {
    "prefix": (
        "qwen_agent_kit.bench.prefix:measure",
        "A second run with the same long system prompt, in a new process.",
        (_MODEL, _PAIRS, _LONG),
    ),
    "decode": (
        "qwen_agent_kit.bench.speed:decode",
        "Tokens per second of one stream, beside other engines.",
        (*_SIDES, _EACH, _CONTEXT, _THREADS, _CLOCK),
    ),
    "prefill": (
        "qwen_agent_kit.bench.speed:prefill",
        "Prompt tokens per second, beside other engines.",
        (*_SIDES, _PROMPTS, _THREADS, _CLOCK),
    ),
    "load": (
        "qwen_agent_kit.bench.speed:load",
        "From a process's start to its first token, and its peak memory.",
        _SIDES,
    ),
    "kernels": (
        "qwen_agent_kit.bench.kernels:kernels",
        "Every kernel of this machine on a model's shapes: checked, timed, and the best kept.",
        _SIDES[:1],
    ),
    "quality": (
        "qwen_agent_kit.bench.quality:quality",
        "KL and perplexity beside bfloat16, on a text of prose, code and JSON.",
        _SIDES[:3],
    ),
    "agent": ("qwen_agent_kit.bench.streams:agent", "A tool loop, beside other engines.", (*_SIDES, _LOOP, _THREADS)),
    "batch": (
        "qwen_agent_kit.bench.streams:batch",
        "1 to 16 streams together, beside other engines.",
        (*_SIDES, _EACH, _THREADS),
    ),
}


@click.group("bench")
def bench_command() -> None:
    """Measure what the kit itself costs; exit code 1 where a promise is missed."""


def _add(name: str, place: str, help_line: str, options: tuple[Callable[..., Any], ...]) -> None:
    def run(as_json: bool, **given: Any) -> int:
        module, _, function = place.partition(":")
        note("measuring; a machine that is busy with something else gives larger numbers")
        return _show(getattr(importlib.import_module(module), function)(**given), as_json)

    run.__doc__ = help_line
    command = json_option(run)
    for option in reversed(options):
        command = option(command)
    bench_command.command(name)(command)


def _show(rows: list[Row], as_json: bool) -> int:
    if as_json:
        print_json({"rows": [{**asdict(row), "ok": row.ok} for row in rows]})
    else:
        print_table(
            ("what", "value", "least", "most", "unit", "promised", ""),
            [
                (row.name, *_figures(row), row.unit, "" if row.limit is None else f"{row.limit:g}", _verdict(row))
                for row in rows
            ],
        )
    return 0 if all(row.ok for row in rows) else 1


def _figures(row: Row) -> tuple[str, str, str]:
    least, most = ("" if v is None else f"{v:.4g}" for v in (row.least, row.most))
    return (f"{row.value:.4f}" if row.least is None else f"{row.value:.4g}"), least, most


def _verdict(row: Row) -> str:
    if row.limit is None:
        return ""
    return "ok" if row.ok else "missed"


for _name, (_place, _help, _options) in _BENCHES.items():
    _add(_name, _place, _help, _options)
