"""From a media part's source to checked bytes, and from bytes to arrays in a process that may die.

Sources that the user configured may be paths; sources that were found inside a message, a tool result or a file may be
neither paths nor private addresses. A format is told by content, never by name. Decoders are plain functions that a
plugin names; they run in a child process with bounded memory and time, so that a hostile file costs a worker at most.
"""

from __future__ import annotations

from qwen_agent_kit.media.headers import image_size, stated_pixels
from qwen_agent_kit.media.sources import MAX_BYTES, digest_of, kind_of_file, read_bytes
from qwen_agent_kit.media.workers import Decoded, MediaLimits, Workers

__all__ = [
    "Decoded",
    "MAX_BYTES",
    "MediaLimits",
    "Workers",
    "digest_of",
    "image_size",
    "kind_of_file",
    "read_bytes",
    "stated_pixels",
]
