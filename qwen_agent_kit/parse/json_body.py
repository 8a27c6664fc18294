"""Hermes calls: ``{"name": "f", "arguments": {...}}``, read while it is written.

A scanner follows strings and brackets only as far as it must to find the name, to pass the argument text on and to know
which tags are inside a string; whether the whole is JSON is decided once, at the end, by one strict parse.
"""

from __future__ import annotations

import json
import re
from typing import Any

from qwen_agent_kit.parse.body import Body, echo, held, leading, strict_json

__all__ = ["JsonReader"]

FORM = 'write {"name": "...", "arguments": {...}}'
_IN_STRING = re.compile(r'["\\\x00-\x1f]')
_OUTSIDE = re.compile(r'["{}\[\],:<]')
_ARGUMENTS = ("arguments", "parameters")


class JsonReader:
    """Reads one call's JSON object.

    Args:
        tags: The tags that count in text: none where they are control tokens.
    """

    def __init__(self, tags: tuple[str, ...]) -> None:
        self.name = ""
        self._tags = tags
        self._parts: list[str] = []  # the body so far, without what is held
        self._held = ""
        self._depth = 0
        self._string = False
        self._escape = False
        self._closed = False  # the outer object ended
        self._broken = False  # no JSON: all that counts now is the tag that ends it
        self._slot = "key"  # inside the outer object: key, value or between
        self._key = ""
        self._word: list[str] = []  # a string directly inside the outer object, quotes included
        self._passing = False  # inside the arguments' object
        self._passed = False
        self._out: list[str] = []

    @property
    def in_value(self) -> bool:
        return self._string and not self._broken

    @property
    def complete(self) -> bool:
        return self._closed and not self._broken

    def take(self) -> str:
        if not self.name:
            return ""
        text = "".join(self._out)
        self._out.clear()
        return text

    def literal(self, text: str) -> None:
        tags, self._tags = self._tags, ()
        self.feed(text)
        self._tags = tags

    def feed(self, text: str) -> tuple[str | None, str]:
        text = self._held + text
        self._held = ""
        at = 0
        while at < len(text):
            if self._broken:
                return self._skip(text, at)
            start, within = at, self._string
            if within:
                at = self._in_string(text, at)
            elif self._depth:
                at = self._in_object(text, at)
            else:
                at = self._around(text, at)
            if at >= 0:
                self._read(text[start:at], within)
                continue
            at = -1 - at  # a "<" stands here
            self._read(text[start:at], within)
            tag = leading(text[at:], self._tags)
            if tag is not None:
                return tag, text[at + len(tag) :]
            if any(tag.startswith(text[at:]) for tag in self._tags):
                self._held = text[at:]
                return None, ""
            self._broken = True
        return None, ""

    def _read(self, text: str, within: bool) -> None:
        """Keep what the scanner went over."""
        self._parts.append(text)
        if within and self._depth == 1 and not self._passing:
            self._word.append(text)
            if not self._string:
                self._word_ends()
        elif self._passing:
            self._out.append(text)
            if self._depth == 1:
                self._passing = False

    def _in_string(self, text: str, at: int) -> int:
        if self._escape:
            self._escape = False
            return at + 1
        match = _IN_STRING.search(text, at)
        if match is None:
            return len(text)
        if match.group() == '"':
            self._string = False
        elif match.group() == "\\":
            self._escape = True
        else:  # a bare control character: the string was never closed
            self._broken = True
        return match.end()

    def _in_object(self, text: str, at: int) -> int:
        match = _OUTSIDE.search(text, at)
        if match is None:
            return len(text)
        mark = match.group()
        if mark == "<":
            return -1 - match.start()
        if mark in "{[":
            if self._depth == 1 and mark == "{" and match.start() > at:
                return match.start()  # so that the passage begins with the bracket
            self._passes(mark)
            self._depth += 1
        elif mark in "}]":
            self._depth -= 1
            self._closed = self._depth == 0
        elif mark == '"':
            self._string = True
            if self._depth == 1:
                self._word = ['"']
        elif self._depth == 1:
            self._slot = "value" if mark == ":" else "key"
        return match.end()

    def _passes(self, mark: str) -> None:
        """A value opens; where it is the arguments' object, its text is passed on."""
        if self._depth == 1 and self._slot == "value" and mark == "{" and self._key in _ARGUMENTS and not self._passed:
            self._passing = self._passed = True

    def _around(self, text: str, at: int) -> int:
        """Before and after the object only space may stand."""
        while at < len(text) and text[at].isspace():
            at += 1
        if at == len(text):
            return at
        if text[at] == "<":
            return -1 - at
        if text[at] == "{" and not self._closed:
            self._depth = 1
            return at + 1
        self._broken = True
        return at

    def _word_ends(self) -> None:
        word = "".join(self._word)
        if self._slot == "key":
            self._key = _decoded(word)
            self._slot = "between"
        elif self._slot == "value" and self._key == "name" and not self.name:
            self.name = _decoded(word)

    def _skip(self, text: str, at: int) -> tuple[str | None, str]:
        found = [(text.find(tag, at), tag) for tag in self._tags if tag in text[at:]]
        if found:
            place, tag = min(found)
            self._parts.append(text[at:place])
            return tag, text[place + len(tag) :]
        keep = held(text[at:], self._tags)
        self._parts.append(text[at : len(text) - keep])
        self._held = text[len(text) - keep :]
        return None, ""

    def result(self) -> Body:
        text = "".join(self._parts)
        try:
            name, arguments = _call(strict_json(text))
        except ValueError as error:
            return Body(self.name, {}, f"the tool call cannot be read: {error}; found {echo(text)}; {FORM}")
        if not self._passed:
            self._out.append(json.dumps(arguments, ensure_ascii=False))
        self.name = name
        return Body(name, arguments)


def _decoded(word: str) -> str:
    try:
        return str(json.loads(word))
    except ValueError:
        return ""  # the strict parse at the end says what is wrong


def _call(value: Any) -> tuple[str, dict[str, Any]]:
    """The name and arguments of a call object.

    Raises:
        ValueError: Says what is wrong, for the model.
    """
    if not isinstance(value, dict):
        raise ValueError("it is not a JSON object")
    name = value.get("name")
    if not isinstance(name, str) or not name:
        raise ValueError("`name` is missing or not a string")
    given = [key for key in _ARGUMENTS if key in value]
    if len(given) > 1:
        raise ValueError("both `arguments` and `parameters` are given")
    arguments = value[given[0]] if given else {}
    if isinstance(arguments, str):
        arguments = strict_json(arguments)
    if arguments is None:
        arguments = {}
    if not isinstance(arguments, dict):
        raise ValueError(f"`{given[0]}` is not an object")
    return name, arguments
