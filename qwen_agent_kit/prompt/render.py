"""The renderer: a conversation becomes ids, at the cost of what is new in it.

One rendering: messages -> dicts (kept per message) -> the template's text with marks -> the part that the last
renderings did not have -> ids. Text between two control tokens is encoded whole; assistant turns that this tokenizer's
model sampled are written as the ids they were sampled as.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qwen_agent_kit.backends import MediaSpan
from qwen_agent_kit.dialects import Dialect
from qwen_agent_kit.errors import PromptError
from qwen_agent_kit.messages import Media, Message
from qwen_agent_kit.prompt.form import Form, Former, plain
from qwen_agent_kit.prompt.template import ChatTemplate, Marks
from qwen_agent_kit.prompt.tokens import PlainTokenizer
from qwen_agent_kit.prompt.trail import PLACEHOLDERS, Script, Trails, Widen, Writer
from qwen_agent_kit.prompt.turns import Turns, probe

__all__ = ["PromptRenderer", "Rendered", "Widen"]


@dataclass(frozen=True, slots=True)
class Rendered:
    """A prompt.

    Args:
        ids: The prompt's token ids.
        media: Where media stand among them.
        starts_in_reasoning: Whether the prompt ends inside an open reasoning block.
        template_ms: How long the template's own text took.
        prefix_break_hint: Why, and at which assistant turn, these ids do not go on from those of the step before;
            None where they do, as far as rendering knows.
    """

    ids: list[int]
    media: tuple[MediaSpan, ...]
    starts_in_reasoning: bool
    template_ms: float
    prefix_break_hint: str | None


class _ForgedError(Exception):
    """Content holds the nonce (one chance in 10**15, or someone who reads this process's memory)."""


class PromptRenderer:
    """Renders conversations for one model. Thread-safe.

    Args:
        tokenizer_json: The content of ``tokenizer.json``.
        template: The model's chat template.
        dialect: How calls are written where the template has no tools, and which tags open and close reasoning.
        special: ``bos_token`` and the like, visible to the template.
        widen: Turns a media part into ``(length, digest, item)``; without it, media are refused.
        placeholders: Control tokens that stand for media in the template, besides the known ones.

    Attributes:
        control: The text of each control token and its id.
        fingerprint: Of the tokenizer, as ``TokenLog.fingerprint`` has it.
        native_tools: Whether the template renders tools itself.

    Raises:
        ModelError: For a tokenizer or template that cannot be read.
        SecurityError: For a template that leaves its bounds.
    """

    def __init__(
        self,
        tokenizer_json: str | bytes,
        template: str,
        *,
        dialect: Dialect,
        special: Mapping[str, Any] | None = None,
        widen: Widen | None = None,
        placeholders: frozenset[str] = frozenset(),
    ) -> None:
        self._tokens = PlainTokenizer(tokenizer_json)
        self.control: Mapping[str, int] = self._tokens.control
        self.fingerprint: str = self._tokens.fingerprint
        self._source, self._special = template, dict(special or {})
        self._dialect, self._widen = dialect, widen
        self._placeholders = PLACEHOLDERS | placeholders
        self._state = self._fresh()
        self.native_tools = self._state.turns.native_tools

    def _fresh(self) -> _State:
        """Everything that hangs on the nonce."""
        marks = Marks(self.control)
        template = ChatTemplate(self._source, marks, self._special)
        turns = probe(template, marks)

        def check(text: str) -> None:
            if marks.nonce in text:
                raise _ForgedError

        former = Former(self._dialect, native=turns.native_tools, put=marks.put, check=check)
        think = (self._dialect.think_open, self._dialect.think_close)
        writer = Writer(self._tokens, marks, turns, think, self._widen, self._placeholders)
        return _State(marks, template, turns, check, former, writer, Trails())

    def least(self, message: Message) -> int:
        """A lower bound on the ids that the text of a message becomes, without the cost of encoding it."""
        result = message.tool_result
        return self._tokens.least((message.text if result is None else result.text).strip())

    def render(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] = (),
        thinking: bool | int | None = None,
        add_generation_prompt: bool = True,
        output_schema: Mapping[str, Any] | None = None,
    ) -> Rendered:
        """The ids of a conversation.

        Args:
            messages: The whole history.
            tools: Definitions in the OpenAI form.
            thinking: Passed to the template as ``enable_thinking`` where it is not None; a budget counts as True.
            add_generation_prompt: Whether an assistant's turn is begun at the end.
            output_schema: Held by the grammar; no template says anything about it.

        Raises:
            PromptError: For messages that the template or the tokenizer cannot carry.
            SecurityError: Where the template leaves its bounds.
        """
        del output_schema  # part of the renderer's contract: a dialect may come to word it
        if not messages:
            raise PromptError("a prompt needs at least one message; found none")
        for _ in range(3):
            try:
                return self._render(self._state, messages, tools, thinking, add_generation_prompt)
            except _ForgedError:
                self._state = self._fresh()
        raise PromptError("the messages hold each nonce that was drawn")  # 1 in 10**45, else it is not random

    def _render(
        self,
        state: _State,
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, Any]],
        thinking: bool | int | None,
        prompted: bool,
    ) -> Rendered:
        history = state.former.form(messages)
        forms = history.forms
        variables: dict[str, Any] = {"tools": None, "add_generation_prompt": prompted}
        if state.turns.native_tools:
            variables["tools"] = [plain(tool, state.check) for tool in tools] or None
        else:
            forms = state.former.with_tools(forms, tools)
        if thinking is not None:
            variables["enable_thinking"] = thinking is not False
        if history.media and self._widen is None:
            raise _unwelcome(history.media, "no backend is there to take it")
        text, spent = self._text(state, forms, variables, history.media)
        prompt = next((p for p in state.turns.prompts if text.endswith(p)), "") if prompted else ""
        trail = state.writer.write(Script(text, history.assistants, history.logs, history.media, prompt), state.trails)
        return Rendered(list(trail.ids), tuple(trail.spans), self._reasoning(state, prompt), spent, trail.hint)

    def _text(
        self, state: _State, forms: Sequence[Form], variables: Mapping[str, Any], media: Sequence[Media]
    ) -> tuple[str, float]:
        try:
            return state.template.render(forms, **variables)
        except PromptError as error:
            if media and error.code != "template_refusal":
                raise _unwelcome(media, "the model's chat template has no place for it") from error
            raise

    def _reasoning(self, state: _State, prompt: str) -> bool:
        written = state.marks.take(prompt)
        return written.rfind(self._dialect.think_open) > written.rfind(self._dialect.think_close)


@dataclass(frozen=True, slots=True)
class _State:
    """What was made with one nonce."""

    marks: Marks
    template: ChatTemplate
    turns: Turns
    check: Callable[[str], None]
    former: Former
    writer: Writer
    trails: Trails


def _unwelcome(media: Sequence[Media], why: str) -> PromptError:
    kinds = ", ".join(sorted({repr(part.kind) for part in media}))
    return PromptError(
        f"the messages hold {kinds} and {why}", hint="use a model that takes this kind, or leave the parts out"
    )
