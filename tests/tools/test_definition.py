"""From functions to tools: names, schemas, contexts, methods, and the argument half of F44."""

from __future__ import annotations

import dataclasses
import datetime
import decimal
import enum
import functools
import json
import subprocess
import sys
import typing
from collections.abc import Iterator
from typing import Annotated, Any, Literal, Optional, Union

import pytest
import typing_extensions
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, Field, field_validator

from qwen_agent_kit.errors import SchemaError, UsageError
from qwen_agent_kit.messages import Image, ToolCall
from qwen_agent_kit.tools import ArgumentsError, Tool, ToolContext, ToolSet, as_tool, check_schema, run_call, tool

if typing.TYPE_CHECKING:
    from decimal import Decimal

    from qwen_agent_kit.tools import ToolContext as Hidden


Price = decimal.Decimal


class Unit(enum.Enum):
    C = "celsius"
    F = "fahrenheit"


@dataclasses.dataclass
class Place:
    name: str
    height: float = 0.0


class Old(typing.TypedDict):
    a: int
    inner: list[Place]


class New(typing_extensions.TypedDict, total=False):
    b: str


class Query(BaseModel):
    """What to look for."""

    text: str = Field(description="The text", min_length=2)
    tags: list[Literal["x", "y"]] = []
    place: Place | None = None
    deeper: list[Query] = []

    @field_validator("text")
    @classmethod
    def _no_swearing(cls, text: str) -> str:
        if text == "damn":
            raise ValueError("mind your language")
        return text


def everything(
    city: str,
    unit: Unit,
    query: Query,
    old: Old,
    new: New,
    kind: Literal["a", "b", 3] = "a",
    either: int | str | None = None,
    several: Optional[list[Union[int, float]]] = None,  # noqa: UP007, UP045  # the old spelling works too
    level: Annotated[int, "How far", Field(ge=0, le=9)] = 3,
    when: datetime.date | None = None,
    rest: dict[str, float] = Field(default_factory=dict, description="the rest"),  # noqa: B008  # pydantic's way
    anything: Any = None,
    schema: Annotated[str, typing_extensions.Doc("a name that pydantic models keep for themselves")] = "s",
) -> str:
    """Do everything.

    In detail.

    Args:
        city: The city
            to visit.
        unit (Unit): Which unit.
    """
    return "ok"


GOOD: dict[str, Any] = {
    "city": "Bern",
    "unit": "celsius",
    "query": {"text": "hi", "tags": ["x"], "place": {"name": "p"}, "deeper": [{"text": "ho"}]},
    "old": {"a": "1", "inner": [{"name": "q", "height": 2}]},
    "new": {},
}


def test_a_signature_becomes_a_schema() -> None:
    """Every kind of type hint is in the schema, with defaults, constraints and descriptions, and nothing else."""
    made = tool(everything)
    schema = made.parameters
    assert made.description == "Do everything.\n\nIn detail."
    assert schema["required"] == ["city", "unit", "query", "old", "new"]
    assert schema["additionalProperties"] is False
    assert list(schema)[:2] == ["type", "properties"]
    properties = schema["properties"]
    assert properties["city"] == {"type": "string", "description": "The city\nto visit."}
    assert properties["unit"] == {"$ref": "#/$defs/Unit", "description": "Which unit."}
    assert schema["$defs"]["Unit"] == {"enum": ["celsius", "fahrenheit"], "type": "string"}
    assert properties["level"] == {
        "type": "integer",
        "minimum": 0,
        "maximum": 9,
        "description": "How far",
        "default": 3,
    }
    assert properties["kind"] == {"enum": ["a", "b", 3], "default": "a"}
    assert properties["either"] == {"anyOf": [{"type": "integer"}, {"type": "string"}, {"type": "null"}]}
    assert properties["rest"]["description"] == "the rest"
    assert properties["schema"]["description"].startswith("a name")
    assert schema["$defs"]["Query"]["description"] == "What to look for."
    assert "title" not in json.dumps(schema)


