"""The inside of calls: what is read, what is tolerated, and what is told to the model."""

from __future__ import annotations

import json
import sys
import time

import pytest
from parsing import parse

from qwen_agent_kit.parse.body import MAX_ECHO, echo

OPEN, CLOSE = "<tool_call>", "</tool_call>"


def one(body: str, dialect: str = "hermes", **options: object) -> tuple[str, object, str | None]:
    """The only call of a turn: name, arguments, error."""
    outcome = parse(list(f"{OPEN}{body}{CLOSE}"), dialect=dialect, **options)  # type: ignore[arg-type]
    (call,) = outcome.calls
    assert outcome.content == ""
    return call.name, dict(call.arguments), call.error


@pytest.mark.parametrize(
    "body",
    [
        '{"name": "f", "arguments": {"a": 1}}',
        ' \n{"arguments": {"a": 1}, "name": "f"}\n ',
        '{"name": "f", "parameters": {"a": 1}}',
        '{"name": "f", "arguments": "{\\"a\\": 1}"}',
        '{"id": 3, "type": "function", "name": "f", "arguments": {"a": 1}}',
        '{"x": {"name": "g", "arguments": {"b": 2}}, "name": "f", "arguments": {"a": 1}}',
    ],
)
def test_forms_of_a_json_call(body: str) -> None:
    """Either order of keys, `parameters`, arguments as a JSON string, and further keys all read as the same call."""
    assert one(body) == ("f", {"a": 1}, None)


@pytest.mark.parametrize(
    "body", ['{"name": "f"}', '{"name": "f", "arguments": null}', '{"name": "f", "arguments": {}}']
)
def test_no_arguments(body: str) -> None:
    """A call without arguments has none."""
    assert one(body) == ("f", {}, None)


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("", "Expecting value"),
        ("hello", "Expecting value"),
        ('{"name": "f", "arguments": {"a": 1}}}', "Extra data"),
        ('{"name": "f", "arguments": {"a": 1}} {"name": "g"}', "Extra data"),
        ('{"name": "f", "arguments": {"a": 1}', "Expecting ',' delimiter"),
        ('{"name": "f", "arguments": {"a": 1,}}', "double quotes"),
        ("{'name': 'f'}", "double quotes"),
        ('{"name": "f", "arguments": {"a": "b\n"}}', "control character"),
        ('{"name": "f", "arguments": {"a": NaN}}', "NaN is no JSON value"),
        ('{"name": "f", "arguments": {"a": 1, "a": 2}}', "the key 'a' is given twice"),
        ('{"name": "f", "name": "g", "arguments": {}}', "the key 'name' is given twice"),
        ('{"name": "f", "arguments": {}, "parameters": {}}', "both `arguments` and `parameters`"),
        ('{"name": "f", "arguments": [1]}', "`arguments` is not an object"),
        ('{"name": "f", "arguments": "x"}', "Expecting value"),
        ('{"name": 3, "arguments": {}}', "`name` is missing"),
        ('{"name": "", "arguments": {}}', "`name` is missing"),
        ('{"arguments": {}}', "`name` is missing"),
        ('[{"name": "f", "arguments": {}}]', "not a JSON object"),
        ('{"name": "f", "arguments": {"a": <b>}}', "Expecting value"),
        ('{"name": "f", "arguments": {"a": "\\x"}}', "escape"),
    ],
)
def test_malformed_json_calls_are_told_to_the_model(body: str, says: str) -> None:
    """A call that could be read in two ways, or in none, is an error of one line that says what is wrong."""
    _, arguments, error = one(body)
    assert error is not None
    assert says in error
    assert "\n" not in error
    assert arguments == {}


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("", "<function=NAME> is missing"),
        ("hello", "<function=NAME> is missing"),
        ("<function=>", "<function=NAME> is missing"),
        ('<function=f>{"a": 1}</function>', "<parameter=KEY> or </function> is missing after 'f'"),
        ("<function=f><parameter=a>1</parameter>x</function>", "is missing after 'a'"),
        ("<function=f><parameter=a>1</parameter><parameter=a>2</parameter></function>", "'a' is given twice"),
        ("<function=f></function><function=g></function>", "there is text after </function>"),
    ],
)
def test_malformed_xml_calls_are_told_to_the_model(body: str, says: str) -> None:
    """The same for XML."""
    _, arguments, error = one(body, "xml")
    assert error is not None
    assert says in error
    assert "\n" not in error
    assert arguments == {}


