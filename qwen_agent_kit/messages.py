"""What a conversation is made of: messages, their parts, tool calls and tool results.

Plain frozen dataclasses with ``to_dict`` and ``from_dict``; this module knows nothing of models, tokens or prompts
beyond the ids that an assistant message was sampled as.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

from qwen_agent_kit.arrays import as_file
from qwen_agent_kit.errors import MediaError, UsageError

__all__ = [
    "Audio",
    "Image",
    "Media",
    "Message",
    "Part",
    "ROLES",
    "Reasoning",
    "Role",
    "Text",
    "TokenLog",
    "ToolCall",
    "ToolResult",
    "Video",
    "text_of",
]

Role = Literal["system", "user", "assistant", "tool"]
ROLES: tuple[str, ...] = ("system", "user", "assistant", "tool")

Trust = Literal["configured", "found"]


@dataclass(frozen=True, slots=True)
class Text:
    """A run of plain text. No tag inside it ever acts as a control token."""

    text: str
    kind: ClassVar[str] = "text"

    def to_dict(self) -> dict[str, Any]:
        return {"type": "text", "text": self.text}


@dataclass(frozen=True, slots=True)
class Reasoning:
    """What the model thought before it answered; never part of the answer's text."""

    text: str
    kind: ClassVar[str] = "reasoning"

    def to_dict(self) -> dict[str, Any]:
        return {"type": "reasoning", "text": self.text}


@dataclass(frozen=True)
class Media:
    """A part that is not text: where it comes from and how far that is trusted.

    Args:
        source: ``bytes``, a path, or a ``data:`` or http(s) URL; an array or an image object becomes the bytes of a
            lossless file (``arrays``; ``options["rate"]`` is an audio array's samples a second, 16000 unless said).
        trust: ``configured`` for a source that the user wrote in code or on the command line, ``found`` for one that
            came inside a message, a tool result or a file; ``found`` sources may neither read local paths nor reach
            private addresses.
        options: What the modality needs besides (a pixel budget, a frame rate), plain JSON data.
    """

    source: Any
    trust: Trust = "configured"
    options: Mapping[str, Any] = field(default_factory=dict)
    kind: ClassVar[str] = "media"

    def __post_init__(self) -> None:
        if not isinstance(self.source, bytes | str):
            rate = self.options.get("rate", 16_000)
            if (data := as_file(self.kind, self.source, rate if isinstance(rate, int) else 16_000)) is not None:
                object.__setattr__(self, "source", data)

    @property
    def digest(self) -> str | None:
        """The sha256 of the bytes, or None where the source still has to be read."""
        import hashlib

        return hashlib.sha256(self.source).hexdigest() if isinstance(self.source, bytes) else None

    def found(self) -> Media:
        """The same part, no longer trusted to name local files or private addresses."""
        return replace(self, trust="found")

    def to_dict(self) -> dict[str, Any]:
        """JSON data; bytes travel as base64. What comes back from it is ``found``."""
        if isinstance(self.source, bytes):
            data: dict[str, Any] = {"type": self.kind, "data": base64.b64encode(self.source).decode("ascii")}
        else:
            data = {"type": self.kind, "source": str(self.source)}
        if self.options:
            data["options"] = dict(self.options)
        return data

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Media:
        options = data.get("options", {})
        if not isinstance(options, Mapping):
            raise MediaError(f"`options` of a {cls.kind} part is {options!r}; allowed: an object")
        if "data" in data:
            try:
                return cls(base64.b64decode(data["data"], validate=True), "found", options)
            except (binascii.Error, TypeError, ValueError) as error:
                raise MediaError(f"`data` of a {cls.kind} part is not base64") from error
        if not isinstance(data.get("source"), str):
            raise MediaError(f"a {cls.kind} part has neither `data` nor `source`; found keys {sorted(data)!r}")
        return cls(data["source"], "found", options)


@dataclass(frozen=True)
class Image(Media):
    """A still picture."""

    kind: ClassVar[str] = "image"


@dataclass(frozen=True)
class Audio(Media):
    """A clip of sound."""

    kind: ClassVar[str] = "audio"


@dataclass(frozen=True)
class Video(Media):
    """Moving pictures."""

    kind: ClassVar[str] = "video"