def test_arguments_become_python_values() -> None:
    """What the function gets is of the types it asked for; what is left out is left to the function's own defaults."""
    made = tool(everything)
    values = made.validate({**GOOD, "when": "2024-02-29", "several": ["1", 2.5]})
    assert values["unit"] is Unit.C
    assert values["query"].deeper[0].text == "ho"
    assert values["old"] == {"a": 1, "inner": [Place("q", 2.0)]}
    assert values["when"] == datetime.date(2024, 2, 29)
    assert values["rest"] == {}
    assert "level" not in values
    assert made.invoke(values) == "ok"


@pytest.mark.parametrize(
    ("change", "lines"),
    [
        ({"city": 3}, ["- `city`: found 3; allowed: a string"]),
        ({"unit": "K"}, ["- `unit`: found \"K\"; allowed: 'celsius' or 'fahrenheit'"]),
        ({"query": 7}, ["- `query`: found 7; allowed: an object"]),
        ({"query": {}}, ["- `query.text`: missing"]),
        ({"query": {"text": "x"}}, ['- `query.text`: found "x"; allowed: String should have at least 2 characters']),
        ({"query": {"text": "damn"}}, ["allowed: mind your language"]),
        ({"query": {"text": "hi", "tags": ["z"]}}, ["- `query.tags[0]`: found \"z\"; allowed: 'x' or 'y'"]),
        (
            {"old": {"a": None, "inner": [1]}},
            ["- `old.a`: found null; allowed: an integer", "- `old.inner[0]`: found 1"],
        ),
        ({"either": []}, ["- `either`: found an array of 0; allowed: an integer or a string"]),
        ({"level": 10}, ["- `level`: found 10; allowed: less than or equal to 9"]),
        ({"kind": "c"}, ["- `kind`: found \"c\"; allowed: 'a', 'b' or 3"]),
        ({"when": "tomorrow"}, ['- `when`: found "tomorrow"; allowed: a valid date']),
        ({"zip": 1, "zap": 2}, ["- `zip`: not a known name; allowed: city, unit", "- `zap`: not a known name"]),
        ({"city": 1, "unit": 1, "query": 1, "old": 1, "new": 1, "level": "x"}, ["- and 2 more"]),
        ({"city": {"k" * 500: "v" * 5000}}, ["`city`: found an object with kkk"]),
        ({"rest": {"a": "x"}}, ['- `rest.a`: found "x"; allowed: a number']),
    ],
)
def test_f44_wrong_arguments_are_told_to_the_model(change: dict[str, Any], lines: list[str]) -> None:
    """Which argument, what was found, what is allowed: a few lines without a traceback or the name of a class."""
    result = run_call(tool(everything), ToolCall("c1", "everything", {**GOOD, **change}))
    assert result.is_error
    assert (result.call_id, result.name) == ("c1", "everything")
    for line in lines:
        assert line in result.text
    assert len(result.text.splitlines()) <= 6
    assert len(result.text) < 1200
    for inner in ("Traceback", "Place", "Query", "pydantic", "typed-dict", "instance of"):
        assert inner not in result.text


@pytest.mark.parametrize("arguments", [[], "text", None, 3])
def test_f44_arguments_that_are_no_object(arguments: Any) -> None:
    """Arguments that are no object are a mistake of the model like any other."""
    result = run_call(tool(everything), ToolCall("c", "everything", arguments))
    assert result.is_error
    assert "an object with the arguments by name" in result.text


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
    max_leaves=10,
)


@settings(max_examples=200, deadline=None)
@given(
    st.dictionaries(
        st.sampled_from(["city", "unit", "query", "old", "new", "kind", "either", "several", "rest", "x"]), _JSON
    )
)
def test_f44_no_arguments_make_a_call_raise(arguments: dict[str, Any]) -> None:
    """Whatever the model writes, a result comes back: the function's, or a mistake in a few encodable lines."""
    result = run_call(_EVERYTHING, ToolCall("c", "everything", arguments))
    assert result.is_error or result.text == "ok"
    result.text.encode()
    assert len(result.text) < 1500


_EVERYTHING = tool(everything)


def test_f53_the_errors_own_text_holds_no_argument() -> None:
    """What a caller may log of a mistake names no value of the arguments."""
    with pytest.raises(ArgumentsError) as caught:
        tool(everything).validate({**GOOD, "city": ["canary-4711"], "canary-4712": 1})
    assert "canary" not in str(caught.value)
    assert "canary" not in repr(caught.value)
    assert "canary-4712" in caught.value.feedback


