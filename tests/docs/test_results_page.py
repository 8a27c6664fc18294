"""The reference of results names every field there is, and no other."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest

from qwen_agent_kit import Limits, Usage, events, messages

TEXT = (Path(__file__).resolve().parents[2] / "docs" / "reference" / "results.md").read_text(encoding="utf-8")


def section(title: str) -> str:
    """What stands under a heading."""
    return re.split(r"^## ", TEXT.split(f"\n## {title}\n", 1)[1], maxsplit=1, flags=re.MULTILINE)[0]


@pytest.mark.parametrize("kind", [events.RunResult, events.Step, Usage], ids=lambda kind: kind.__name__)
def test_each_field_has_its_row(kind: Any) -> None:
    """The first table under the class's name lists its fields, each once."""
    table = section(kind.__name__).split("\n\n| `stop_reason` |")[0]
    rows = re.findall(r"^\| ((?:`\w+`(?:, )?)+) \|", table, re.MULTILINE)
    named = [name for row in rows for name in re.findall(r"`(\w+)`", row)]
    assert sorted(named) == sorted(field.name for field in dataclasses.fields(kind))


def test_each_event_has_its_row() -> None:
    """With the names of its fields."""
    rows = dict(re.findall(r"^\| `(\w+)` \| (.*) \|$", section("Events"), re.MULTILINE))
    kinds = events.Event.__args__
    assert set(rows) == {kind.__name__ for kind in kinds}
    for kind in kinds:
        assert {field.name for field in dataclasses.fields(kind)} <= set(re.findall(r"`(\w+)`", rows[kind.__name__]))


def test_each_part_has_its_fields() -> None:
    """Of messages, their log and their parts."""
    text = section("Message and its parts")
    for kind in (
        messages.Message,
        messages.TokenLog,
        messages.Text,
        messages.Media,
        messages.ToolCall,
        messages.ToolResult,
    ):
        for field in dataclasses.fields(kind):
            assert f"`{field.name}`" in text, f"{kind.__name__}.{field.name}"


def test_each_limit_has_its_reason() -> None:
    """Every field of ``Limits`` that ends a run by its own name."""
    named = set(re.findall(r"`limit:(\w+)`", TEXT))
    assert named == {field.name for field in dataclasses.fields(Limits)} - {"same_call"}
