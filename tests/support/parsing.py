"""Runs the stream parser over chunks, checks the rules of its deltas, and sums up what they say."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import count, pairwise
from typing import Any

from qwen_agent_kit import dialects
from qwen_agent_kit.backends import CallDelta, CallDone, Piece
from qwen_agent_kit.events import ReasoningDelta, TextDelta
from qwen_agent_kit.messages import ToolCall
from qwen_agent_kit.parse import StreamParser

TAGS = ("<tool_call>", "</tool_call>", "<think>", "</think>")
_TAG = re.compile("(" + "|".join(map(re.escape, TAGS)) + ")")


@dataclass
class Outcome:
    """What a stream said."""

    content: str = ""
    reasoning: str = ""
    calls: list[ToolCall] = field(default_factory=list)
    truncated: str = ""
    deltas: list[Any] = field(default_factory=list)

    @property
    def good(self) -> list[tuple[str, Any]]:
        """The names and arguments of the calls that could be run."""
        return [(call.name, dict(call.arguments)) for call in self.calls if call.error is None]

    @property
    def errors(self) -> list[str]:
        """The error lines of the others."""
        return [call.error for call in self.calls if call.error is not None]

    @property
    def said(self) -> tuple[Any, ...]:
        """All of it, without ids, for comparing."""
        calls = [(call.name, dict(call.arguments), call.error) for call in self.calls]
        return self.content, self.reasoning, calls, self.truncated


def parse(
    pieces: Iterable[str | Piece],
    *,
    dialect: str = "hermes",
    tools: Sequence[Any] = (),
    reasoning: bool = False,
    control: bool = False,
    calls: bool | None = True,
    finish: str | None = "stop",
) -> Outcome:
    """What the parser makes of the pieces; with ``finish`` None it is never told that the stream ended."""
    ids = count()
    parser = StreamParser(
        dialects.get(dialect),
        tools=tools,
        starts_in_reasoning=reasoning,
        control_tags=frozenset(TAGS) if control else frozenset(),
        parse_calls=calls,
        new_id=lambda: f"call_{next(ids)}",
    )
    outcome = Outcome()
    for piece in pieces:
        outcome.deltas += parser.feed(Piece(piece) if isinstance(piece, str) else piece)
    if finish is not None:
        last, outcome.truncated = parser.finish(finish)
        outcome.deltas += last
    _sum_up(outcome)
    return outcome


def as_control(chunks: Sequence[str]) -> list[Piece]:
    """The chunks as a vocabulary with control tags would give them: each tag whole, the text between cut as before."""
    cuts, at = set(), 0
    for chunk in chunks:
        at += len(chunk)
        cuts.add(at)
    pieces, at = [], 0
    for part in _TAG.split("".join(chunks)):
        if part in TAGS:
            pieces.append(Piece(part, control=True))
        else:
            places = [0, *(cut - at for cut in sorted(cuts) if 0 < cut - at < len(part)), len(part)]
            pieces += [Piece(part[a:b]) for a, b in pairwise(places) if a < b]
        at += len(part)
    return pieces


def _sum_up(outcome: Outcome) -> None:
    names: dict[int, str] = {}
    texts: dict[int, str] = {}
    for delta in outcome.deltas:
        match delta:
            case TextDelta(text):
                assert text, "an empty delta says nothing"
                outcome.content += text
            case ReasoningDelta(text):
                assert text, "an empty delta says nothing"
                outcome.reasoning += text
            case CallDelta(index, name, text):
                assert (name is None) == (index in names), "the name comes once, on the first delta of its index"
                if name is not None:
                    names[index] = name
                texts[index] = texts.get(index, "") + text
            case CallDone(index, call):
                assert index == len(outcome.calls), "indices are 0, 1, 2 in order"
                outcome.calls.append(call)
                if call.error is None:
                    assert names[index] == call.name
                    assert json.loads(texts[index]) == call.arguments
                else:
                    assert "\n" not in call.error
            case _:
                raise AssertionError(f"unexpected delta {delta!r}")
    assert list(names) == sorted(names)
    assert len({call.id for call in outcome.calls}) == len(outcome.calls)