GOOGLE = '"""Add.\n\nArgs:\n    a: The first.\n    b (int): The second.\n\nReturns:\n    int: The sum.\n"""'
NUMPY = (
    '"""Add.\n\nParameters\n----------\na : int\n    The first.\nb : int\n    The second.\n\nReturns\n-------\nint\n"""'
)
SPHINX = '"""Add.\n\n:param a: The first.\n:param int b: The second.\n:returns: The sum.\n"""'


@pytest.mark.parametrize("doc", [GOOGLE, NUMPY, SPHINX])
def test_all_three_styles_of_docstring_are_read(doc: str) -> None:
    """Google, NumPy and Sphinx style give the same tool."""

    def add(a: int, b: int) -> int:
        return a + b

    add.__doc__ = doc.strip('"')
    made = tool(add)
    assert made.description == "Add."
    assert [p["description"] for p in made.parameters["properties"].values()] == ["The first.", "The second."]


@settings(max_examples=200, deadline=None)
@example(": :")
@given(st.text(alphabet=st.sampled_from("ab:-\n *@`()[]\"'\\Args Returns param {}"), max_size=120))
def test_no_docstring_breaks_a_tool(doc: str) -> None:
    """A docstring of any shape gives a description and a schema."""

    def f(a: int = 0) -> int:
        return a

    f.__doc__ = doc
    function = json.loads(json.dumps(tool(f).definition()))["function"]
    assert isinstance(function["description"], str)
    assert set(function["parameters"]["properties"]) == {"a"}


class Cat(BaseModel):
    kind: Literal["cat"]
    lives: int


class Dog(BaseModel):
    kind: Literal["dog"]


def test_schemas_keep_to_keywords_that_engines_know() -> None:
    """Discriminated unions are `anyOf`; look-around, which only pydantic can check, is left out and still checked."""

    def f(pet: Annotated[Cat | Dog, Field(discriminator="kind")], price: Price) -> str:
        return f"{pet.kind} {price}"

    made = tool(f)
    check_schema(made.parameters, what="it")
    assert made.parameters["properties"]["pet"] == {"anyOf": [{"$ref": "#/$defs/Cat"}, {"$ref": "#/$defs/Dog"}]}
    assert "pattern" not in json.dumps(made.parameters)
    assert run_call(made, ToolCall("c", "f", {"pet": {"kind": "dog"}, "price": "1.50"})).text == "dog 1.50"
    result = run_call(made, ToolCall("c", "f", {"pet": {"kind": "cat"}, "price": "."}))
    assert "`pet.lives`: missing" in result.text
    assert "`price`: found" in result.text


def test_an_alias_is_refused() -> None:
    """The model names a parameter as the function does."""

    def f(a: Annotated[int, Field(alias="b")]) -> int:
        return a

    with pytest.raises(SchemaError, match="has an alias"):
        tool(f).definition()


def test_choices_in_a_docstring_are_an_enum() -> None:
    """`(choices: [...])`, as transformers writes them, bound the argument."""

    def paint(colour: str) -> str:
        """Paint.

        Args:
            colour: The colour (choices: ["red", "blue"])
        """
        return colour

    made = tool(paint)
    assert made.parameters["properties"]["colour"]["enum"] == ["red", "blue"]
    with pytest.raises(ArgumentsError):
        made.validate({"colour": "green"})


def _unannotated(a, b: int) -> int: ...  # type: ignore[no-untyped-def]  # that is the point
def _star(*names: str) -> str: ...
def _stars(**options: str) -> str: ...
def _generator(a: int) -> Iterator[int]:
    yield a


async def _async_generator(a: int) -> Any:
    yield a


