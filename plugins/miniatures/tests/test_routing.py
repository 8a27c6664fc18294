"""Which model answers when none is named, over a conversation whose parts change; on the real small models."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from qwen_agent_kit import Agent, Audio, Host, Image, Limits, Sampling, tool
from qwen_agent_kit.errors import UsageError

pytest.importorskip("qwen_agent_kit_vision")
pytest.importorskip("qwen_agent_kit_audio")

DATA = Path(__file__).with_name("data")
SCENE, CLIP = DATA / "scenes" / "scene-001.png", DATA / "clips" / "clip-000.wav"


@pytest.fixture
def host(smollm2_gguf: Path, private_home: Path) -> Iterator[Host]:
    """A host that finds all three miniatures."""
    folder = private_home / "cache" / "models" / "smollm2"
    folder.mkdir(parents=True)
    shutil.copy(smollm2_gguf, folder)
    with Host() as opened:
        yield opened


def test_the_model_follows_the_parts(host: Host) -> None:
    """Text, then a picture, then text again: the seeing model stays, since the history still holds the picture."""
    agent = Agent(host=host, sampling=Sampling(max_tokens=4, temperature=0))
    chat = agent.chat()
    chosen = [chat.run("Say hello.").steps[0]]
    chosen.append(chat.run("Which colour is the square?", images=[SCENE]).steps[0])
    chosen.append(chat.run("And which shape?").steps[0])
    assert [(step.backend, step.reason) for step in chosen] == [
        ("text", "the narrowest that covers text"),
        ("vision", "the narrowest that covers image, text"),
        ("vision", "the narrowest that covers image, text"),
    ]
    heard = agent.run("What was said?", audio=[CLIP])
    assert (heard.output, heard.steps[0].backend) == ("five", "audio")
    assert host.resident == {"text", "vision", "audio"}


def test_a_kind_that_nothing_here_takes_is_named(host: Host) -> None:
    """A picture and a clip in one conversation need a model of both; none is fetched, the error says what is here."""
    with pytest.raises(UsageError, match=r"\['audio', 'image', 'text'\].*installed for: \['audio', 'image'") as caught:
        Agent(host=host).run("What is this?", images=[SCENE], audio=[CLIP])
    assert "name one" in (caught.value.hint or "")
    with pytest.raises(UsageError, match="found a part of kind 'image'") as caught:
        Agent("smollm2", host=host).run("What is this?", images=[SCENE])
    assert 'pip install "qwen-agent-kit[vision]"' in (caught.value.hint or "")


@pytest.mark.parametrize(("kind", "part"), [("vision", Image(SCENE.read_bytes())), ("audio", Audio(CLIP.read_bytes()))])
def test_what_a_tool_returns_is_seen_or_heard_next(host: Host, kind: str, part: Any) -> None:
    """The text model calls the tool; the next step goes to the model that takes what came, and it encodes it once."""

    @tool
    def fetch() -> Any:
        """Fetch the thing in question."""
        return part

    limits, sampling = Limits(steps=2), Sampling(max_tokens=48, temperature=0)
    result = Agent(host=host, tools=[fetch], tool_choice="required", limits=limits, sampling=sampling).run("Fetch it.")
    assert [step.backend for step in result.steps] == ["text", kind]
    assert result.steps[1].reason == f"the narrowest that covers {', '.join(sorted({'text', part.kind}))}"
    assert [one.kind for one in result.messages[2].media] == [part.kind]
    model: Any = host.open(None, kinds=frozenset({"text", part.kind}))
    assert model.engine.media_counters.encoded == 1


def test_a_single_model_of_text_leaves_a_picture_out(host: Host) -> None:
    """Where one model is named, no other is tried: it reads that something was left out."""

    @tool
    def fetch() -> Image:
        """Fetch the picture in question."""
        return Image(SCENE.read_bytes())

    limits, sampling = Limits(steps=2), Sampling(max_tokens=48, temperature=0)
    agent = Agent("smollm2", host=host, tools=[fetch], tool_choice="required", limits=limits, sampling=sampling)
    result = agent.run("Fetch it.")
    assert [step.backend for step in result.steps] == ["text", "text"]
    assert "image left out" in result.messages[2].parts[0].text  # type: ignore[union-attr]  # a tool result
