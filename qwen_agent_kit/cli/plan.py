"""``qak plan``: what a model needs, where it goes, how fast it will be, and why; on this machine or another."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import click

from qwen_agent_kit.cli.options import quant_option
from qwen_agent_kit.cli.output import json_option, plain, print_json, talk_only

if TYPE_CHECKING:
    from qwen_agent_kit.placement import Inventory, Placement, Plan

__all__ = ["hardware_of", "hardware_options", "plan_command"]

_WIDTH = 40
_PARTS = (("weights", "#"), ("kv", "="), ("state", "~"), ("activations", "+"), ("overhead", "."))


def hardware_options(command: click.decorators.FC) -> click.decorators.FC:
    """``--gpus`` and ``--memory``: plan for hardware that is not here."""
    for option in (
        click.option("--memory", metavar="SIZE", help="Plan for so much free memory, as in 16GiB."),
        click.option("--gpus", metavar="CARDS", help="Plan for these cards, as in 2x24GiB or 'rtx 4090'."),
    ):
        command = option(command)
    return command


@click.command("plan")
@click.argument("model", required=False)
@click.option("--context", type=int, metavar="N", help="Positions per conversation.")
@quant_option
@hardware_options
@click.option("--with", "others", multiple=True, metavar="MODEL", help="Another model to keep resident; repeatable.")
@click.option("--max-pixels", type=int, metavar="N", help="Pixels of the largest image.")
@click.option("--audio-seconds", type=float, metavar="S", help="Length of the longest clip.")
@click.option("--disk", is_flag=True, help="Let layers stay on disk where memory is short (slow).")
@json_option
def plan_command(
    model: str | None,
    context: int | None,
    quant: str | None,
    memory: str | None,
    gpus: str | None,
    others: tuple[str, ...],
    max_pixels: int | None,
    audio_seconds: float | None,
    disk: bool,
    as_json: bool,
) -> int:
    """Show what MODEL needs, where it goes and how fast it will be; nothing is fetched or loaded."""
    from qwen_agent_kit.host import Host
    from qwen_agent_kit.placement import Wishes

    wishes = Wishes(context, quant or "auto", max_pixels, audio_seconds, disk)
    with talk_only():
        made = Host(quant=quant).plans([model, *others], wishes, hardware_of(gpus, memory))
    if as_json:
        first, rest = made[0].to_dict(), [plan.to_dict() for plan in made[1:]]
        print_json({**first, "with": rest} if others else first)
    else:
        for number, plan in enumerate(made):
            click.echo(("\n" if number else "") + plain(str(plan)))
        for line in _picture(made):
            click.echo(plain(line))
    return 0 if all(plan.feasible for plan in made) else 1


def hardware_of(gpus: str | None, memory: str | None) -> Inventory | None:
    """The machine that ``--gpus`` and ``--memory`` describe, None for this one.

    Raises:
        UsageError: For a size or a card that cannot be read.
    """
    from dataclasses import replace

    from qwen_agent_kit.placement import Device, inventory
    from qwen_agent_kit.placement.hardware import device_sizes, gpu_figures, parse_bytes
    from qwen_agent_kit.placement.sources import limited

    if gpus is None and memory is None:
        return None
    here = inventory()
    if gpus is None:
        size = parse_bytes(memory or "")
        devices = [replace(d, free=size, total=size) for d in limited(here).devices]
        return replace(here, devices=tuple(devices))
    cards = device_sizes(gpus)
    found = [
        Device(f"cuda:{i}", "cuda", size, size, *gpu_figures(name, size), name) for i, (name, size) in enumerate(cards)
    ]
    if memory is not None and (size := parse_bytes(memory)):
        found.append(Device("cpu", "cpu", size, size))
    return replace(here, devices=tuple(found))


def _picture(plans: Sequence[Plan]) -> Iterator[str]:
    """A bar per device: what each model's parts take of its free memory."""
    shown = [(plan, placement) for plan in plans if plan.feasible for placement in plan.placements]
    if not shown:
        return
    yield ""
    for plan, placement in shown:
        of = f"{placement.device:<8}" + (f" {plan.model}" if len(plans) > 1 else "")
        yield f"  {of} [{_bar(placement)}] {placement.total / 2**30:.1f} of {placement.free / 2**30:.1f} GiB"
    yield "  " + "   ".join(f"{_sign(sign)} {name}" for name, sign in _PARTS)


def _sign(sign: str) -> str:
    blocks = {"#": "█", "=": "▓", "~": "▒", "+": "░", ".": "·"}
    encoding = getattr(sys.stdout, "encoding", None) or "ascii"
    return blocks[sign] if encoding.lower().startswith("utf") else sign


def _bar(placement: Placement) -> str:
    bar, at, done = "", 0.0, 0
    for name, sign in _PARTS:
        at += getattr(placement, name) / max(1, placement.free) * _WIDTH
        width = max(0, min(_WIDTH, round(at)) - done)
        bar, done = bar + _sign(sign) * width, done + width
    return bar.ljust(_WIDTH)