def _two(a: ToolContext, b: ToolContext) -> str: ...
@pytest.mark.parametrize(
    ("function", "text"),
    [
        (_unannotated, "parameter `a` has no type"),
        (_star, r"parameter `\*names` has no fixed shape"),
        (_stars, r"parameter `\*\*options` has no fixed shape"),
        (_generator, "is a generator"),
        (_async_generator, "is a generator"),
        (_two, "takes ToolContext twice"),
        (print, "no fixed shape"),
        (lambda: 1, "allowed: 1 to 64 letters"),
    ],
)
def test_signatures_that_cannot_be_offered_are_refused_at_once(function: Any, text: str) -> None:
    """The decorator refuses what has no schema, and says how to mend it."""
    with pytest.raises(SchemaError, match=text) as caught:
        tool(function)
    assert caught.value.hint


def test_types_without_a_schema_are_refused_by_name() -> None:
    """A type that has no schema, or is a medium, is refused naming the parameter."""

    def f(a: int, b: subprocess.Popen[bytes]) -> str: ...
    def g(picture: Image) -> str: ...
    def h(number: Decimal) -> str: ...

    for function, name in ((f, "b"), (g, "picture"), (h, "number")):
        with pytest.raises(SchemaError, match=f"`{name}`") as caught:
            tool(function).definition()
        assert caught.value.pointer == f"/properties/{name}"
        assert caught.value.hint


@pytest.mark.parametrize("name", ["", "a b", "a" * 65, "f()", "naïve", "<|im_start|>", "a\n", "a/b", 3, None])
def test_names_that_models_cannot_write_are_refused(name: Any) -> None:
    """A tool is named by letters, digits, `_`, `.` and `-`."""
    with pytest.raises(SchemaError, match="allowed: 1 to 64") as caught:
        Tool(name, "d", None, everything)
    assert caught.value.code == "invalid_name"


@pytest.mark.parametrize(
    "settings_",
    [
        {"timeout": 0},
        {"timeout": -1},
        {"timeout": float("nan")},
        {"timeout": "3"},
        {"timeout": True},
        {"memory": 1 << 30},
        {"description": 3},
    ],
)
def test_settings_are_checked(settings_: dict[str, Any]) -> None:
    """A time limit is a positive number; a memory limit needs a process of its own."""
    with pytest.raises(UsageError):
        tool(**settings_)(everything)


def test_contexts_are_recognised_and_filled_in() -> None:
    """ToolContext is found by annotation: plain, a string, optional, annotated, imported for type checking only."""

    def a(x: int, ctx: ToolContext) -> str:
        return f"{x} {ctx.call.id}"

    def b(ctx: ToolContext | None, x: int) -> str:
        return f"{x} {ctx.call.id if ctx else '-'}"

    def c(ctx: Hidden, x: int) -> str:
        return f"{x} {ctx.call.id}"

    def d(x: int, ctx: Annotated[Optional[ToolContext], "run"] = None) -> str:  # noqa: UP045  # the old spelling
        return f"{x} {ctx.call.id if ctx else '-'}"

    c.__annotations__["ctx"] = "typing_only.ToolContext"
    for function in (a, b, c, d):
        made = tool(function)
        assert made.context_parameter == "ctx"
        assert list(made.parameters["properties"]) == ["x"]
        assert run_call(made, ToolCall("id7", "t", {"x": 1})).text == "1 id7"


class Shop:
    def __init__(self, stock: int) -> None:
        self.stock = stock

    def plain(self, add: int) -> int:
        """Add."""
        return self.stock + add

    @tool
    def decorated(self, add: int) -> int:
        """Add."""
        return self.stock + add

    @classmethod
    @tool
    def of_class(cls, add: int) -> str:
        """Add."""
        return f"{cls.__name__} {add}"

    @staticmethod
    @tool
    def static(add: int) -> int:
        """Add."""
        return add

    def __call__(self, add: int) -> int:
        """Add."""
        return self.stock + add


def test_methods_are_tools_of_their_object() -> None:
    """Bound methods, decorated methods, class and static methods, callable objects, partials; without `self`."""
    shop = Shop(40)
    named = tool(name="shop")(shop)
    part = functools.partial(shop.plain, add=3)
    for value, expected in (
        (shop.plain, "42"),
        (shop.decorated, "42"),
        (Shop.of_class, "Shop 2"),
        (Shop.static, "2"),
        (named, "42"),
        (part, "42"),
    ):
        made = as_tool(value)
        assert list(made.parameters["properties"]) == ["add"]
        assert made.description == "Add."
        assert run_call(made, ToolCall("c", made.name, {"add": 2})).text == expected
    assert Shop(1).decorated(2) == 3
    for value in (Shop.plain, Shop.decorated):
        with pytest.raises(UsageError, match="without its object"):
            as_tool(value)


