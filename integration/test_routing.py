"""Which model answers when none is named, over a conversation whose parts change; on the real small models."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from miniatures import CLIP, SCENE

from qwen_agent_kit import Agent, Host, Sampling
from qwen_agent_kit.errors import UsageError


@pytest.fixture
def host(real_home: Path) -> Iterator[Host]:
    """A host that finds all three miniatures."""
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
