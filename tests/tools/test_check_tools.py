"""``check_tools``, the helper for users' own tests."""

from __future__ import annotations

from typing import Annotated, Any

import isolated_tools
import pytest
from pydantic import AfterValidator, Field

from qwen_agent_kit.errors import UsageError
from qwen_agent_kit.testing.tools import check_tools
from qwen_agent_kit.tools import Tool, ToolContext, tool

RAN: list[Any] = []


def good(city: str, ctx: ToolContext, days: Annotated[int, Field(ge=1)] = 3, extra: Any = None) -> str:
    """Say the weather.

    Args:
        city: Where.
        ctx: The run.
        days: How long.
        extra: What else.
    """
    RAN.append(city)
    return city


def bare(city: str) -> str:
    return city


def stale(city: str) -> str:
    """Say the weather.

    Args:
        town: Where.
    """
    return city


def nothing(flag: bool = False) -> None:
    """Do nothing.

    Args:
        flag: Whether to.
    """
    RAN.append(flag)


def breaks(n: Annotated[int, AfterValidator(lambda value: 1 // 0)]) -> int:
    """Break.

    Args:
        n: A number.
    """
    return n


def unknown_type(thread: RecursionError) -> str:
    """Take it.

    Args:
        thread: It.
    """
    return "x"


def test_good_tools_pass_and_none_is_run() -> None:
    """Well described tools give a report without problems; no tool runs while it is checked."""
    given = Tool(
        "given", "d", {"type": "object", "properties": {"a": {"description": "an a"}}}, lambda **_: RAN.append(1)
    )
    report = check_tools(good, nothing, given)
    assert report.checked == ("good", "nothing", "given")
    assert report.problems == ()
    assert RAN == []


@pytest.mark.parametrize(
    ("tools", "lines"),
    [
        ([bare], ["bare: has no description", "bare: parameter `city` has no description"]),
        ([stale], ["stale: parameter `city` has no description", "stale: the docstring describes `town`"]),
        ([breaks], ["breaks: its validation of ['n'] raises ZeroDivisionError"]),
        ([unknown_type], ["unknown_type: tool `unknown_type`: parameter `thread` has no JSON schema"]),
        ([good, tool(name="good")(nothing)], ["two tools are named 'good'"]),
        ([isolated_tools.add], ["add: parameter `a` has no description", "add: parameter `b` has no description"]),
    ],
)
def test_problems_are_named(tools: list[Any], lines: list[str]) -> None:
    """Each problem is a line that begins with the tool's name; all are listed at once."""
    with pytest.raises(AssertionError) as caught:
        check_tools(*tools)
    for line in lines:
        assert line in str(caught.value)


def test_what_is_no_tool_is_refused() -> None:
    """A value that cannot be a tool is the caller's mistake."""
    with pytest.raises(UsageError):
        check_tools("good")
