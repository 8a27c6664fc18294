"""From what a caller passes to messages."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qwen_agent_kit.errors import UsageError
from qwen_agent_kit.messages import Audio, Image, Media, Message, Part, Reasoning, Text, ToolCall, ToolResult, Video

__all__ = ["Inputs", "opening", "parts_of", "read_inputs", "user_message"]


@dataclass(frozen=True, slots=True)
class Inputs:
    """What a run begins with: the conversation so far, and the new message where there is one."""

    history: tuple[Message, ...]
    message: Message | None


def read_inputs(
    prompt: Any,
    *,
    parts: Any = (),
    images: Any = (),
    audio: Any = (),
    video: Any = (),
    messages: Iterable[Message | Mapping[str, Any]] = (),
    kinds: Callable[[], Sequence[type[Media]]] = tuple,
) -> Inputs:
    """The messages that the arguments of ``run`` describe.

    ``kinds`` gives the part types of plugins; it is asked only where a message is data.

    Raises:
        UsageError: Where one of them is of a kind that is not allowed, or there is nothing to answer.
    """
    history = tuple(_message(message, kinds) for message in messages)
    message = user_message(prompt, parts=parts, images=images, audio=audio, video=video)
    if message is None and (not history or history[-1].role not in ("user", "tool")):
        raise UsageError("there is no prompt", hint='pass a text, as in agent.run("...")')
    return Inputs(history, message)


def user_message(prompt: Any, *, parts: Any = (), images: Any = (), audio: Any = (), video: Any = ()) -> Message | None:
    """The user's message: the prompt, then ``parts``, images, audio and video. None where all are empty."""
    if isinstance(prompt, Message):
        if prompt.role != "user":
            raise UsageError(f"the prompt is a message of role {prompt.role!r}; allowed: user", hint="use messages=")
        prompt = prompt.parts
    found = [*parts_of(prompt), *parts_of(parts)]
    for kind, given in ((Image, images), (Audio, audio), (Video, video)):
        sources = given if isinstance(given, list | tuple) else (given,)
        found += [source if isinstance(source, Media) else kind(source) for source in sources]
    return Message("user", tuple(found)) if found else None


def parts_of(value: Any) -> tuple[Part, ...]:
    """A string, a part or a sequence of these, as parts.

    Raises:
        UsageError: For anything else.
    """
    if value is None:
        return ()
    several = value if isinstance(value, list | tuple) else (value,)
    for part in several:
        if not isinstance(part, str | Text | Media | Reasoning | ToolCall | ToolResult):
            raise UsageError(
                f"the prompt holds a {type(part).__name__}; allowed: str, Text, Image, Audio, Video or a list of these"
            )
    return tuple(Text(part) if isinstance(part, str) else part for part in several)


def _message(value: Message | Mapping[str, Any], kinds: Callable[[], Sequence[type[Media]]]) -> Message:
    return value if isinstance(value, Message) else Message.from_dict(value, kinds())


def opening(system: str | None, inputs: Inputs) -> list[Message]:
    """The messages that a run begins with; the system message comes first where there is none yet."""
    history = list(inputs.history)
    if system is not None and not (history and history[0].role == "system"):
        history.insert(0, Message("system", (Text(system),)))
    if inputs.message is not None:
        history.append(inputs.message)
    return history