@dataclass(frozen=True, slots=True)
class ToolCall:
    """The model's wish to run a tool.

    Args:
        id: Unique inside the conversation.
        name: The tool's name as the model wrote it.
        arguments: The parsed arguments, not yet validated against the tool.
        error: Why the call cannot be run, one line for the model, where what it wrote was malformed.
    """

    id: str
    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    error: str | None = None
    kind: ClassVar[str] = "tool_call"

    def to_dict(self) -> dict[str, Any]:
        data: dict[str, Any] = {
            "type": "tool_call",
            "id": self.id,
            "name": self.name,
            "arguments": dict(self.arguments),
        }
        if self.error is not None:
            data["error"] = self.error
        return data


@dataclass(frozen=True, slots=True)
class ToolResult:
    """What running a call gave; ``is_error`` where it is a mistake that the model should mend."""

    parts: tuple[Part, ...] = ()
    call_id: str = ""
    name: str = ""
    is_error: bool = False
    kind: ClassVar[str] = "tool_result"

    @property
    def text(self) -> str:
        """The text parts, joined."""
        return text_of(self.parts)

    def to_dict(self) -> dict[str, Any]:
        return {
            "type": "tool_result",
            "call_id": self.call_id,
            "name": self.name,
            "is_error": self.is_error,
            "parts": [part.to_dict() for part in self.parts],
        }


Part = Text | Reasoning | Media | ToolCall | ToolResult
"""What a message holds. Open on the side of media: a plugin's part subclasses ``Media``."""


_HOLDS: Mapping[str, Any] = {
    "system": Text | Media,
    "user": Text | Media,
    "assistant": Text | Reasoning | Media | ToolCall,
    "tool": ToolResult,
}
_ASKED = (
    'text and media only; calls and reasoning belong in Message("assistant", ...), a result in Message("tool", ...)'
)
_HOME: Mapping[str, str] = {
    "system": _ASKED,
    "user": _ASKED,
    "assistant": 'a result belongs in a message of its own, Message("tool", ToolResult(...))',
    "tool": 'one ToolResult, as in Message("tool", ToolResult((Text("3"),), call_id))',
}


@dataclass(frozen=True, slots=True)
class TokenLog:
    """The ids that an assistant message was sampled as, and the fingerprint of the tokenizer they belong to."""

    ids: tuple[int, ...]
    fingerprint: str

    def to_dict(self) -> dict[str, Any]:
        return {"ids": list(self.ids), "fingerprint": self.fingerprint}


