"""``qak recommend``: which model for a task on this machine, with the plan, the reason and the trade-off of each."""

from __future__ import annotations

import click

from qwen_agent_kit.cli.output import json_option, note, print_json, print_table, talk_only
from qwen_agent_kit.cli.plan import hardware_of, hardware_options

__all__ = ["recommend_command"]


@click.command("recommend")
@click.option(
    "--task",
    type=click.Choice(["chat", "code", "math", "vision", "audio", "agents"]),
    required=True,
    metavar="TASK",
    help="chat, code, math, vision, audio or agents.",
)
@hardware_options
@click.option("--speed", type=float, metavar="N", help="At least so many tokens per second, as predicted.")
@click.option("--languages", metavar="CODES", help="Languages it must know, as in de,zh.")
@click.option("--licence", metavar="SPDX", help="Only models under this licence, as in Apache-2.0.")
@click.option("--context", type=int, metavar="N", help="Positions per conversation (default: 8192, or the model's).")
@click.option("--any-engine", is_flag=True, help="Also models that no engine of the kit runs yet.")
@click.option("--top", type=click.IntRange(1, 100), default=5, metavar="N", help="How many (default: 5).")
@json_option
def recommend_command(
    task: str,
    memory: str | None,
    gpus: str | None,
    speed: float | None,
    languages: str | None,
    licence: str | None,
    context: int | None,
    any_engine: bool,
    top: int,
    as_json: bool,
) -> int:
    """Rank the models that fit, the best first; nothing is fetched or loaded."""
    from qwen_agent_kit.placement import inventory
    from qwen_agent_kit.placement.recommend import Needs, recommend
    from qwen_agent_kit.placement.sources import limited

    wanted = tuple(code.strip().lower() for code in (languages or "").split(",") if code.strip())
    needs = Needs(task, context, speed or 0.0, wanted, licence, any_engine)
    with talk_only():
        given = hardware_of(gpus, memory)
        found, left_out = recommend(given or limited(inventory()), needs)
    found = found[:top]
    if as_json:
        print_json({"task": task, "models": [one.to_dict() for one in found], "left_out": left_out})
        return 0 if found else 1
    rows = [
        (
            one.entry.name,
            one.plan.scheme,
            f"{one.plan.total_bytes / 2**30:.1f} GiB",
            f"{one.plan.context:,}",
            f"{one.plan.decode_tokens_per_second:.3g}",
            one.entry.licence,
            one.why,
            one.trade_off,
        )
        for one in found
    ]
    print_table(("model", "scheme", "memory", "context", "tokens/s", "licence", "why", "trade-off"), rows)
    for reason, count in left_out.items():
        note(f"{count} left out: {reason}")
    if not found:
        note("nothing fits; give more --memory, less --speed, or another --task")
        return 1
    note(f"speeds are {found[0].plan.speed_basis}; `qak plan MODEL` shows the whole plan")
    return 0
