"""Official chat templates in our environment give the text that public projects expect of them."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
from cases import folder, load

from qwen_agent_kit.prompt.template import ChatTemplate, Marks

CASES = load("02_chat_templates.jsonl")
# jinja_reference_agrees is False where ollama's renderer differs from the template on purpose, and null where no public
# copy of the template was found: neither is a gate (README of the cases).
GATE = [case for case in CASES if case["jinja_reference_agrees"] is True]
TAGS = """<|im_start|> <|im_end|> <|endoftext|> <tool_call> </tool_call> <tool_response> </tool_response> <think>
</think> <|vision_start|> <|vision_end|> <|image_pad|> <|video_pad|> <|audio_bos|> <|audio_eos|> <|AUDIO|>"""
CONTROL = {tag: i for i, tag in enumerate(TAGS.split())}


@cache
def template(name: str, *, marked: bool) -> tuple[ChatTemplate, Marks]:
    marks = Marks(CONTROL if marked else {})
    return ChatTemplate((folder() / "templates" / f"{name}.jinja").read_text(encoding="utf-8"), marks), marks


def render(case: dict[str, Any], *, marked: bool) -> str:
    """As ``apply_chat_template`` passes them: keys whose value is None are left out."""
    compiled, marks = template(case["template"], marked=marked)
    messages = [{key: value for key, value in m.items() if value is not None} for m in case["messages"]]
    text, _ = compiled.render(messages, tools=case["tools"], **case["kwargs"])
    return marks.take(text)


def test_there_are_cases() -> None:
    """At least 80 cases are a gate, over at least 8 templates."""
    assert len(GATE) >= 80
    assert len(UNTAGGED) >= 70
    assert len({case["template"] for case in GATE}) >= 8


@pytest.mark.parametrize("case", GATE, ids=lambda case: case["id"])
def test_a_template_renders_the_expected_text(case: dict[str, Any]) -> None:
    """The environment is transformers' own: filters, whitespace rules, globals."""
    assert render(case, marked=False) == case["expected"]


UNTAGGED = [case for case in GATE if not any(token in repr(case["messages"]) for token in CONTROL)]


@pytest.mark.parametrize("case", UNTAGGED, ids=lambda case: case["id"])
def test_marks_change_nothing_where_content_holds_no_tags(case: dict[str, Any]) -> None:
    """With control tokens marked by origin, and the marks read back, the text is the same."""
    assert render(case, marked=True) == case["expected"]
