"""What every dialect offers: its delimiters, its texts and its grammar."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol, runtime_checkable

__all__ = ["Definition", "Dialect", "Thinking", "ToolChoice"]

Definition = Mapping[str, Any]
"""A tool as the OpenAI form writes it: ``{"type": "function", "function": {"name", "description", "parameters"}}``."""

Thinking = Literal["open", "maybe", "no"]
"""Whether the prompt has opened a reasoning block, the model may open one, or there is none."""

ToolChoice = str
"""``auto``, ``required``, ``none`` or a tool's name."""


@runtime_checkable
class Dialect(Protocol):
    """A format of tool calls.

    Attributes:
        name: ``hermes``, ``xml`` or ``generic``.
        call_open: What begins a call. A control token where the vocabulary has it, else text.
        call_close: What ends it.
        think_open: What begins reasoning.
        think_close: What ends it.
        call_body: How the text between ``call_open`` and ``call_close`` is read.
    """

    @property
    def name(self) -> str: ...

    @property
    def call_open(self) -> str: ...

    @property
    def call_close(self) -> str: ...

    @property
    def think_open(self) -> str: ...

    @property
    def think_close(self) -> str: ...

    @property
    def call_body(self) -> Literal["json", "xml"]: ...

    def tools_prompt(self, tools: Sequence[Definition]) -> str:
        """The system text that tells of the tools, for templates that have no place for them; "" for no tools."""

    def render_call(self, name: str, arguments: Mapping[str, Any]) -> str:
        """One call as an assistant turn holds it, delimiters included."""

    def render_result(self, text: str) -> str:
        """A tool's result as the user turn after the call holds it."""

    def grammar(
        self,
        tools: Sequence[Definition],
        *,
        tool_choice: ToolChoice = "auto",
        output_schema: Mapping[str, Any] | None = None,
        thinking: Thinking = "no",
        parallel: bool = True,
        control: Mapping[str, int],
    ) -> str | None:
        """The llguidance grammar of one step, ``think? (tool_call+ | final object | text)``.

        Args:
            tools: The armed tools.
            tool_choice: ``auto``, ``required``, ``none`` or the name of the one tool that is to be called.
            output_schema: The JSON schema of the final text; with tools, either it or calls come.
            thinking: Whether a reasoning block is open, possible or absent.
            parallel: Whether one turn may hold several calls.
            control: The ids of those tags that are single tokens of this vocabulary; the others are written as text.

        Returns:
            Lark text for ``engine.grammar``, or None where nothing is to be constrained.

        Raises:
            SchemaError: For a schema that cannot be enforced; ``pointer`` starts at that schema's root.
            UsageError: For a tool choice that names no armed tool, or two tools of one name.
        """
