"""The stream parser: what is said, how early, and that the cuts between pieces make no difference."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from parsing import TAGS, Outcome, as_control, parse

from qwen_agent_kit import dialects
from qwen_agent_kit.backends import CallDelta, CallDone, Piece
from qwen_agent_kit.events import ReasoningDelta, TextDelta
from qwen_agent_kit.messages import ToolCall
from qwen_agent_kit.parse import StreamParser

WEATHER = '<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo"}}\n</tool_call>'
WEATHER_XML = "<tool_call>\n<function=weather>\n<parameter=city>\nOslo\n</parameter>\n</function>\n</tool_call>"
OSLO = ("weather", {"city": "Oslo"})
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string"}, "days": {"type": "integer"}, "tags": {"type": "array"}},
            },
        },
    }
]

FRAGMENTS = st.one_of(
    st.sampled_from(
        [
            *TAGS,
            WEATHER,
            WEATHER_XML,
            '{"name": "f", "arguments": {"a": "<tool_call> \\" </tool_call>", "b": [1, {}]}}',
            '{"arguments": {"a": 1}, "name": "f"}',
            '{"name": "f", "parameters": "{\\"a\\": 1}"}',
            '{"name": "f", "arguments": {"a": "b\n"}}',
            "<function=weather>",
            "<function=f>",
            "<parameter=city>",
            "<parameter=days>",
            "</parameter>",
            "</function>",
            "\n",
            " \n\t ",
            "<",
            "</",
            "<tool_",
            "</para",
            "\n<parameter=",
            "\n</function>\n",
            '"',
            "\\",
            "{",
            "}",
            "42",
            "你好 🧑‍🚀",
            "\xa0",
        ]
    ),
    st.text(max_size=8),
)
TURNS = st.lists(FRAGMENTS, max_size=14).map("".join)


def cut(text: str, places: list[int]) -> list[str]:
    """The text in pieces, cut at the places modulo its length."""
    edges = sorted({0, len(text), *(place % (len(text) + 1) for place in places)})
    return [text[a:b] for a, b in pairwise(edges)]


@pytest.mark.parametrize("dialect", ["hermes", "xml"])
@given(turn=TURNS, places=st.lists(st.integers(0, 10_000), max_size=12), reasoning=st.booleans())
@example(turn="\n" + WEATHER + "\n", places=[3], reasoning=True)
@example(turn="a<think>b</think>c", places=[1], reasoning=False)
@example(turn="<tool_call><function=f><parameter=a>x</function>\n</tool_call>y", places=[37], reasoning=False)
@settings(max_examples=150, deadline=None)
def test_f42_cuts_make_no_difference(dialect: str, turn: str, places: list[int], reasoning: bool) -> None:
    """Any chunking says what the whole text says, in text mode and in control mode."""
    check_cuts(dialect, turn, places, reasoning)


@pytest.mark.full
@pytest.mark.parametrize("dialect", ["hermes", "xml"])
@given(turn=TURNS, places=st.lists(st.integers(0, 10_000), max_size=40), reasoning=st.booleans())
@settings(max_examples=10_000, deadline=None)
def test_f42_cuts_make_no_difference_many(dialect: str, turn: str, places: list[int], reasoning: bool) -> None:
    """The same over many more turns."""
    check_cuts(dialect, turn, places, reasoning)


def check_cuts(dialect: str, turn: str, places: list[int], reasoning: bool) -> None:
    chunks = cut(turn, places)
    for finish in ("stop", "length"):
        whole = parse([turn], dialect=dialect, tools=TOOLS, reasoning=reasoning, finish=finish)
        assert parse(chunks, dialect=dialect, tools=TOOLS, reasoning=reasoning, finish=finish).said == whole.said
        assert parse(list(turn), dialect=dialect, tools=TOOLS, reasoning=reasoning, finish=finish).said == whole.said
    whole = parse(as_control([turn]), dialect=dialect, tools=TOOLS, reasoning=reasoning, control=True)
    cuts = parse(as_control(chunks), dialect=dialect, tools=TOOLS, reasoning=reasoning, control=True)
    assert cuts.said == whole.said


@given(turn=st.lists(st.one_of(st.text(max_size=8), st.sampled_from([*TAGS, WEATHER])), max_size=8).map("".join))
@settings(max_examples=200, deadline=None)
def test_f18_text_never_forges_a_tag(turn: str) -> None:
    """Where tags are control tokens, no text of any content makes a call or reasoning, and all of it is kept."""
    outcome = parse(list(turn), control=True)
    assert (outcome.content, outcome.reasoning, outcome.calls, outcome.truncated) == (turn, "", [], "")


def test_f18_quoted_tags_stay_where_they_are_quoted() -> None:
    """Tags inside an argument, as text or as the control tokens that tokenizers make of them, stay text."""
    value = "use <tool_call>{}</tool_call> and </think>"
    body = json.dumps({"name": "write", "arguments": {"text": value}})
    turn = f"<tool_call>{body}</tool_call>"
    for outcome in (parse([turn]), parse(as_control([turn]), control=True)):
        assert outcome.good == [("write", {"text": value})]
    turn = f"<tool_call><function=write><parameter=text>{value}</parameter></function></tool_call>"
    for outcome in (parse([turn], dialect="xml"), parse(as_control([turn]), dialect="xml", control=True)):
        assert outcome.good == [("write", {"text": value})]


@pytest.mark.parametrize(("dialect", "call"), [("hermes", WEATHER), ("xml", WEATHER_XML)])
def test_f43_a_cut_call_is_never_done(dialect: str, call: str) -> None:
    """A call that ends at the token limit, wherever, gives no CallDone; its raw text is kept."""
    for end in range(len("<tool_call>"), len(call)):
        outcome = parse(["Hm. ", *call[:end]], dialect=dialect, tools=TOOLS, finish="length")
        assert outcome.calls == []
        assert outcome.content == "Hm."
        assert outcome.truncated == call[:end]


@pytest.mark.parametrize(("dialect", "call"), [("hermes", WEATHER), ("xml", WEATHER_XML)])
def test_a_call_may_lack_its_closing_tag(dialect: str, call: str) -> None:
    """Where the model stopped by itself and only the closing tag is missing, the call is whole."""
    outcome = parse([call.removesuffix("</tool_call>")], dialect=dialect, tools=TOOLS, finish="stop")
    assert (outcome.good, outcome.truncated) == ([OSLO], "")


def test_order_of_text_and_calls() -> None:
    """Text before, between and after calls is kept; space around calls and after reasoning is not."""
    turn = f"<think>\nHm\n</think>\n\nFirst. {WEATHER}\n{WEATHER} \nthen\n{WEATHER}\n done\n"
    outcome = parse(list(turn))
    order = [type(delta).__name__ for delta in outcome.deltas]
    assert outcome.reasoning == "Hm"
    assert outcome.content == "First.thendone\n"
    assert outcome.good == [OSLO, OSLO, OSLO]
    assert order.index("ReasoningDelta") < order.index("TextDelta") < order.index("CallDelta")
    assert [delta.index for delta in outcome.deltas if isinstance(delta, CallDone)] == [0, 1, 2]


@pytest.mark.parametrize("control", [False, True])
def test_a_call_inside_reasoning_ends_it(control: bool) -> None:
    """A call in a block that nobody closed begins where its tag stands, and what follows is text."""
    turn = f"I need the weather.\n\n{WEATHER}\nThere."
    outcome = parse(as_control([turn]) if control else list(turn), reasoning=True, control=control)
    assert outcome.reasoning == "I need the weather."
    assert outcome.good == [OSLO]
    assert outcome.content == "There."


def test_reasoning_opened_by_prompt_or_model() -> None:
    """Reasoning is the same whether the prompt opened the block, the model did, or both."""
    for turn, opened in (("a\n</think>\n\nb", True), ("<think>\na</think>b", False), ("<think>a</think>\nb", True)):
        for outcome in (
            parse(list(turn), reasoning=opened),
            parse(as_control([turn]), reasoning=opened, control=True),
        ):
            assert (outcome.reasoning, outcome.content) == ("a", "b")


def test_reasoning_that_never_ends() -> None:
    """A block that is cut off is all reasoning; no text comes of it."""
    outcome = parse(["<think>\nlet me", " see \n"], finish="length")
    assert (outcome.reasoning, outcome.content) == ("let me see", "")


def test_think_tags_inside_an_answer_are_text() -> None:
    """Text opens reasoning only at the beginning of a turn; a closing tag without a block is text."""
    turn = "Write <think> and </think>."
    assert parse(list(turn)).content == turn


def test_a_control_token_opens_reasoning_anywhere() -> None:
    """The control token `<think>` after some text is never shown, and what follows it is reasoning."""
    outcome = parse(as_control(["Well. <think>hm</think> Yes."]), control=True)
    assert (outcome.content, outcome.reasoning) == ("Well.Yes.", "hm")


def deltas(pieces: list[str], **options: object) -> list[list[object]]:
    parser = StreamParser(dialects.get("hermes"), new_id=lambda: "id", **options)  # type: ignore[arg-type]
    return [list(parser.feed(Piece(piece))) for piece in pieces]


def test_text_is_passed_on_at_once() -> None:
    """Each piece of plain text gives its delta; only a possible tag and space that may precede one wait."""
    assert deltas(["a", " b", " <", "x", "\n", "c"]) == [
        [TextDelta("a")],
        [TextDelta(" b")],
        [],
        [TextDelta(" <x")],
        [],
        [TextDelta("\nc")],
    ]
    assert deltas(["a", "<b"], control_tags=frozenset(TAGS)) == [[TextDelta("a")], [TextDelta("<b")]]
    assert deltas(["a"], starts_in_reasoning=True) == [[ReasoningDelta("a")]]


def test_arguments_are_passed_on_while_they_are_written() -> None:
    """The name comes when it is known, argument text piece by piece, the whole call with its closing tag."""
    pieces = ["<tool_call>", '{"name": "wea', 'ther", ', '"arguments": {"ci', 'ty": "Os', 'lo"}', "}", "</tool_call>"]
    assert deltas(pieces) == [
        [],
        [],
        [CallDelta(0, "weather")],
        [CallDelta(0, None, '{"ci')],
        [CallDelta(0, None, 'ty": "Os')],
        [CallDelta(0, None, 'lo"}')],
        [],
        [CallDone(0, ToolCall("id", "weather", {"city": "Oslo"}))],
    ]


def test_xml_strings_are_passed_on_while_they_are_written() -> None:
    """A string parameter is streamed, its last newline held; a typed one comes whole."""
    pieces = ["<tool_call><function=weather>", "<parameter=city>\nO", 'sl"o\n', "</parameter><parameter=days>1"]
    parser = StreamParser(dialects.get("xml"), tools=TOOLS, new_id=lambda: "id")
    said = [parser.feed(Piece(piece)) for piece in [*pieces, "2</parameter>", "</function>"]]
    texts = ["".join(delta.arguments for delta in found if isinstance(delta, CallDelta)) for found in said]
    assert texts == ["", '{"city": "O', 'sl\\"o', '", "days": ', "12", ""]


@pytest.mark.parametrize("dialect", ["hermes", "xml"])
def test_calls_can_be_left_out(dialect: str) -> None:
    """With ``parse_calls=False`` calls are neither text nor calls; text around them stays."""
    call = dialects.get(dialect).render_call("weather", {"city": "Oslo"})
    outcome = parse(["a", call, "b"], dialect=dialect, calls=False)
    assert (outcome.content, outcome.calls, outcome.truncated) == ("ab", [], "")


@pytest.mark.parametrize("control", [False, True])
def test_f18_without_tools_the_tags_of_calls_are_text(control: bool) -> None:
    """With ``parse_calls=None`` an answer that writes about tool calls comes out as it was written."""
    turn = f"<think>a {WEATHER}</think>Like this: {WEATHER}, or <tool_call>."
    outcome = parse(as_control([turn]) if control else list(turn), control=control, calls=None)
    assert (outcome.reasoning, outcome.content) == (f"a {WEATHER}", f"Like this: {WEATHER}, or <tool_call>.")
    assert (outcome.calls, outcome.truncated) == ([], "")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=12),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=8,
)


@pytest.mark.parametrize("dialect", ["hermes", "generic"])
@given(name=st.text(min_size=1, max_size=8), arguments=st.dictionaries(st.text(max_size=6), JSON, max_size=3))
@settings(max_examples=100, deadline=None)
def test_what_a_dialect_writes_is_read_back(dialect: str, name: str, arguments: dict[str, object]) -> None:
    """Any call that the JSON dialects render is read as the same call, character by character."""
    call = dialects.get(dialect).render_call(name, arguments)
    outcome = parse(list(call), dialect=dialect)
    assert outcome.good == [(name, arguments)]
    outcome = parse(as_control([call]), dialect=dialect, control=True)
    assert outcome.good == [(name, arguments)]


@given(
    value=st.one_of(st.text(alphabet=st.characters(exclude_characters="<"), max_size=20), JSON),
    other=st.text(alphabet=st.characters(exclude_characters="<"), max_size=20),
)
@settings(max_examples=150, deadline=None)
def test_what_the_xml_dialect_writes_is_read_back(value: object, other: str) -> None:
    """A rendered XML call is read as the same values where the schema names their types."""
    if "<" in json.dumps(value):
        return
    kind = {str: "string", bool: "boolean", int: "integer", float: "number", list: "array", dict: "object"}
    schema = {"type": kind.get(type(value), "null")}
    parameters = {"type": "object", "properties": {"v": schema, "other": {"type": "string"}}}
    tools = [{"type": "function", "function": {"name": "f", "parameters": parameters}}]
    arguments = {"v": value, "other": other}
    call = dialects.get("xml").render_call("f", arguments)
    assert parse(list(call), dialect="xml", tools=tools).good == [("f", arguments)]


def test_ids_are_the_given_ones() -> None:
    """Each call takes one new id, malformed calls too."""
    outcome: Outcome = parse([WEATHER, "<tool_call>x</tool_call>", WEATHER])
    assert [call.id for call in outcome.calls] == ["call_0", "call_1", "call_2"]
    assert [call.error is None for call in outcome.calls] == [True, False, True]
