"""What happens to pictures and clips where nothing sees or hears them; on the real weights."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from miniatures import CLIP, SCENE

from qwen_agent_kit import Agent, Audio, Host, Image, Limits, Media, Sampling, tool
from qwen_agent_kit.errors import UsageError

PARTS = [(Image(SCENE), "vision"), (Audio(CLIP), "audio")]


@pytest.fixture
def host(real_home: Path) -> Iterator[Host]:
    with Host() as opened:
        yield opened


@pytest.mark.parametrize(("part", "plugin"), PARTS)
def test_without_its_plugin_a_part_is_refused_with_the_cure(
    part: Media, plugin: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No model is named and the plugin is absent or switched off: the error says what to install."""
    monkeypatch.setenv("QAK_PLUGINS_OFF", f"qwen-agent-kit-{plugin}")
    with Host() as host, pytest.raises(UsageError, match=f"found a part of kind '{part.kind}'") as caught:
        Agent(host=host).run([part, "What is this?"])
    assert f'pip install "qwen-agent-kit[{plugin}]"' in (caught.value.hint or "")


@pytest.mark.parametrize(("part", "plugin"), PARTS)
def test_a_part_that_a_model_of_text_does_not_take_is_refused(host: Host, part: Media, plugin: str) -> None:
    """The error names the kind, and the plugin that has models for it."""
    with pytest.raises(UsageError, match=f"found a part of kind '{part.kind}'") as caught:
        Agent("smollm2", host=host).run([part, "What is this?"])
    assert f'pip install "qwen-agent-kit[{plugin}]"' in (caught.value.hint or "")


@pytest.mark.parametrize("part", [Image(SCENE.read_bytes()), Audio(CLIP.read_bytes())])
def test_what_a_tool_returns_to_a_model_of_text_is_left_out(host: Host, part: Media) -> None:
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
