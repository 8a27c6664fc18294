"""The prompt's template: fields by name and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen_agent_kit import Image, Text
from qwen_agent_kit.errors import UsageError
from qwen_agent_kit.pipeline.template import Template


def _text(template: str, **values: object) -> str:
    (part,) = Template(template).fill(values, {})
    assert isinstance(part, Text)
    return part.text


@settings(deadline=None)
@given(st.text(min_size=1), st.text(min_size=1))
def test_what_a_field_holds_is_never_parsed_again(before: str, value: str) -> None:
    """Any text comes out as it went in, braces and fields of its own included."""
    plain = before.replace("{", "{{").replace("}", "}}")
    assert _text(plain + "{a}", a=value, b="never") == before + value


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("{b}", "{b}"),
        (None, ""),
        (3, "3"),
        (2.5, "2.5"),
        (True, "true"),
        ({"k": ["é"]}, '{"k": ["é"]}'),
        (Path("x/y"), "x/y"),
    ],
)
def test_values_become_text(value: object, text: str) -> None:
    """Text as it is, None as nothing, paths as their names, all else as JSON."""
    assert _text("<{a}>", a=value, b="never") == f"<{text}>"


@pytest.mark.parametrize(
    "template", ["{a.__class__}", "{a[0]}", "{a!r}", "{a:>99999999}", "{0}", "{ a }", "{a.b.__init__}"]
)
def test_expressions_are_names_that_nothing_has(template: str) -> None:
    """No attribute, index, conversion or format spec reaches an object; the columns are named."""
    with pytest.raises(UsageError, match="columns found: 'a'"):
        Template(template).check(["a"])
    with pytest.raises(UsageError, match="asks for the field"):
        Template(template).fill({"a": "x"}, {})


@pytest.mark.parametrize("template", ["{", "}", "{}", "a{b", "a}b", "{a{b}}", "{{{"])
def test_braces_have_partners(template: str) -> None:
    """A lone brace is refused with its place."""
    with pytest.raises(UsageError, match="at character"):
        Template(template)


def test_a_column_may_have_any_name() -> None:
    """A name with dots or spaces is looked up whole."""
    assert _text("{a.b} {c d}", **{"a.b": "1", "c d": "2"}) == "1 2"


def test_media_stand_where_they_are_named_and_else_at_the_end() -> None:
    """`{photo}` puts the picture there; one that is not named follows the text."""
    one, two = Image(b"1"), Image(b"2")
    placed = Template("Look: {photo} What is it?").fill({}, {"photo": (one, two)})
    assert placed == [Text("Look: "), one, two, Text(" What is it?")]
    assert Template("What is it?").fill({}, {"photo": (one,)}) == [Text("What is it?"), one]


def test_what_is_no_text_is_refused() -> None:
    """Bytes and media have no text; an empty prompt is none."""
    for value in (b"x", Image(b"1"), object()):
        with pytest.raises(UsageError, match="the field 'a' holds"):
            Template("{a}").fill({"a": value}, {})
    with pytest.raises(UsageError, match="empty"):
        Template("{a}").fill({"a": ""}, {})