def test_positional_only_parameters_are_filled_in_by_name() -> None:
    """The model names its arguments; `/` is the function's own affair."""

    def f(a: int, b: int = 2, /, c: int = 3) -> list[int]:
        return [a, b, c]

    made = tool(f)
    assert run_call(made, ToolCall("c", "f", {"a": 1})).text == "[1, 2, 3]"
    assert run_call(made, ToolCall("c", "f", {"c": 9, "b": 8, "a": 7})).text == "[7, 8, 9]"


def test_local_and_later_types_are_found() -> None:
    """String annotations may name types of the enclosing function, and types defined further down."""

    @dataclasses.dataclass
    class Local:
        n: int

    @tool
    def f(local: Local, later: Later | None = None) -> int:
        return local.n

    def g(thing: Missing) -> int:  # type: ignore[name-defined]  # noqa: F821  # that is the point
        return 1

    assert run_call(f, ToolCall("c", "f", {"local": {"n": 5}, "later": {"m": 1}})).text == "5"
    with pytest.raises(SchemaError, match="`thing` cannot be resolved"):
        tool(g).definition()


@dataclasses.dataclass
class Later:
    m: int


def test_a_tool_is_immutable_and_can_be_called() -> None:
    """A decorated function still works as a function; its fields cannot be set; `replace` makes another."""
    made = tool(name="n", timeout=3, side_effects=True)(everything)
    assert made("Bern", Unit.C, None, None, None) == "ok"  # type: ignore[arg-type]  # not looked at
    with pytest.raises(AttributeError):
        made.name = "other"
    other = made.replace(name="m", timeout=None)
    assert (other.name, other.timeout, other.side_effects) == ("m", None, True)
    assert other.parameters == made.parameters
    assert repr(made) == "Tool('n')"


def test_a_set_holds_each_name_once() -> None:
    """Two tools of one name are an error that names both; the definitions are copies in OpenAI's form."""

    def twin(a: int) -> int:
        return a

    tools = ToolSet([everything, twin])
    assert list(tools) == ["everything", "twin"]
    assert tools["twin"].name == "twin"
    assert "other" not in tools
    definitions = tools.definitions()
    assert definitions[1]["function"]["parameters"]["properties"] == {"a": {"type": "integer"}}
    definitions[1]["function"]["name"] = "changed"
    assert tools.definitions()[1]["function"]["name"] == "twin"
    with pytest.raises(UsageError) as caught:
        ToolSet([everything, tool(name="everything")(twin)])
    assert "test_definition.everything" in str(caught.value)
    assert "twin" in str(caught.value)
    for nothing in (3, "everything", int, None):
        with pytest.raises(UsageError, match="allowed: a function or a Tool"):
            ToolSet([nothing])


def test_f44_unknown_tools_are_named_with_what_there_is() -> None:
    """A call of a tool that is not there is answered with the names that are, and the nearest."""
    tools = ToolSet([everything, Shop.static])
    assert "did you mean `everything`?" in tools.unknown("every_thing")
    assert "tools: everything, static" in tools.unknown("<|im_start|>")
    assert len(tools.unknown("x" * 10_000)) < 700
    assert "there are no tools" in ToolSet().unknown("f")


def test_decorating_loads_nothing_heavy() -> None:
    """Importing the tools and decorating a function loads neither pydantic nor the docstring parser nor asyncio."""
    code = (
        "import sys\n"
        "from qwen_agent_kit.tools import tool, Tool, ToolSet\n"
        "@tool\n"
        "def f(a: int, b: list[str] = []) -> str:\n"
        "    '''Do.'''\n"
        "s = ToolSet([f])\n"
        "heavy = ('pydantic', 'pydantic_core', 'docstring_parser', 'asyncio', 'jsonschema', 'numpy', 'subprocess')\n"
        "print([name for name in heavy if name in sys.modules])\n"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"