def test_errors_echo_little() -> None:
    """Of what the model wrote at most 80 characters come back, however it is quoted."""
    assert len(echo("x" * 1000)) <= MAX_ECHO
    assert len(echo("\x00" * 1000)) <= MAX_ECHO
    for dialect in ("hermes", "xml"):
        _, _, error = one("secret " * 100, dialect)
        assert error is not None
        assert error.count("secret") <= MAX_ECHO // len("secret ") + 1


def test_a_malformed_call_does_not_swallow_the_next() -> None:
    """After a malformed call the next one is read, also where the closing tag is missing."""
    good = '<tool_call>{"name": "f", "arguments": {"a": 1}}</tool_call>'
    for bad in ("<tool_call>{oops</tool_call>", "<tool_call>oops", '<tool_call>{"name": "g", "arguments": {"b": "c\n'):
        outcome = parse(list(bad + good))
        assert outcome.good == [("f", {"a": 1})]
        assert len(outcome.errors) == 1


def test_a_json_call_may_be_followed_by_the_next_at_once() -> None:
    """Where a whole call is followed by the next opening tag, both are calls."""
    turn = '<tool_call>{"name": "f", "arguments": {}}\n<tool_call>{"name": "g", "arguments": {}}</tool_call>'
    assert parse(list(turn)).good == [("f", {}), ("g", {})]


def test_hostile_nesting_and_numbers() -> None:
    """Nesting that no reader can follow, and numbers too long to read, are errors for the model, not crashes."""
    deep = "[" * 100_000
    _, _, error = one(f'{{"name": "f", "arguments": {{"a": {deep}{"]" * 100_000}}}}}')
    assert error is not None
    assert "nested too deeply" in error
    _, _, error = one(f'{{"name": "f", "arguments": {{"a": {"9" * 5000}}}}}')
    assert error is not None
    assert str(sys.get_int_max_str_digits()) in error


XML_OPEN = "<function=f>\n<parameter=a>\n"


@pytest.mark.parametrize(
    ("rest", "expected"),
    [
        ("x\n<parameter=b>\ny\n</parameter>\n</function>\n", {"a": "x", "b": "y"}),
        ("x\n</function>\n", {"a": "x"}),
        ("x\n</parameter>\n", {"a": "x"}),
        ("x <parameter=b> y\n</parameter>\n</function>\n", {"a": "x <parameter=b> y"}),
        ("<x>\n</function>\n</x>\n</parameter>\n</function>\n", {"a": "<x>\n</function>\n</x>"}),
        ("\n\nx\n\n\n</parameter></function>", {"a": "\n\nx\n\n"}),
        ("</parameter></function>", {"a": ""}),
        ("\n</parameter></function>", {"a": ""}),
    ],
)
@pytest.mark.parametrize("control", [False, True])
def test_ends_of_xml_values(rest: str, expected: dict[str, str], control: bool) -> None:
    """A value ends at its closing tag; where that is missing, at the next parameter's line or the end of the call."""
    from parsing import as_control

    turn = f"{OPEN}\n{XML_OPEN}{rest}{CLOSE}"
    pieces = as_control(list(turn)) if control else list(turn)
    assert parse(pieces, dialect="xml", control=control).good == [("f", expected)]


def test_only_parameters_of_the_tool_end_an_unclosed_value() -> None:
    """A line in a value that opens what is no parameter of the tool is text."""
    parameters = {"type": "object", "properties": {"a": {"type": "string"}, "b": {"type": "string"}}}
    tools = [{"type": "function", "function": {"name": "f", "parameters": parameters}}]
    body = f"{XML_OPEN}x\n<parameter=zzz>\ny\n<parameter=b>\nz\n</parameter></function>"
    assert one(body, "xml", tools=tools) == ("f", {"a": "x\n<parameter=zzz>\ny", "b": "z"}, None)


@pytest.mark.parametrize("dialect", ["hermes", "xml"])
def test_reading_is_linear(dialect: str) -> None:
    """A large argument in small pieces costs the same for each; reading it anew each time would take minutes."""
    value = "line <b> of text\n" * 5_000
    body = json.dumps({"name": "f", "arguments": {"a": value}})
    if dialect == "xml":
        body = f"<function=f><parameter=a>\n{value}\n</parameter></function>"
    turn = f"{OPEN}{body}{CLOSE}"
    pieces = [turn[at : at + 4] for at in range(0, len(turn), 4)]
    begun = time.perf_counter()
    assert parse(pieces, dialect=dialect).good == [("f", {"a": value})]
    assert (time.perf_counter() - begun) / len(pieces) < 1e-3
