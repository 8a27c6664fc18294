"""XML calls: ``<function=f><parameter=key>value</parameter></function>``, read while it is written (Qwen3-Coder).

As in Qwen's own reader, a value may lack its closing tag: it then ends at a line that begins the next parameter of the
tool, or at a line ``</function>`` that the end of the call follows.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from qwen_agent_kit.parse.body import MAX_ECHO, Body, echo, held, leading
from qwen_agent_kit.parse.coerce import coerce, kinds

__all__ = ["XmlReader"]

FORM = "write <function=NAME> <parameter=KEY> value </parameter> </function>"
FUNCTION, FUNCTION_END = "<function=", "</function>"
PARAMETER, PARAMETER_END = "<parameter=", "</parameter>"
_FUNCTION = re.compile(r"<function=([^>\n]{1,256})>")
_PARAMETER = re.compile(r"<parameter=([^>\n]{1,256})>")
_LAST_LINE = re.compile(r"\n</function>\s{0,64}\Z")


class XmlReader:
    """Reads one call's function block.

    Args:
        tags: The tags that count in text: none where they are control tokens.
        tools: The definitions; they say which type each value has.
    """

    def __init__(self, tags: tuple[str, ...], tools: Sequence[Mapping[str, Any]]) -> None:
        self.name = ""
        self._tags = tags
        self._tools = tools
        self._schema: Mapping[str, Any] = {}
        self._ends, self._holds = _value_patterns(tags)
        self._state = self._before
        self._text = ""  # what is not read yet
        self._seen = ""  # how the body begins, for the echo of an error
        self._length = 0  # of what was fed
        self._key = ""
        self._admitted: frozenset[str] = frozenset()
        self._value: list[str] = []
        self._arguments: dict[str, Any] = {}
        self._problem = ""
        self._tag = ""
        self._out: list[str] = []

    @property
    def in_value(self) -> bool:
        return self._state == self._in_parameter and not _LAST_LINE.search(self._text)

    @property
    def complete(self) -> bool:
        return self._state == self._after and not self._problem

    def take(self) -> str:
        text = "".join(self._out)
        self._out.clear()
        return text

    def literal(self, text: str) -> None:
        self._feed_value(self._text + text)
        self._text = ""

    def feed(self, text: str) -> tuple[str | None, str]:
        if len(self._seen) < 2 * MAX_ECHO:
            self._seen = (self._seen + text)[: 2 * MAX_ECHO]
        self._length += len(text)
        self._text += text
        while self._text and self._state():
            pass
        if not self._tag:
            return None, ""
        self._seen = self._seen[: self._length - len(self._text)]
        return self._tag, self._text[len(self._tag) :]

    # Each state reads what it can from ``_text`` and says whether to go on.

    def _before(self) -> bool:
        if self._waits(FUNCTION):
            return False
        match = _FUNCTION.match(self._text)
        if match is None:
            return self._breaks(f"{FUNCTION}NAME> is missing")
        self.name = match.group(1).strip()
        self._schema = _parameters(self._tools, self.name)
        self._text = self._text[match.end() :]
        self._state = self._between
        return True

    def _between(self) -> bool:
        if self._waits(PARAMETER, FUNCTION_END):
            return False
        if self._text.startswith(FUNCTION_END):
            self._text = self._text[len(FUNCTION_END) :]
            self._state = self._after
            return True
        match = _PARAMETER.match(self._text)
        if match is None:
            return self._breaks(f"{PARAMETER}KEY> or {FUNCTION_END} is missing after {echo(self._key or self.name)}")
        self._text = self._text[match.end() :]
        self._opens(match.group(1).strip())
        return True

    def _after(self) -> bool:
        return not self._waits() and self._breaks(f"there is text after {FUNCTION_END}")

    def _waits(self, *expected: str) -> bool:
        """Whether nothing can be said yet, or a tag of the call stands here (it is kept for ``feed``)."""
        self._text = text = self._text.lstrip()
        self._tag = leading(text, self._tags) or ""
        if self._tag or not text:
            return True
        if any(word.startswith(text) for word in (*expected, *self._tags)):
            return True
        opened = text.startswith((FUNCTION, PARAMETER)) and leading(text, expected) is not None
        return opened and ">" not in text and "\n" not in text and len(text) < 300

    def _breaks(self, problem: str) -> bool:
        self._problem = problem
        self._state = self._skips
        return True

    def _skips(self) -> bool:
        """The call is malformed: all that counts now is the tag that ends it."""
        found = [(place, tag) for tag in self._tags if (place := self._text.find(tag)) >= 0]
        if found:
            place, self._tag = min(found)
            self._text = self._text[place:]
        else:
            self._text = self._text[len(self._text) - held(self._text, self._tags) :]
        return False

    def _opens(self, key: str) -> None:
        if key in self._arguments:
            self._breaks(f"the parameter {echo(key)} is given twice")
            return
        self._key = key
        properties = self._schema.get("properties")
        schema = properties.get(key) if isinstance(properties, Mapping) else None
        self._admitted = kinds(schema, self._schema)
        self._value.clear()
        self._out.append(f"{', ' if self._arguments else '{'}{_dumps(key)}: ")
        if self._streams:
            self._out.append('"')
        self._state = self._in_parameter

    @property
    def _streams(self) -> bool:
        """Whether the value is a string whatever it says, so that it can be passed on at once."""
        return self._admitted <= {"string"}

    def _in_parameter(self) -> bool:
        text = self._text
        for match in self._ends.finditer(text):
            key = match.group("next")
            if key is None or self._expects(key.strip()):
                self._feed_value(text[: match.start()])
                self._text = text[match.end() :]
                self._closes()
                return True
        place = len(text)
        if "<" in text or "\n" in text:
            hold = self._holds.search(text)
            place = hold.start() if hold else place
        self._feed_value(text[:place])
        self._text = text[place:]
        return False

    def _expects(self, key: str) -> bool:
        """Whether a line that opens this parameter inside a value ends the value, which lacks its closing tag."""
        if key == self._key or key in self._arguments:
            return False
        properties = self._schema.get("properties")
        return key in properties if isinstance(properties, Mapping) else True

    def _feed_value(self, text: str) -> None:
        if not self._value:
            if not text:
                return
            text = text.removeprefix("\n")
            self._value.append("")  # the one newline that may be dropped is past
        if not text:
            return
        self._value.append(text)
        if self._streams:
            self._out.append(_dumps(text)[1:-1])

    def _closes(self) -> None:
        value = coerce("".join(self._value), self._admitted)
        self._arguments[self._key] = value
        self._out.append('"' if self._streams else _dumps(value))
        self._state = self._between

    def result(self) -> Body:
        if self._state == self._in_parameter and _LAST_LINE.search(self._text):
            self._text = ""
            self._closes()
        problem = self._problem
        if not problem and self._state == self._before:
            problem = f"{FUNCTION}NAME> is missing"
        if not problem and self._state == self._in_parameter:
            problem = f"the parameter {echo(self._key)} is not closed"
        if problem:
            found = echo(self._seen)
            return Body(self.name, {}, f"the tool call cannot be read: {problem}; found {found}; {FORM}")
        self._out.append("}" if self._arguments else "{}")
        return Body(self.name, dict(self._arguments))


def _dumps(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _parameters(tools: Sequence[Mapping[str, Any]], name: str) -> Mapping[str, Any]:
    for tool in tools:
        function = tool.get("function", tool)
        if isinstance(function, Mapping) and function.get("name") == name:
            found = function.get("parameters")
            return found if isinstance(found, Mapping) else {}
    return {}


def _value_patterns(tags: tuple[str, ...]) -> tuple[re.Pattern[str], re.Pattern[str]]:
    """What ends a value, and what at the end of the text may be the beginning of such an end."""
    follows = "|".join(map(re.escape, tags)) or r"(?!)"
    ends = (
        r"\n?</parameter>|\n(?=[ \t]{0,64}<parameter=(?P<next>[^>\n]{1,256})>)"
        rf"|\n(?=</function>\s{{0,64}}(?:{follows}))"
    )
    parts = "|".join(_beginnings(tag) for tag in tags) or r"(?!)"
    # `holds` admits every beginning of what it admits, so that the way the text is cut makes no difference.
    holds = (
        rf"\n?(?:{_beginnings(PARAMETER_END)})?\Z"
        rf"|\n[ \t]{{0,64}}(?:{_beginnings(PARAMETER)}|<parameter=[^>\n]{{0,256}})?\Z"
        rf"|\n(?:{_beginnings(FUNCTION_END)}|</function>\s{{0,64}}(?:{parts})?)\Z"
    )
    return re.compile(ends), re.compile(holds)


def _beginnings(word: str) -> str:
    """A pattern for every non-empty beginning of ``word``, itself included."""
    pattern = ""
    for letter in reversed(word):
        pattern = f"{re.escape(letter)}(?:{pattern})?" if pattern else re.escape(letter)
    return pattern
