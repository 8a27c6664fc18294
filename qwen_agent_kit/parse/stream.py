"""Pieces of a model's text become deltas: text, reasoning and tool calls.

Where the tags of calls and reasoning are control tokens, only pieces that *are* those tokens count, so no text can
forge one. For other vocabularies (SmolLM2) the tags are recognised in the text; prose that quotes ``<tool_call>`` then
reads as a call. Whatever way the text is cut into pieces, the deltas say the same.

Held back is only what may be the beginning of a tag, and space, which is not content where a tag follows it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from qwen_agent_kit.backends import CallDelta, CallDone, Delta, Piece
from qwen_agent_kit.events import ReasoningDelta, TextDelta
from qwen_agent_kit.messages import ToolCall
from qwen_agent_kit.parse.body import BodyReader, held
from qwen_agent_kit.parse.json_body import JsonReader
from qwen_agent_kit.parse.xml_body import XmlReader

if TYPE_CHECKING:
    from qwen_agent_kit.dialects import Dialect

__all__ = ["StreamParser"]


class StreamParser:
    """Reads one assistant turn.

    Args:
        dialect: Its tags, and how the inside of a call is written.
        tools: The definitions; XML values are typed by their schemas.
        starts_in_reasoning: Whether the prompt opened a reasoning block.
        control_tags: The tags that are control tokens of this vocabulary. They count only in pieces marked as control;
            the dialect's other tags count in text.
        parse_calls: Where False, calls are left out of the deltas (``tool_choice="none"``). Where None, there is
            nothing to call, and the tags of calls are text.
        new_id: Makes the id of a call.
    """

    def __init__(
        self,
        dialect: Dialect,
        *,
        tools: Sequence[Mapping[str, Any]] = (),
        starts_in_reasoning: bool = False,
        control_tags: frozenset[str] = frozenset(),
        parse_calls: bool | None = True,
        new_id: Callable[[], str],
    ) -> None:
        self._dialect = dialect
        self._tools = tools
        self._control = control_tags
        self._parse_calls = parse_calls
        self._new_id = new_id
        not_tags = control_tags if parse_calls is not None else control_tags | {dialect.call_open}
        self._marks = {(r, f): _Marks(dialect, not_tags, r, f) for r in (False, True) for f in (False, True)}
        self._call_tags = tuple(tag for tag in (dialect.call_open, dialect.call_close) if tag not in control_tags)
        self._reasoning = starts_in_reasoning
        self._fresh = True  # nothing but space was said in this block
        self._skip = starts_in_reasoning  # space here is no content
        self._space: list[str] = []  # space that is content only if content follows it
        self._held = ""  # what may be the beginning of a tag
        self._reader: BodyReader | None = None
        self._raw: list[str] = []  # the text of the open call
        self._index = -1
        self._named = False

    def feed(self, piece: Piece) -> list[Delta]:
        """What became certain with this piece."""
        text = piece.text
        out: list[Delta] = []
        if piece.control and text in self._control:
            self._token(text, out)
            return out
        while text:
            text = self._outside(text, out) if self._reader is None else self._inside(self._reader, text, out)
        return out

    def finish(self, reason: str) -> tuple[list[Delta], str]:
        """The turn ended.

        Args:
            reason: As in ``Finish.reason``. A call that lacks only its closing tag counts where the model stopped by
                itself, and is cut off where it was stopped.

        Returns:
            The last deltas, and the text of a call that was cut off, "" where none was.
        """
        out: list[Delta] = []
        if self._reader is None:
            if not self._reasoning and self._space and not self._held:
                self._held = self._space.pop()  # space at the very end of an answer belongs to it
            self._say(self._held, out)
            return out, ""
        if self._reader.complete and reason in ("stop", "tool_calls"):
            self._end_call(self._reader, out)
            return out, ""
        self._reader = None
        return out, "".join(self._raw)

    # --- outside of calls -----------------------------------------------------------------------------------------

    def _outside(self, text: str, out: list[Delta]) -> str:
        """Read text up to the first tag; what follows the tag is given back."""
        if self._held:
            text, self._held = self._held + text, ""
        if self._skip:
            text = text.lstrip()
            self._skip = not text
        marks = self._marks[self._reasoning, self._fresh]
        match = marks.pattern.search(text) if marks.first in text else None
        if match is None:
            keep = held(text, marks.tags) if marks.first in text else 0
            self._held = text[len(text) - keep :]
            text = text[: len(text) - keep]
            ready = text.rstrip()
            self._say(ready, out)
            if len(ready) < len(text):
                self._space.append(text[len(ready) :])
            return ""
        before = text[: match.start()].rstrip()
        self._say(before, out)
        if before and match.group() == self._dialect.think_open:
            return text[len(before) :]  # only at its beginning can a turn open reasoning by text
        self._tag(match.group())
        return text[match.end() :]

    def _say(self, text: str, out: list[Delta]) -> None:
        if text:
            if self._space:
                text = "".join(self._space) + text
                self._space.clear()
            self._fresh = False
            out.append(ReasoningDelta(text) if self._reasoning else TextDelta(text))

    def _tag(self, tag: str) -> None:
        self._space.clear()
        if tag == self._dialect.call_open:
            self._begin_call()
        else:
            self._reasoning = tag == self._dialect.think_open
            self._fresh = self._skip = True

    def _token(self, tag: str, out: list[Delta]) -> None:
        """A control token: a tag where one can stand, else text."""
        if self._reader is not None:
            self._token_inside(self._reader, tag, out)
            return
        counts = self._counts(tag)
        self._say(self._held if counts else self._held + tag, out)
        self._held = ""
        self._skip = False
        if counts:
            self._tag(tag)

    def _counts(self, tag: str) -> bool:
        if tag == self._dialect.think_open:
            return self._fresh or not self._reasoning
        if tag == self._dialect.think_close:
            return self._reasoning
        return tag == self._dialect.call_open and self._parse_calls is not None

    # --- inside of calls ------------------------------------------------------------------------------------------

    def _begin_call(self) -> None:
        self._index += 1
        self._named = self._reasoning = self._fresh = False
        self._raw = [self._dialect.call_open]
        if self._dialect.call_body == "xml":
            self._reader = XmlReader(self._call_tags, self._tools)
        else:
            self._reader = JsonReader(self._call_tags)

    def _inside(self, reader: BodyReader, text: str, out: list[Delta]) -> str:
        """Read on in a call; what follows its end is given back."""
        tag, rest = reader.feed(text)
        self._raw.append(text[: len(text) - len(rest)])
        if tag is None:
            self._call_delta(reader, out)
            return ""
        self._close(reader, tag, out)
        return rest

    def _token_inside(self, reader: BodyReader, tag: str, out: list[Delta]) -> None:
        if tag in (self._dialect.call_open, self._dialect.call_close) and not reader.in_value:
            self._close(reader, tag, out)
            return
        self._raw.append(tag)
        if reader.in_value:
            reader.literal(tag)
        else:
            reader.feed(tag)
        self._call_delta(reader, out)

    def _close(self, reader: BodyReader, tag: str, out: list[Delta]) -> None:
        self._end_call(reader, out)
        if tag == self._dialect.call_open:
            self._begin_call()

    def _call_delta(self, reader: BodyReader, out: list[Delta]) -> None:
        text = reader.take()
        if self._parse_calls and reader.name and (text or not self._named):
            out.append(CallDelta(self._index, None if self._named else reader.name, text))
            self._named = True

    def _end_call(self, reader: BodyReader, out: list[Delta]) -> None:
        body = reader.result()
        self._call_delta(reader, out)
        if self._parse_calls:
            call = ToolCall(self._new_id(), body.name, body.arguments, body.error)
            out.append(CallDone(self._index, call))
        self._reader = None
        self._raw.clear()
        self._skip = True


class _Marks:
    """The tags that count in text outside of calls, in one state of the parser."""

    def __init__(self, dialect: Dialect, not_in_text: frozenset[str], reasoning: bool, fresh: bool) -> None:
        wanted = [dialect.call_open]
        if reasoning:
            wanted.append(dialect.think_close)
        if fresh:
            wanted.append(dialect.think_open)
        self.tags = tuple(tag for tag in wanted if tag not in not_in_text)
        self.pattern = re.compile("|".join(map(re.escape, self.tags)) or r"(?!)")
        firsts = {tag[0] for tag in self.tags}
        self.first = firsts.pop() if len(firsts) == 1 else "" if firsts else "\0"
        """A character without which no tag begins in a text; "" where there is no such one character."""
