"""Messages: what they hold, and that they survive the way to JSON and back."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen_agent_kit import Audio, Image, Media, Message, Text, ToolCall, ToolResult, Video
from qwen_agent_kit.errors import MediaError, UsageError
from qwen_agent_kit.messages import Reasoning, TokenLog

texts = st.text(max_size=40)
json_data = st.recursive(
    st.none() | st.booleans() | st.integers() | texts,
    lambda x: st.lists(x, max_size=3) | st.dictionaries(texts, x, max_size=3),
)
media = st.builds(
    lambda kind, data: kind(data, "found"), st.sampled_from([Image, Audio, Video]), st.binary(max_size=20)
)
simple = st.builds(Text, texts) | st.builds(Reasoning, texts) | media
calls = st.builds(ToolCall, texts, texts, st.dictionaries(texts, json_data, max_size=3), st.none() | texts)
results = st.builds(ToolResult, st.lists(simple, max_size=3).map(tuple), texts, texts, st.booleans())
held = {
    "system": st.builds(Text, texts) | media,
    "user": st.builds(Text, texts) | media,
    "assistant": simple | calls,
    "tool": results,
}
logs = st.none() | st.builds(TokenLog, st.lists(st.integers(0, 2**31), max_size=4).map(tuple), texts)


@st.composite
def messages(draw: st.DrawFn) -> Message:
    """Any role with what it can hold."""
    role = draw(st.sampled_from(["system", "user", "assistant", "tool"]))
    least, most = (1, 1) if role == "tool" else (0, 4)
    return Message(role, tuple(draw(st.lists(held[role], min_size=least, max_size=most))), draw(logs))


@given(messages())
def test_a_message_survives_json(message: Message) -> None:
    """``from_dict(json(to_dict(m))) == m``, media (found) included."""
    assert Message.from_dict(json.loads(json.dumps(message.to_dict()))) == message


def test_media_that_come_from_data_are_found() -> None:
    """A part the user built is configured; the same part read from data is found, so it cannot name local files."""
    mine = Image("cat.png")
    assert mine.trust == "configured"
    back = Message.from_dict(Message("user", (mine,)).to_dict()).media[0]
    assert (back.trust, back.source) == ("found", "cat.png")


def test_a_plugin_part_is_found_by_its_kind() -> None:
    """``from_dict`` makes a plugin's part where its type is passed, and refuses the kind where it is not."""

    class Points(Media):
        kind = "points"

    data = Message("user", (Points(b"xyz"),)).to_dict()
    assert isinstance(Message.from_dict(data, [Points]).parts[0], Points)
    with pytest.raises(UsageError, match="'points'"):
        Message.from_dict(data)


@pytest.mark.parametrize(
    "data",
    [
        None,
        [],
        {},
        {"role": "owner"},
        {"role": 3},
        {"role": "user", "parts": 3},
        {"role": "user", "parts": [3]},
        {"role": "user", "parts": [{"type": "text"}]},
        {"role": "user", "parts": [{"type": "tool_call", "arguments": 3}]},
        {"role": "user", "parts": [{"type": "image"}]},
        {"role": "user", "parts": [{"type": "image", "data": "%%%"}]},
        {"role": "user", "parts": [{"type": "image", "data": "", "options": 3}]},
        {"role": "user", "parts": [], "log": {"ids": ["x"], "fingerprint": ""}},
    ],
)
def test_what_is_no_message_is_refused(data: object) -> None:
    """Wrong data is a usage error that says what was found."""
    with pytest.raises((UsageError, MediaError)):
        Message.from_dict(data)  # type: ignore[arg-type]  # the point of the test


def test_what_was_said_is_not_dropped() -> None:
    """A message in another library's words is refused with the name of ours; it does not come out empty."""
    with pytest.raises(UsageError, match="`parts` is what is said"):
        Message.from_dict({"role": "user", "content": "hello"})


def test_a_string_is_a_text_part() -> None:
    """Strings stand for Text wherever parts are given."""
    assert Message("user", "hi").parts == (Text("hi"),)  # type: ignore[arg-type]  # accepted on purpose
    assert Message("user", ["a", Image(b"")]).text == "a"  # type: ignore[arg-type]  # accepted on purpose
    with pytest.raises(UsageError, match="allowed"):
        Message("user", (3,))  # type: ignore[arg-type]  # the point of the test


@pytest.mark.parametrize(
    ("role", "parts", "words", "hint"),
    [
        ("user", ["a", ToolCall("1", "f")], "a user message holds a ToolCall", "assistant"),
        ("system", [ToolResult()], "a system message holds a ToolResult", "tool"),
        ("user", [Reasoning("hm")], "a user message holds a Reasoning", "assistant"),
        ("assistant", [ToolResult()], "an assistant message holds a ToolResult", "tool"),
        ("tool", "hi", "a tool message holds a Text", "ToolResult"),
        ("tool", [], "a tool message holds 0 parts; allowed: one", "ToolResult"),
        ("tool", [ToolResult(), ToolResult()], "a tool message holds 2 parts", "ToolResult"),
    ],
)
def test_a_role_holds_only_what_its_turn_can_carry(role: str, parts: object, words: str, hint: str) -> None:
    """No template could carry the rest; the error says where the part belongs."""
    with pytest.raises(UsageError) as caught:
        Message(role, parts)
    assert words in caught.value.message
    assert hint in caught.value.hint
