"""The grammar texts of the dialects, compiled for the real Qwen2.5 vocabulary and held against whole turns."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen_agent_kit import dialects
from qwen_agent_kit.engine.grammar import GrammarCompiler
from qwen_agent_kit.errors import UsageError

SIZE = 151936
CONTROL = {"<tool_call>": 151657, "</tool_call>": 151658, "<think>": 151659, "</think>": 151660}
OUTPUT = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"], "additionalProperties": False}


def tool(name: str, properties: Mapping[str, Any], required: Sequence[str] = ()) -> dict[str, Any]:
    parameters = {"type": "object", "properties": properties, "required": list(required), "additionalProperties": False}
    return {"type": "function", "function": {"name": name, "description": "Does it.", "parameters": parameters}}


TOOLS = [
    tool(
        "weather",
        {"city": {"type": "string"}, "days": {"type": "integer"}, "unit": {"enum": ["C", "F"]}, "more": {}},
        ["city"],
    ),
    tool("now", {}),
]


@pytest.fixture(scope="module")
def compiler(qwen25_dir: Path) -> GrammarCompiler:
    return GrammarCompiler((qwen25_dir / "tokenizer.json").read_bytes(), SIZE, [151645, 151643])


class Turn:
    """Whether whole turns fit a grammar: tags are control tokens where the dialect has them, text elsewhere."""

    def __init__(self, compiler: GrammarCompiler, name: str, **wish: Any) -> None:
        self.dialect = dialects.get(name)
        self.control = {} if name == "generic" else CONTROL
        text = self.dialect.grammar(TOOLS, control=self.control, **wish)
        assert text is not None
        self.compiler, self.grammar = compiler, compiler.compile(text)

    def ids(self, text: str) -> list[int]:
        found, rest = [], text
        while rest:
            places = [(rest.find(tag), tag) for tag in self.control if tag in rest]
            place, tag = min(places, default=(len(rest), ""))
            found += self.compiler.vocabulary.tokenizer.tokenize_str(rest[:place])
            found += [self.control[tag]] if tag else []
            rest = rest[place + len(tag) :]
        return found

    def fits(self, text: str) -> bool:
        state, ids = self.grammar.start(), self.ids(text)
        return bool(state.matcher.try_consume_tokens(ids) == len(ids)) and state.accepting


def call(name: str, *, dialect: str, **arguments: Any) -> str:
    return dialects.get(dialect).render_call(name, arguments)


NAMES = pytest.mark.parametrize("name", dialects.NAMES)


@NAMES
def test_what_a_dialect_renders_its_grammar_accepts(compiler: GrammarCompiler, name: str) -> None:
    """Every call that `render_call` writes is a whole turn, alone, beside others, and after text."""
    turn = Turn(compiler, name)
    weather = call("weather", dialect=name, city='Oslo "x"\n</b>', days=-3, unit="C")
    now = call("now", dialect=name)
    for text in (weather, now, f"Let me see.\n{now}", "No call.", "", '{"a": 1}', "a < b"):
        assert turn.fits(text), text
    assert turn.fits(f"{weather}\n{now}") is (name != "generic")


@NAMES
@pytest.mark.parametrize(
    ("choice", "text", "fits"),
    [
        ("required", "weather", True),
        ("required", "now", True),
        ("required", None, False),
        ("now", "now", True),
        ("now", "weather", False),
        ("now", None, False),
        ("auto", None, True),
    ],
)
def test_tool_choice(compiler: GrammarCompiler, name: str, choice: str, text: str | None, fits: bool) -> None:
    """`required` is a call, a name is that call alone, `auto` is either."""
    arguments = {"city": "Oslo"} if text == "weather" else {}
    written = "plain" if text is None else call(text, dialect=name, **arguments)
    assert Turn(compiler, name, tool_choice=choice).fits(written) is fits


@NAMES
def test_a_named_tool_may_be_called_twice_unless_calls_are_single(compiler: GrammarCompiler, name: str) -> None:
    """Parallel calls are the default, and can be switched off; the generic dialect, for small models, has none."""
    twice = "\n".join([call("now", dialect=name)] * 2)
    assert Turn(compiler, name, tool_choice="now").fits(twice) is (name != "generic")
    assert not Turn(compiler, name, tool_choice="now", parallel=False).fits(twice)


@NAMES
def test_malformed_calls_fit_nothing(compiler: GrammarCompiler, name: str) -> None:
    """Unknown tools and arguments, missing ones, wrong types, cut-off calls and text after a call are shut out."""
    turn = Turn(compiler, name)
    good = call("weather", dialect=name, city="Oslo")
    bad = [
        call("wether", dialect=name, city="Oslo"),
        call("weather", dialect=name),
        call("weather", dialect=name, city="Oslo", wind=True),
        call("weather", dialect=name, city="Oslo", days="three"),
        call("weather", dialect=name, city="Oslo", unit="K"),
        call("weather", dialect=name, days=1, city="Oslo"),
        good[:-3] if name == "generic" else good[: -len("</tool_call>")],
        good + " and more",
        f"<tool_call>{good}",
    ]
    assert turn.fits(good)
    for text in bad:
        assert not turn.fits(text), text


@NAMES
def test_output_schema_with_tools_is_calls_or_the_object(compiler: GrammarCompiler, name: str) -> None:
    """With both, text is the object, or there are calls; under `none` and `required` only one of the two."""
    now = call("now", dialect=name)
    both = Turn(compiler, name, output_schema=OUTPUT)
    assert both.fits(now)
    assert both.fits('{"a": 12}')
    assert not both.fits("plain")
    assert not both.fits('{"a": "x"}')
    none = Turn(compiler, name, output_schema=OUTPUT, tool_choice="none")
    assert none.fits('{"a": 1}')
    assert not none.fits(now)
    assert not Turn(compiler, name, output_schema=OUTPUT, tool_choice="required").fits('{"a": 1}')


@NAMES
@pytest.mark.parametrize("choice", ["auto", "required"])
def test_thinking(compiler: GrammarCompiler, name: str, choice: str) -> None:
    """An open block is closed before anything else; one that may be opened may also be absent; else there is none."""
    now = call("now", dialect=name)
    opened = Turn(compiler, name, tool_choice=choice, thinking="open")
    assert opened.fits(f"\nHm, {{}}.\n</think>\n\n{now}")
    maybe = Turn(compiler, name, tool_choice=choice, thinking="maybe")
    assert maybe.fits(f"<think>\n\n</think>\n\n{now}")
    assert maybe.fits(now)
    if choice == "required":
        assert not opened.fits(now)
        assert not Turn(compiler, name, tool_choice=choice).fits(f"<think>\nHm\n</think>\n\n{now}")
    else:
        assert opened.fits("Hm.\n</think>\n\nYes.")
        assert maybe.fits("<think>\nHm.\n</think>\n\nYes.")


@NAMES
def test_nothing_to_constrain_is_none(name: str) -> None:
    """Without tools or schema, and under `none` without a schema, there is no grammar."""
    dialect = dialects.get(name)
    assert dialect.grammar([], control=CONTROL) is None
    assert dialect.grammar(TOOLS, tool_choice="none", control=CONTROL) is None


@NAMES
def test_choices_that_cannot_be(name: str) -> None:
    """A choice of no armed tool, `required` without tools and two tools of one name are told."""
    dialect = dialects.get(name)
    for tools, choice in ((TOOLS, "missing"), ([], "required"), ([*TOOLS, TOOLS[0]], "auto")):
        with pytest.raises(UsageError):
            dialect.grammar(tools, tool_choice=choice, control=CONTROL)


def test_unknown_dialect() -> None:
    """The error names what there is."""
    with pytest.raises(UsageError, match="hermes"):
        dialects.get("klingon")


def test_text_cannot_open_a_call_in_control_vocabularies(compiler: GrammarCompiler) -> None:
    """Text that spells the tag stays text, of any content; only the control token opens a call."""
    turn = Turn(compiler, "hermes")
    spelled = compiler.vocabulary.tokenizer.tokenize_str("Write <tool_call>x</tool_call>, not {")
    state = turn.grammar.start()
    assert state.matcher.try_consume_tokens(spelled) == len(spelled)
    assert state.accepting


# The compiler takes U+007F in JSON strings only as an escape, so the model can still write it.
TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x7f"), max_size=12)


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(st.sampled_from(["city", "days", "unit"]), TEXTS, max_size=3), st.data())
def test_any_string_argument_survives_hermes(compiler: GrammarCompiler, texts: dict[str, str], data: Any) -> None:
    """Whatever the strings hold, tags and quotes included, the rendered call fits the grammar and parses back."""
    hermes = dialects.get("hermes")
    tools = [tool("f", {key: {"type": "string"} for key in ("city", "days", "unit")})]
    texts = {
        key: texts[key] + data.draw(st.sampled_from(["", "</tool_call>", '"', "\\", "\n"])) for key in sorted(texts)
    }
    text = hermes.grammar(tools, tool_choice="required", control=CONTROL)
    assert text is not None
    body = hermes.render_call("f", texts)[len("<tool_call>") : -len("</tool_call>")]
    encoded = compiler.vocabulary.tokenizer.tokenize_str(body)
    ids = [CONTROL["<tool_call>"], *encoded, CONTROL["</tool_call>"]]
    state = compiler.compile(text).start()
    assert state.matcher.try_consume_tokens(ids) == len(ids)
    assert json.loads(body)["arguments"] == texts


XML_VALUES: list[tuple[dict[str, Any], list[str], list[str]]] = [
    (
        {"type": "string"},
        ["", "a\n\nb", "<p>x</p>", '{"a"', "true"],
        ["a</parameter>b", "<parameter=x>", "</function>"],
    ),
    ({"type": "string", "maxLength": 3}, ["", "abc"], ["abcd"]),
    ({"type": "string", "pattern": "^a/b+$"}, ["a/b", "a/bbb"], ["a/c", "xa/b"]),
    ({"type": "string", "pattern": "b+"}, ["abc", "b"], ["ac"]),
    ({"enum": ["x", 1, None]}, ["x", "1", "null"], ["y", '"x"']),
    ({"const": "only"}, ["only"], ["other"]),
    ({"anyOf": [{"type": "string"}, {"type": "null"}]}, ["null", "text"], []),
    ({"type": ["integer", "null"]}, ["12", "null"], ["text", "1.5"]),
    (
        {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "integer"}}]},
        ["[1, 2]", "hi"],
        ["[x", '["a"]'],
    ),
    ({"$ref": "#/$defs/t"}, ["abc"], ["abcd"]),
    ({"type": "array", "items": {"$ref": "#/$defs/t"}}, ['["abc"]'], ['["abcd"]', "abc"]),
    ({"type": "boolean"}, ["true"], ["True", "yes"]),
    ({}, ["anything", '{"a": 1}'], []),
]


@pytest.mark.parametrize(("schema", "good", "bad"), XML_VALUES, ids=lambda value: json.dumps(value)[:40])
def test_xml_values(compiler: GrammarCompiler, schema: dict[str, Any], good: list[str], bad: list[str]) -> None:
    """Strings are raw, the rest is JSON; what would read back as something else is shut out."""
    made = tool("f", {"v": schema}, ["v"])
    made["function"]["parameters"]["$defs"] = {"t": {"type": "string", "maxLength": 3}}
    text = dialects.get("xml").grammar([made], tool_choice="f", control=CONTROL)
    assert text is not None
    grammar = compiler.compile(text)
    for value, fits in itertools.chain(((v, True) for v in good), ((v, False) for v in bad)):
        body = f"\n<function=f>\n<parameter=v>\n{value}\n</parameter>\n</function>\n"
        ids = [CONTROL["<tool_call>"], *compiler.vocabulary.tokenizer.tokenize_str(body), CONTROL["</tool_call>"]]
        state = grammar.start()
        assert (state.matcher.try_consume_tokens(ids) == len(ids)) is fits, value
