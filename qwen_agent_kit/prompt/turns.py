"""Where an assistant's turn stands in rendered text, and how the ids it was sampled as are put in its place.

What is asked of a template once, by rendering small conversations: what an assistant's turn begins and ends with, and
what the generation prompt is with thinking on, off and unsaid. Between two control tokens a rendering is plain text, so
a turn is found by the marks of the template alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from qwen_agent_kit.errors import ModelError, PromptError
from qwen_agent_kit.messages import Message
from qwen_agent_kit.prompt.budget import Budget
from qwen_agent_kit.prompt.template import SECONDS, ChatTemplate, Marks

__all__ = ["Splice", "Tags", "Turns", "probe"]

_TOOL = {
    "type": "function",
    "function": {
        "name": "probe_tool",
        "description": "d",
        "parameters": {"type": "object", "properties": {"x": {"type": "string"}}, "required": ["x"]},
    },
}
_USER = {"role": "user", "content": "u"}


@dataclass(frozen=True, slots=True)
class Splice:
    """How one assistant turn is written.

    Args:
        header: The marked text that stands before the sampled ids, or None where the turn is written as text.
        broken: Why the result does not repeat what the model saw and wrote, or None where it does.
    """

    header: str | None
    broken: str | None = None


@dataclass(frozen=True, slots=True)
class Tags:
    """Which reasoning tags sampled ids hold: whether they open it, whether they close it.

    Args:
        known: Whether the tags are control tokens of the vocabulary; where they are not, the other two are False.
    """

    opened: bool
    closed: bool
    known: bool


@dataclass(frozen=True, slots=True)
class Turns:
    """What a template's turns look like, as marked text.

    Args:
        opener: What each assistant turn, and only that, begins with; "" where the template has no such thing.
        end: The control token that ends a turn, "" where there is none.
        prompts: The generation prompts that the template has, longest first.
        native_tools: Whether tools change what is rendered.
    """

    opener: str
    end: str
    prompts: tuple[str, ...]
    native_tools: bool

    @property
    def spliceable(self) -> bool:
        """Whether turns can be found."""
        return bool(self.opener and self.end)

    def splice(self, message: Message, region: str, prompt: str, think: tuple[str, str], tags: Tags) -> Splice:
        """How to write a turn that was sampled.

        Args:
            message: It has a log of this tokenizer.
            region: The turn as the template writes it, from the opener to the end token.
            prompt: The generation prompt of this rendering, "" where it has none.
            think: The marked texts that open and close reasoning.
            tags: Which of these two the sampled ids hold.
        """
        opens, closes = think
        reasoning = message.reasoning.strip()
        if reasoning and opens not in region and (tags.known or reasoning not in region):
            return Splice(None, "the template dropped the reasoning")
        for header in self.prompts:
            started = header.rfind(opens) > header.rfind(closes)
            repeats = tags.opened and opens in header  # the model wrote this tag itself
            if not region.startswith(header) or repeats or (tags.closed and not tags.opened and not started):
                continue
            lost = header != prompt and opens in prompt and not tags.opened and not tags.closed
            return Splice(header, "the template left out the empty reasoning block" if lost else None)
        if tags.closed:
            return Splice(None, "the template dropped the reasoning")
        return Splice(None, "the template does not begin the turn as its generation prompt does")


def probe(template: ChatTemplate, marks: Marks) -> Turns:
    """Ask a template what its turns look like.

    Raises:
        ModelError: Where control tokens are not literals of the template.
        SecurityError: Where the template leaves its bounds.
    """
    budget = Budget(SECONDS)  # one for all questions

    def ask(messages: list[dict[str, Any]], **variables: Any) -> str | None:
        try:
            text = template.render(messages, budget=budget, **variables)[0]
        except PromptError:
            return None
        if token := marks.spelled(text):
            raise ModelError(
                f"the model's chat template puts the control token {token!r} together from pieces, so that text of a "
                "message could do the same",
                hint="use a template that writes its control tokens whole",
            )
        return text

    bare = ask([_USER])
    prompts: list[str] = []
    for variables in ({}, {"enable_thinking": True}, {"enable_thinking": False}):
        closed, opened = ask([_USER], **variables), ask([_USER], add_generation_prompt=True, **variables)
        if closed is not None and opened is not None and opened.startswith(closed) and opened != closed:
            prompts.append(opened[len(closed) :])
    opener = _opener(prompts, marks)
    end = ""
    turn = ask([_USER, {"role": "assistant", "content": "PROBE"}, _USER])
    if opener and turn is not None and "PROBE" in turn and turn.count(opener) == 1:
        after = marks.pattern.search(turn, turn.index("PROBE"))
        end = after[0] if after else ""
    with_tools = ask([_USER], tools=[_TOOL])
    native = with_tools is not None and (bare is None or "probe_tool" in with_tools)
    unique = sorted({*prompts, *_stems(prompts, marks)}, key=len, reverse=True)
    return Turns(opener if end else "", end, tuple(unique), native)


def _opener(prompts: list[str], marks: Marks) -> str:
    """The first control token of the generation prompt and the word after it, ``<|im_start|>assistant``."""
    if not prompts:
        return ""
    found = marks.pattern.match(prompts[0])
    if found is None:
        return ""
    rest = prompts[0][found.end() :]
    word = rest[: len(rest) - len(rest.lstrip())] + rest.lstrip().split("\n")[0].split(marks.nonce)[0].rstrip()
    opener = found[0] + word
    return opener if word and all(prompt.startswith(opener) for prompt in prompts) else ""


def _stems(prompts: list[str], marks: Marks) -> list[str]:
    """Each generation prompt up to its second control token: what stands before a model's own ``<think>``."""
    stems = []
    for prompt in prompts:
        first = marks.pattern.match(prompt)
        second = marks.pattern.search(prompt, first.end()) if first else None
        if second:
            stems.append(prompt[: second.start()])
    return stems
