"""How messages reach templates: tools where a template has none, media, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from chat_templates import LIST_CONTENT, NO_TOOLS

from qwen_agent_kit import dialects
from qwen_agent_kit.errors import ModelError, PromptError
from qwen_agent_kit.messages import Audio, Image, Message, Text, TokenLog, ToolCall, ToolResult, Video
from qwen_agent_kit.prompt import PromptRenderer

TOOL = {"type": "function", "function": {"name": "add", "description": "Adds.", "parameters": {"type": "object"}}}
GENERIC = dialects.get("generic")


@pytest.fixture(scope="module")
def smol(open_renderer: Callable[..., PromptRenderer], qwen25_dir: Path) -> PromptRenderer:
    """SmolLM2's template habits over a vocabulary in which `<tool_call>` is a control token."""
    return open_renderer(folder=qwen25_dir, template=NO_TOOLS, dialect=GENERIC)


@pytest.fixture(scope="module")
def read(smol: PromptRenderer, full_tokenizers: dict[str, Any]) -> Callable[..., str]:
    def text(messages: list[Message], **options: Any) -> str:
        found: str = full_tokenizers["qwen25"].decode(smol.render(messages, **options).ids, skip_special_tokens=False)
        return found

    return text


def test_templates_with_and_without_tools_are_told_apart(smol: PromptRenderer, renderer: PromptRenderer) -> None:
    """Qwen's templates render tools themselves; SmolLM2's says the same with and without."""
    assert renderer.native_tools
    assert not smol.native_tools


def test_tools_go_into_the_system_turn_of_a_template_without_tools(read: Callable[..., str]) -> None:
    """The dialect's text follows the system text; a system turn is made where there is none."""
    told = GENERIC.tools_prompt([TOOL])
    assert "add" in told
    start = "<|im_start|>system\n"
    assert read([Message("user", "q")]).startswith(f"{start}You are a default.<|im_end|>")
    assert read([Message("user", "q")], tools=[TOOL]).startswith(f"{start}{told}<|im_end|>\n<|im_start|>user\nq")
    asked = [Message("system", "Be kind."), Message("user", "q")]
    assert read(asked, tools=[TOOL]).startswith(f"{start}Be kind.\n\n{told}<|im_end|>")
    assert read(asked).startswith(f"{start}Be kind.<|im_end|>")


def test_calls_and_results_are_the_dialect_s_where_the_template_has_none(read: Callable[..., str]) -> None:
    """Calls are text of the assistant; results that follow each other are one user turn."""
    calls = tuple(ToolCall(f"c{i}", "add", {"a": i}) for i in range(2))
    results = [Message("tool", (ToolResult((Text(f"r{i}"),), f"c{i}", "add"),)) for i in range(2)]
    talk = [Message("user", "q"), Message("assistant", (Text("Well. "), *calls)), *results]
    written = "".join(GENERIC.render_call("add", {"a": i}) for i in range(2))
    got = "\n".join(GENERIC.render_result(f"r{i}") for i in range(2))
    want = (
        f"<|im_start|>assistant\nWell. {written}<|im_end|>\n<|im_start|>user\n{got}<|im_end|>\n<|im_start|>assistant\n"
    )
    assert read(talk).endswith(want)
    for end in range(1, 5):  # the merged turn also where the conversation grew result by result
        read(talk[:end])
    assert read(talk).endswith(want)


def test_a_dialect_s_delimiters_are_control_tokens_where_they_can_be(smol: PromptRenderer) -> None:
    """The delimiters of a call are ids; the same tags inside its arguments are text."""
    call = ToolCall("c", "add", {"a": "</tool_call><tool_call>"})
    ids = smol.render([Message("user", "q"), Message("assistant", (call,))]).ids
    assert ids.count(smol.control["<tool_call>"]) == ids.count(smol.control["</tool_call>"]) == 1


def test_a_loop_without_native_tools_goes_on(smol: PromptRenderer, full_tokenizers: dict[str, Any]) -> None:
    """Splicing and merging hold together: prompt and output begin the next prompt."""
    talk: list[Message] = [Message("user", "q")]
    for i in range(4):
        before = smol.render(talk, tools=[TOOL]).ids
        ids = (
            full_tokenizers["qwen25"]
            .encode(f'<tool_call>{{"name":"add","arguments":{{"a":{i}}}}}</tool_call><|im_end|>')
            .ids
        )
        talk.append(Message("assistant", (ToolCall(f"c{i}", "add", {"a": i}),), TokenLog(tuple(ids), smol.fingerprint)))
        talk.append(Message("tool", (ToolResult((Text(f"r{i}"),), f"c{i}", "add"),)))
        after = smol.render(talk, tools=[TOOL])
        assert after.ids[: len(before) + len(ids)] == before + ids
        assert after.prefix_break_hint is None