@dataclass(frozen=True, slots=True)
class Message:
    """One turn.

    Args:
        role: ``system``, ``user``, ``assistant`` or ``tool``.
        parts: A string counts as one ``Text``. A ``tool`` message holds one ``ToolResult``, an ``assistant`` message
            text, reasoning, media and calls, the others text and media.
        log: For an assistant message that an engine of ours sampled, its ids.

    Raises:
        UsageError: For an unknown role, and a part that is none or that the role cannot hold.
    """

    role: Role
    parts: tuple[Part, ...] = ()
    log: TokenLog | None = None

    def __post_init__(self) -> None:
        if self.role not in ROLES:
            raise UsageError(f"message role is {self.role!r}; allowed: {', '.join(ROLES)}")
        parts: Any = self.parts
        if isinstance(parts, str):
            parts = (Text(parts),)
        elif not isinstance(parts, tuple):
            parts = tuple(parts) if isinstance(parts, Iterable) else (parts,)
        parts = tuple(Text(part) if isinstance(part, str) else part for part in parts)
        for part in parts:
            if not isinstance(part, Text | Reasoning | Media | ToolCall | ToolResult):
                raise UsageError(f"a message part is {part!r}; allowed: str, Text, Image, Audio, Video, ToolResult")
            if not isinstance(part, _HOLDS[self.role]):
                article = "an" if self.role == "assistant" else "a"
                raise UsageError(f"{article} {self.role} message holds a {type(part).__name__}", hint=_HOME[self.role])
        if self.role == "tool" and len(parts) != 1:
            raise UsageError(f"a tool message holds {len(parts)} parts; allowed: one", hint=_HOME["tool"])
        object.__setattr__(self, "parts", parts)

    @property
    def text(self) -> str:
        """The text parts, joined; reasoning and calls are not in it."""
        return text_of(self.parts)

    @property
    def reasoning(self) -> str:
        """The reasoning parts, joined."""
        return "".join(part.text for part in self.parts if isinstance(part, Reasoning))

    @property
    def tool_calls(self) -> tuple[ToolCall, ...]:
        """The calls in this message, in order."""
        return tuple(part for part in self.parts if isinstance(part, ToolCall))

    @property
    def tool_result(self) -> ToolResult | None:
        """The result that a ``tool`` message carries."""
        return next((part for part in self.parts if isinstance(part, ToolResult)), None)

    @property
    def media(self) -> tuple[Media, ...]:
        """The media of this message, those inside tool results included, in order."""
        found: list[Media] = []
        for part in self.parts:
            if isinstance(part, Media):
                found.append(part)
            elif isinstance(part, ToolResult):
                found += [inner for inner in part.parts if isinstance(inner, Media)]
        return tuple(found)

    def to_dict(self) -> dict[str, Any]:
        data: dict[str, Any] = {"role": self.role, "parts": [part.to_dict() for part in self.parts]}
        if self.log is not None:
            data["log"] = self.log.to_dict()
        return data

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], media: Sequence[type[Media]] = ()) -> Message:
        """The message that ``to_dict`` described; media come back as ``found``.

        Args:
            data: As ``to_dict`` writes it. ``parts`` may be a string.
            media: The part types of installed backends, besides Image, Audio and Video.

        Raises:
            UsageError: Where the data does not describe a message.
        """
        if not isinstance(data, Mapping):
            raise UsageError(f"a message is {type(data).__name__}; allowed: an object with `role` and `parts`")
        if "parts" not in data:
            raise UsageError(
                f"a message has the keys {[str(key)[:40] for key in data][:8]!r}; allowed: `role`, `parts` and `log`",
                hint="`parts` is what is said: a string or a list of parts" if "content" in data else None,
            )
        role, parts = data.get("role"), data["parts"]
        if not isinstance(role, str):
            raise UsageError(f"a message has role {role!r}; allowed: {', '.join(ROLES)}")
        if not isinstance(parts, str | list | tuple):
            raise UsageError(f"`parts` of a message is {type(parts).__name__}; allowed: a list or a string")
        known: tuple[type[Media], ...] = (Image, Audio, Video, *media)
        kinds = {kind.kind: kind for kind in known}
        read = (Text(parts),) if isinstance(parts, str) else tuple(_part(part, kinds) for part in parts)
        return cls(role, read, _log(data.get("log")))  # type: ignore[arg-type]  # checked in __post_init__


def text_of(parts: Iterable[Part]) -> str:
    """The text of the text parts, joined without anything between."""
    return "".join(part.text for part in parts if isinstance(part, Text))


def _log(data: Any) -> TokenLog | None:
    if data is None:
        return None
    try:
        return TokenLog(tuple(int(i) for i in data["ids"]), str(data["fingerprint"]))
    except (KeyError, TypeError, ValueError) as error:
        raise UsageError("`log` of a message is not {ids, fingerprint}") from error


def _part(data: Any, media: Mapping[str, type[Media]]) -> Part:
    if isinstance(data, str):
        return Text(data)
    if not isinstance(data, Mapping):
        raise UsageError(f"a message part is {type(data).__name__}; allowed: an object with `type`")
    kind = data.get("type")
    if kind in ("text", "reasoning"):
        if not isinstance(data.get("text"), str):
            raise UsageError(f"`text` of a {kind} part is {data.get('text')!r}; allowed: a string")
        return Text(data["text"]) if kind == "text" else Reasoning(data["text"])
    if kind == "tool_call":
        arguments = data.get("arguments", {})
        if not isinstance(arguments, Mapping):
            raise UsageError(f"`arguments` of a tool call is {type(arguments).__name__}; allowed: an object")
        return ToolCall(str(data.get("id", "")), str(data.get("name", "")), arguments, data.get("error"))
    if kind == "tool_result":
        parts = tuple(_part(part, media) for part in data.get("parts", ()))
        name, call_id = str(data.get("name", "")), str(data.get("call_id", ""))
        return ToolResult(parts, call_id, name, bool(data.get("is_error", False)))
    if isinstance(kind, str) and kind in media:
        return media[kind].from_dict(data)
    known = ["text", "reasoning", "tool_call", "tool_result", *media]
    raise UsageError(f"a message part has type {kind!r}; allowed: {', '.join(known)}")
