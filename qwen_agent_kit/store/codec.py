"""A message as a row: canonical JSON with a digest, its media apart under digests of their own."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qwen_agent_kit import media
from qwen_agent_kit.errors import StoreError
from qwen_agent_kit.messages import (
    Audio,
    Image,
    Media,
    Message,
    Part,
    Reasoning,
    Text,
    TokenLog,
    ToolCall,
    ToolResult,
    Video,
)

__all__ = ["Row", "decode", "decode_part", "encode", "encode_part", "media_classes"]


@dataclass(frozen=True, slots=True)
class Row:
    """A message as it is stored: its digest (sha256 of ``body``), its JSON and the media that it names."""

    digest: str
    body: str
    blobs: Mapping[str, bytes]


def encode(message: Message) -> Row:
    """The row of a message. Media that are here (bytes, a file, a ``data:`` URL) are read, so that they stay.

    Raises:
        StoreError: Where a tool call's arguments are no JSON data.
        MediaError: Where a medium cannot be read.
    """
    blobs: dict[str, bytes] = {}
    data: dict[str, Any] = {"role": message.role, "parts": [encode_part(part, blobs) for part in message.parts]}
    if message.log is not None:
        data["log"] = message.log.to_dict()
    try:
        body = json.dumps(data, separators=(",", ":"), sort_keys=True)
    except (TypeError, ValueError, RecursionError) as error:
        raise StoreError(f"a {message.role} message holds data that JSON cannot: {type(error).__name__}") from error
    return Row(hashlib.sha256(body.encode("ascii")).hexdigest(), body, blobs)


def encode_part(part: Part, blobs: dict[str, bytes]) -> dict[str, Any]:
    """A part as JSON data; the bytes of media go to ``blobs``. Unlike ``to_dict`` it keeps what was trusted."""
    if isinstance(part, ToolResult):
        data = {"type": part.kind, "call_id": part.call_id, "name": part.name, "is_error": part.is_error}
        return {**data, "parts": [encode_part(inner, blobs) for inner in part.parts]}
    if not isinstance(part, Media):
        return part.to_dict()
    data = {"type": part.kind, "trust": part.trust, "options": dict(part.options)}
    source = part.source
    if isinstance(source, str) and "://" in source[:16] and source[:5].lower() != "data:":
        return {**data, "source": source}
    if part.trust != "configured" and isinstance(source, str | os.PathLike) and str(source)[:5].lower() != "data:":
        return {**data, "source": str(source)}  # a path that was found is not opened, here as anywhere
    content = media.read_bytes(part)
    digest = media.digest_of(content)
    blobs[digest] = content
    return {**data, "media": digest}


def media_classes(kinds: Sequence[type[Media]]) -> dict[str, type[Media]]:
    """The media parts that are known, by kind."""
    known: tuple[type[Media], ...] = (Image, Audio, Video, *kinds)
    return {kind.kind: kind for kind in known}


def decode(body: str, blob: Callable[[str], bytes], kinds: Sequence[type[Media]] = ()) -> Message:
    """The message of a row.

    Args:
        body: What ``encode`` wrote.
        blob: The bytes of a digest.
        kinds: The part types of installed backends, besides Image, Audio and Video.

    Raises:
        StoreError: Where the row is damaged or holds a kind that nothing installed knows.
    """
    classes = media_classes(kinds)
    try:
        data = json.loads(body)
        parts = tuple(decode_part(part, blob, classes) for part in data["parts"])
        log = data.get("log")
        ids = TokenLog(tuple(log["ids"]), log["fingerprint"]) if log else None
        return Message(data["role"], parts, ids)
    except (KeyError, TypeError, ValueError) as error:
        raise StoreError(
            f"a stored message is damaged ({type(error).__name__})", hint="`qak sessions delete` removes it"
        ) from error


def decode_part(data: Mapping[str, Any], blob: Callable[[str], bytes], classes: Mapping[str, type[Media]]) -> Part:
    """The part that ``encode_part`` wrote."""
    kind = data["type"]
    match kind:
        case "text":
            return Text(data["text"])
        case "reasoning":
            return Reasoning(data["text"])
        case "tool_call":
            return ToolCall(data["id"], data["name"], data["arguments"], data.get("error"))
        case "tool_result":
            inner = tuple(decode_part(part, blob, classes) for part in data["parts"])
            return ToolResult(inner, data["call_id"], data["name"], data["is_error"])
    if kind not in classes:
        raise StoreError(
            f"a stored message holds a part of kind {str(kind)[:80]!r}; known: {', '.join(sorted(classes))}",
            hint="install the plugin that brings this kind",
        )
    source = blob(data["media"]) if "media" in data else data["source"]
    return classes[kind](source, data["trust"], data["options"])
