"""Messages in the form that chat templates take: plain dicts, nothing but JSON data."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from operator import is_
from typing import Any

from qwen_agent_kit.dialects import Dialect
from qwen_agent_kit.errors import PromptError
from qwen_agent_kit.messages import Media, Message, Part, Text, TokenLog, ToolCall, text_of

__all__ = ["Form", "Former", "History", "plain"]

Form = dict[str, Any]
MAX_KEPT = 8
MAX_DEPTH = 200


@dataclass(slots=True)
class History:
    """A conversation as a template gets it. Never changed once it is kept.

    Args:
        messages: What it was made from.
        forms: One dict for each turn that the template writes.
        assistants: The messages behind the assistant turns among them, in order.
        logs: What those were sampled as.
        media: The media parts of all turns, in order.
    """

    messages: list[Message] = field(default_factory=list)
    forms: list[Form] = field(default_factory=list)
    assistants: list[Message] = field(default_factory=list)
    logs: list[TokenLog | None] = field(default_factory=list)
    media: list[Media] = field(default_factory=list)

    def leads_to(self, messages: Sequence[Message]) -> bool:
        """Whether ``messages`` go on from these: the same objects, since equal ones may print differently."""
        return len(self.messages) <= len(messages) and all(map(is_, self.messages, messages))

    def copy(self) -> History:
        """One that can be added to."""
        return History([*self.messages], [*self.forms], [*self.assistants], [*self.logs], [*self.media])


class Former:
    """Turns messages into dicts, going on from the conversations it formed last. Thread-safe.

    Args:
        dialect: Writes calls and results where the template cannot.
        native: Whether the template renders tools, calls and results by itself.
        put: Marks a control token of the dialect's own text.
        check: Called with every text that content holds.
    """

    def __init__(
        self, dialect: Dialect, *, native: bool, put: Callable[[str], str], check: Callable[[str], None]
    ) -> None:
        self._dialect = dialect
        self._native = native
        self._put = put
        self._check = check
        self._kept: tuple[History, ...] = ()  # replaced whole, so no lock: a lost entry costs time only

    def form(self, messages: Sequence[Message]) -> History:
        """The turns that the template shall write.

        Raises:
            PromptError: For data that is not JSON.
        """
        known = [history for history in self._kept if history.leads_to(messages)]
        near = max(known, key=lambda history: len(history.messages), default=None)
        history = near.copy() if near is not None else History()
        for message in messages[len(history.messages) :]:
            self._add(history, message)
        self._kept = (history, *(kept for kept in self._kept if kept is not near))[:MAX_KEPT]
        return history

    def with_tools(self, forms: list[Form], tools: Sequence[Mapping[str, Any]]) -> list[Form]:
        """The turns with the tools as system text, for a template that has no place for tools."""
        told = self._dialect.tools_prompt(tools) if tools else ""
        if not told:
            return forms
        self._check(told)
        system = forms[0]["content"] if forms[0]["role"] == "system" else None
        if isinstance(system, str):
            return [{"role": "system", "content": f"{system}\n\n{told}" if system else told}, *forms[1:]]
        return [{"role": "system", "content": told}, *forms]

    def _add(self, history: History, message: Message) -> None:
        made, media = self._make(message)
        form: Form = plain(made, self._check)
        if message.role == "assistant":
            history.assistants.append(message)
            history.logs.append(message.log)
            if message.tool_calls and not self._native:
                # The dialect's delimiters are marked, which content may not be: so after the check.
                calls = "".join(map(self._call, message.tool_calls))
                form["content"] = _joined(form["content"], calls)
        before = history.messages[-1].role if history.messages else ""
        if message.role == before == "tool" and not self._native:  # results that follow each other: one user turn
            history.forms[-1] = {
                "role": "user",
                "content": _joined(history.forms[-1]["content"], "\n", form["content"]),
            }
        else:
            history.forms.append(form)
        history.messages.append(message)
        history.media.extend(media)

    def _make(self, message: Message) -> tuple[Form, tuple[Media, ...]]:
        if message.role == "tool":
            return self._tool(message)
        form: Form = {"role": message.role, "content": _content(message.parts)}
        if message.role == "assistant":
            if reasoning := message.reasoning:
                form |= {"reasoning_content": reasoning, "thinking": reasoning}
            if message.tool_calls and self._native:
                form["tool_calls"] = [_call(call) for call in message.tool_calls]
        return form, message.media

    def _tool(self, message: Message) -> tuple[Form, tuple[Media, ...]]:
        result = message.tool_result
        parts = result.parts if result is not None else message.parts
        media = tuple(part for part in parts if isinstance(part, Media))
        if not self._native:
            told: Part = Text(self._dialect.render_result(text_of(parts)))
            return {"role": "user", "content": _content((told, *media))}, media
        form: Form = {"role": "tool", "content": _content(parts)}
        if result is not None:
            form |= {"name": result.name, "tool_call_id": result.call_id}
        return form, media

    def _call(self, call: ToolCall) -> str:
        """A call as the dialect writes it, with the delimiters as control tokens where the vocabulary has them."""
        dialect, arguments = self._dialect, plain(dict(call.arguments), self._check)
        self._check(call.name)
        text = dialect.render_call(call.name, arguments)
        opens, closes = dialect.call_open, dialect.call_close
        if text.startswith(opens) and text.endswith(closes):
            return self._put(opens) + text[len(opens) : len(text) - len(closes)] + self._put(closes)
        return text


def _content(parts: Sequence[Part]) -> str | list[Form]:
    """Text as one string; with media among it, a list in order."""
    if not any(isinstance(part, Media) for part in parts):
        return text_of(parts)
    return [
        {"type": "text", "text": part.text} if isinstance(part, Text) else {"type": part.kind}
        for part in parts
        if isinstance(part, Text | Media)
    ]


def _joined(*contents: str | list[Form]) -> str | list[Form]:
    if all(isinstance(content, str) for content in contents):
        return "".join(map(str, contents))
    lists = ([{"type": "text", "text": x}] if isinstance(x, str) else x for x in contents)
    return [item for items in lists for item in items]


def _call(call: ToolCall) -> Form:
    return {
        "type": "function",
        "id": call.id,
        "function": {"name": call.name, "arguments": dict(call.arguments)},
    }


def plain(value: Any, check: Callable[[str], None], depth: int = 0) -> Any:
    """JSON data rebuilt from plain types, so that a template meets no object with methods of its own.

    Raises:
        PromptError: For anything else, or for data nested deeper than 200 levels.
    """
    if isinstance(value, str):
        check(value)
        return str(value)
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value)
    if depth > MAX_DEPTH:
        raise PromptError(f"a tool definition or call is nested deeper than {MAX_DEPTH} levels")
    if isinstance(value, Mapping):
        return {_key(key, check): plain(item, check, depth + 1) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item, check, depth + 1) for item in value]
    raise _no_json(value)


def _key(key: Any, check: Callable[[str], None]) -> Any:
    if key is None or isinstance(key, str | int | float):
        return plain(key, check)
    raise _no_json(key)


def _no_json(value: Any) -> PromptError:
    return PromptError(f"a tool definition or call holds a {type(value).__name__}; allowed: JSON data")
