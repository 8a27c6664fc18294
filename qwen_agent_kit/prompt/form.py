"""Messages in the form that chat templates take: plain dicts, nothing but JSON data."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from qwen_agent_kit.dialects import Dialect
from qwen_agent_kit.errors import PromptError
from qwen_agent_kit.messages import Media, Message, Part, Text, ToolCall, text_of

__all__ = ["Form", "Formed", "Former", "plain"]

Form = dict[str, Any]
MAX_KEPT = 2**14  # messages
MAX_DEPTH = 200


class Formed(NamedTuple):
    """A message, the dict a template gets for it, and the media it holds, in the order of the dict."""

    message: Message
    form: Form
    media: tuple[Media, ...]


class Former:
    """Turns messages into dicts and keeps them, so that a long history costs one look-up a message.

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
        self._kept: dict[int, Formed] = {}

    def form(self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]]) -> list[Formed]:
        """One ``Formed`` for each turn that the template shall write.

        Raises:
            PromptError: For data that is not JSON.
        """
        formed = [self._one(message) for message in messages]
        return formed if self._native else self._by_dialect(formed, tools)

    def _one(self, message: Message) -> Formed:
        found = self._kept.get(id(message))  # the entry holds the message, so its id cannot be another's
        if found is None:
            form, media = self._make(message)
            found = Formed(message, plain(form, self._check), media)
            if not self._native and message.tool_calls:
                # The dialect's own delimiters are marked, which content may not be: after the check.
                found.form["content"] += "".join(map(self._call, message.tool_calls))
            if len(self._kept) >= MAX_KEPT:
                self._kept.clear()
            self._kept[id(message)] = found
        return found

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
            return {"role": "user", "content": self._dialect.render_result(text_of(parts))}, media
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

    def _by_dialect(self, formed: list[Formed], tools: Sequence[Mapping[str, Any]]) -> list[Formed]:
        """The tools as system text, and results that follow each other as one user turn."""
        turns: list[Formed] = []
        for one in formed:
            if one.message.role == "tool" and turns and turns[-1].message.role == "tool":
                before = turns[-1]
                content = f"{before.form['content']}\n{one.form['content']}"
                turns[-1] = Formed(before.message, {**before.form, "content": content}, before.media + one.media)
            else:
                turns.append(one)
        told = self._dialect.tools_prompt(tools) if tools else ""
        if not told:
            return turns
        self._check(told)
        if turns and turns[0].form["role"] == "system" and isinstance(turns[0].form["content"], str):
            system = turns[0].form["content"]
            form = {"role": "system", "content": f"{system}\n\n{told}" if system else told}
            return [Formed(turns[0].message, form, turns[0].media), *turns[1:]]
        return [Formed(Message("system", (Text(told),)), {"role": "system", "content": told}, ()), *turns]


def _content(parts: Sequence[Part]) -> str | list[Form]:
    """Text as one string; with media among it, a list in order."""
    if not any(isinstance(part, Media) for part in parts):
        return text_of(parts)
    return [
        {"type": "text", "text": part.text} if isinstance(part, Text) else {"type": part.kind}
        for part in parts
        if isinstance(part, Text | Media)
    ]


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
        return {plain(key, check, depth + 1): plain(item, check, depth + 1) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item, check, depth + 1) for item in value]
    raise PromptError(f"a tool definition or call holds a {type(value).__name__}; allowed: JSON data")
