"""What the formats share: the tags around calls and reasoning, and the grammar of a step made of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from qwen_agent_kit.dialects.base import Definition, Thinking, ToolChoice
from qwen_agent_kit.dialects.lark import Rules, step

__all__ = ["Tagged"]


@dataclass(frozen=True, slots=True)
class Tagged(ABC):
    """Calls in ``<tool_call>``, reasoning in ``<think>``."""

    name: str
    call_body: Literal["json", "xml"]
    call_open: str = "<tool_call>"
    call_close: str = "</tool_call>"
    think_open: str = "<think>"
    think_close: str = "</think>"

    several: ClassVar[bool] = True
    """Whether a turn may hold several calls at all."""

    gap: ClassVar[str] = "\n"
    """What stands between a tag and the call's text."""

    @abstractmethod
    def call_rule(self, rules: Rules, name: str, function: Mapping[str, Any]) -> str:
        """The grammar of one call's text, tags excluded."""

    @abstractmethod
    def tools_prompt(self, tools: Sequence[Definition]) -> str:
        """The system text that tells of the tools; see ``Dialect``."""

    @abstractmethod
    def render_call(self, name: str, arguments: Mapping[str, Any]) -> str:
        """One call, tags included; see ``Dialect``."""

    def render_result(self, text: str) -> str:
        return f"<tool_response>\n{text}\n</tool_response>"

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
        """One step; see ``Dialect.grammar``."""
        return step(
            self,
            tools,
            tool_choice=tool_choice,
            output_schema=output_schema,
            thinking=thinking,
            parallel=parallel and self.several,
            control=control,
            call=self.call_rule,
            gap=self.gap,
        )
