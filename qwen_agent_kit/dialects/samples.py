"""A short text for a pattern or format, which the engine may use to end a string in time near the token limit.

Nothing depends on a sample being right: the engine tries it against the grammar before it is used.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["sample", "samples"]

LONGEST = 80
"""Characters of a sample; longer ones are not worth a try."""

MOST = 24
"""Samples per grammar."""

FORMATS: Mapping[str, str] = {
    "date": "2000-01-01",
    "time": "00:00:00Z",
    "date-time": "2000-01-01T00:00:00Z",
    "duration": "P1D",
    "email": "a@b.co",
    "hostname": "a",
    "ipv4": "1.1.1.1",
    "ipv6": "::1",
    "uri": "a:b",
    "uuid": "00000000-0000-0000-0000-000000000000",
}

_CLASSES: Mapping[str, str] = {"d": "0", "w": "a", "s": " ", "D": "a", "W": "-", "S": "a"}
_ESCAPES: Mapping[str, str] = {"n": "\n", "t": "\t", "r": "\r", "f": "\f", "v": "\v"}


def samples(nodes: list[tuple[str, Any]]) -> list[str]:
    """Texts that fulfil the patterns and formats of these schemas, as far as they were understood."""
    found: dict[str, None] = {}
    for _, node in nodes:
        if isinstance(node, Mapping):
            for text in _of(node):
                if text and len(text) <= LONGEST:
                    found[text] = None
    return list(found)[:MOST]


def _of(node: Mapping[str, Any]) -> Iterator[str]:
    if isinstance(node.get("pattern"), str):
        yield sample(node["pattern"]) or ""
    if isinstance(node.get("format"), str):
        yield FORMATS.get(node["format"], "")
    if isinstance(node.get("patternProperties"), Mapping):
        for pattern in node["patternProperties"]:
            yield sample(pattern) or ""


def sample(pattern: str) -> str | None:
    """A short text that a regular expression matches, or None for one that this reader does not understand."""
    reader = _Reader(pattern)
    try:
        text = reader.alternatives(0)
    except (IndexError, ValueError):
        return None
    return text if reader.at == len(pattern) else None


@dataclass
class _Reader:
    """Reads a pattern from left to right, writing the shortest text of each part. Raises IndexError or ValueError."""

    pattern: str
    at: int = 0

    def peek(self) -> str:
        return self.pattern[self.at] if self.at < len(self.pattern) else ""

    def alternatives(self, depth: int) -> str:
        if depth > 50:
            raise ValueError("nested too deep")
        found = [self.sequence(depth)]
        while self.peek() == "|":
            self.at += 1
            found.append(self.sequence(depth))
        return min(found, key=len)

    def sequence(self, depth: int) -> str:
        text = ""
        while self.peek() not in ("", "|", ")"):
            unit = self.unit(depth)
            text += unit * self.repeats()
            if len(text) > 4 * LONGEST:
                raise ValueError("too long")
        return text

    def unit(self, depth: int) -> str:
        char = self.pattern[self.at]
        self.at += 1
        if char in "^$":
            return ""
        if char == ".":
            return "a"
        if char == "\\":
            return self.escape()
        if char == "[":
            return self.choice()
        if char != "(":
            return char
        if self.peek() == "?":
            self.at = self.pattern.index(":", self.at) + 1
        text = self.alternatives(depth + 1)
        if self.pattern[self.at] != ")":
            raise ValueError("unclosed group")
        self.at += 1
        return text

    def escape(self) -> str:
        char = self.pattern[self.at]
        self.at += 1
        if char in "bB":
            return ""
        if char in "xu":
            width = 2 if char == "x" else 4
            self.at += width
            return chr(int(self.pattern[self.at - width : self.at], 16))
        if char in "pPkc" or char.isdigit():
            raise ValueError("not understood")
        return _CLASSES.get(char) or _ESCAPES.get(char) or char

    def choice(self) -> str:
        """The first member of a class, or something outside a negated one."""
        negated = self.peek() == "^"
        self.at += negated
        members: list[str] = []
        while self.peek() != "]" or not members:
            char = self.pattern[self.at]
            self.at += 1
            members.append(self.escape() if char == "\\" else char)
            if self.peek() == "-" and self.pattern[self.at + 1] != "]":
                self.at += 2
                if self.pattern[self.at - 1] == "\\":
                    self.escape()
        self.at += 1
        if not negated:
            return members[0]
        return next(char for char in "a0-_ .xzAZ" if char not in members)

    def repeats(self) -> int:
        char = self.peek()
        if char in ("*", "?", "+"):
            self.at += 1
            least = 1 if char == "+" else 0
        elif char == "{" and self.pattern[self.at + 1].isdigit():
            end = self.pattern.index("}", self.at)
            least = int(self.pattern[self.at + 1 : end].split(",")[0])
            self.at = end + 1
        else:
            return 1
        if self.peek() == "?":
            self.at += 1
        return min(least, 4 * LONGEST)