def widen(part: Any) -> tuple[int, str, Any]:
    return len(part.source), f"digest-{part.source!r}", part


def test_media_are_widened_in_order(open_renderer: Callable[..., PromptRenderer]) -> None:
    """Each part becomes its number of placeholder ids, in the order of the messages, with its digest and item."""
    renderer = open_renderer(template=LIST_CONTENT, widen=widen)
    one, two, three = Image(b"a"), Video(b"bbb"), Image(b"cc")
    talk = [
        Message("user", (Text("see <|image_pad|>"), one, two)),
        Message("assistant", "ok"),
        Message("user", (three, Text("?"))),
    ]
    for _ in range(2):  # the second time, the first turns come from the rendering before
        rendered = renderer.render(talk)
        assert [(s.length, s.digest, s.item) for s in rendered.media] == [
            (len(p.source), f"digest-{p.source!r}", p) for p in (one, two, three)
        ]
        for span, pad in zip(rendered.media, ("image", "video", "image"), strict=True):
            ids = rendered.ids[span.start : span.start + span.length]
            assert ids == [renderer.control[f"<|{pad}_pad|>"]] * span.length
        assert rendered.ids.count(renderer.control["<|image_pad|>"]) == 3
        talk += [Message("assistant", "fine"), Message("user", "more")]


def test_equal_places_with_other_media_are_widened_afresh(open_renderer: Callable[..., PromptRenderer]) -> None:
    """Two conversations that read the same and hold different images share no span."""
    renderer = open_renderer(template=LIST_CONTENT, widen=widen)
    for source in (b"a", b"bb", b"a"):
        talk = [Message("user", (Image(source), Text("?"))), Message("assistant", "x"), Message("user", "y")]
        assert [span.length for span in renderer.render(talk).media] == [len(source)]


def test_media_in_tool_results_are_widened(open_renderer: Callable[..., PromptRenderer]) -> None:
    """A tool may return an image; it stands in the tool's turn."""
    renderer = open_renderer(template=LIST_CONTENT, widen=widen)
    result = ToolResult((Text("here: "), Image(b"12345")), "c", "f")
    rendered = renderer.render([Message("user", "q"), Message("tool", (result,))])
    assert [span.length for span in rendered.media] == [5]


def test_media_that_a_template_has_no_place_for_are_refused(
    open_renderer: Callable[..., PromptRenderer], renderer: PromptRenderer
) -> None:
    """The error names the kind, whether no backend is there or the template takes text only."""
    with pytest.raises(PromptError, match="'image'"):
        renderer.render([Message("user", (Image(b"a"), Text("?")))])
    for options in ({"widen": widen}, {"widen": widen, "template": LIST_CONTENT}):
        with pytest.raises(PromptError, match="'audio'"):
            open_renderer(**options).render([Message("user", (Audio(b"a"), Text("?")))])


def test_empty_conversations_are_refused(renderer: PromptRenderer) -> None:
    """There is no prompt without a message."""
    with pytest.raises(PromptError, match="at least one"):
        renderer.render([])


def test_a_broken_tokenizer_is_refused(qwen3_dir: Path) -> None:
    """What is no tokenizer.json is a `ModelError`."""
    for data in (b"{}", b"\x00\x01", json.dumps({"model": {"type": "BPE"}})):
        with pytest.raises(ModelError, match=r"tokenizer\.json"):
            PromptRenderer(data, NO_TOOLS, dialect=GENERIC)


def test_fingerprints_tell_tokenizers_apart(
    qwen25: PromptRenderer, qwen3: PromptRenderer, smol: PromptRenderer
) -> None:
    """Equal files have equal fingerprints, whatever the template; others do not."""
    assert qwen25.fingerprint == smol.fingerprint
    assert qwen25.fingerprint != qwen3.fingerprint


def test_control_tokens_are_listed(qwen3: PromptRenderer) -> None:
    """`control` maps each added token to its id."""
    assert qwen3.control["<|im_end|>"] == 151645
    assert qwen3.control["<think>"] == 151667
    assert len(qwen3.control) == 26
