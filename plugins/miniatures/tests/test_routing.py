"""Where the model of text is named, it answers whatever comes; on the real weights, with any plugins or none."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from qwen_agent_kit import Agent, Audio, Host, Image, Limits, Media, Sampling, tool
from qwen_agent_kit.errors import UsageError

DATA = Path(__file__).with_name("data")
SCENE, CLIP = DATA / "scenes" / "scene-001.png", DATA / "clips" / "clip-000.wav"


@pytest.fixture
def host(real_home: Path) -> Iterator[Host]:
    with Host() as opened:
        yield opened


@pytest.mark.parametrize(("part", "plugin"), [(Image(SCENE), "vision"), (Audio(CLIP), "audio")])
def test_a_part_that_it_does_not_take_is_refused(host: Host, part: Media, plugin: str) -> None:
    """The error names the kind, and the plugin that has models for it."""
    with pytest.raises(UsageError, match=f"found a part of kind '{part.kind}'") as caught:
        Agent("smollm2", host=host).run([part, "What is this?"])
    assert f'pip install "qwen-agent-kit[{plugin}]"' in (caught.value.hint or "")


@pytest.mark.parametrize("part", [Image(SCENE.read_bytes()), Audio(CLIP.read_bytes())])
def test_what_a_tool_returns_is_left_out(host: Host, part: Media) -> None:
    """No other model is tried: it reads that something was left out."""

    @tool
    def fetch() -> Media:
        """Fetch the thing in question."""
        return part

    limits, sampling = Limits(steps=2), Sampling(max_tokens=48, temperature=0)
    agent = Agent("smollm2", host=host, tools=[fetch], tool_choice="required", limits=limits, sampling=sampling)
    result = agent.run("Fetch it.")
    assert [step.backend for step in result.steps] == ["text", "text"]
    assert f"{part.kind} left out" in result.messages[2].parts[0].text  # type: ignore[union-attr]  # a tool result
