"""The hearing miniature answers through the kit itself: no model is named, nothing is mocked, files come from disk."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile
from miniatures import CLIP, DATA, Change, command_answers, reads_what_a_tool_returns, rows_of, share_right
from miniatures import takes_what_was_planned as planned

from qwen_agent_kit import Audio, Host, Media


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    with Host() as opened:
        yield opened


def _clip(row: dict[str, str]) -> Media:
    return Audio(DATA / "clips" / row["file"])


def _samples(change: Change, rate: int = 16_000) -> Callable[[dict[str, str]], Media]:
    def part(row: dict[str, str]) -> Media:
        samples = soundfile.read(DATA / "clips" / row["file"], dtype="float32")[0]
        return Audio(np.ascontiguousarray(change(samples)), options={"rate": rate})

    return part


def test_it_hears_the_committed_clips(host: Host) -> None:
    """At least 95 % of 400 questions about held-out clips, half of them about what was said."""
    rows = rows_of("clips")
    assert len(rows) == 400
    assert share_right(host, rows, _clip) >= 0.95


@pytest.mark.parametrize(
    ("change", "rate"),
    [(lambda s: s, 8000), (lambda s: s, 32_000), (lambda s: s[::-1], 16_000)],
    ids=["half the rate", "twice the rate", "backwards"],
)
def test_a_fault_in_samples_shows(host: Host, change: Change, rate: int) -> None:
    """A clip whose rate is told wrongly, or that runs backwards, is not understood."""
    assert share_right(host, rows_of("clips", 10), _samples(change, rate)) < 0.85


def test_the_command_line_answers() -> None:
    """`qak run` with a clip and no model named: the answer alone is on stdout."""
    assert command_answers("--audio", CLIP, "What was said?") == "five\n"


@pytest.mark.parametrize("quant", ["bf16", "int8"])
def test_it_takes_what_was_planned(quant: str) -> None:
    """Decoder and encoder, loaded, take what the plan says."""
    planned("miniature-audio", quant)


def test_a_clip_that_a_tool_returns_is_heard_next(real_home: Path) -> None:
    """The step after the text model's call goes to the model that hears."""
    with Host() as host:
        reads_what_a_tool_returns(host, Audio(CLIP.read_bytes()), "audio")
