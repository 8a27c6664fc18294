"""What is misused is refused where it is said, and nothing is spent or lost by it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from qwen_agent_kit import Agent, Limits, ToolCall, tool
from qwen_agent_kit.errors import UsageError
from qwen_agent_kit.testing import ScriptedModel


@tool(side_effects=True)
def wipe(name: str) -> str:
    """Wipe a file.

    Args:
        name: Which
    """
    return f"{name} is gone"


def test_an_approval_is_not_spent_on_a_tool_that_is_not_armed(tmp_path: Path) -> None:
    """Resuming with an agent that lacks the tool is an error; the call keeps waiting and runs once it is there."""
    model = ScriptedModel([ToolCall("c1", "wipe", {"name": "a"}), "Done."])
    Agent(model, tools=[wipe]).chat(session="tidy").run("Wipe a")
    with pytest.raises(UsageError, match="'wipe'") as caught:
        Agent(model).chat(session="tidy").resume({"c1": True})
    assert caught.value.code == "tool_not_armed"
    chat = Agent(model, tools=[wipe]).chat(session="tidy")
    assert [call.id for call in chat.pending] == ["c1"]
    assert chat.resume({"c1": True}).output == "Done."
    assert "a is gone" in str([message.to_dict() for message in chat.messages])


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [("steps", 0, "whole number from 1, or None"), ("same_call", 1, "from 2, or"), ("seconds", 0, "above 0, or None")],
)
def test_a_limit_names_its_own_range(field: str, value: int, words: str) -> None:
    """The least value differs by field, and the message says the right one."""
    with pytest.raises(UsageError, match=words):
        Limits(**{field: value})


def test_a_refusal_needs_no_tool() -> None:
    """Refusing a call works without the tool."""
    model = ScriptedModel([ToolCall("c1", "wipe", {"name": "a"}), "As you wish."])
    Agent(model, tools=[wipe]).chat(session="spare").run("Wipe a")
    assert Agent(model).chat(session="spare").resume({"c1": False}).output == "As you wish."


@pytest.mark.parametrize(
    "fields", [{"tools": wipe}, {"tools": 5}, {"models": 5}, {"host": 5}, {"tools": "wipe"}, {"plugins": 5}]
)
def test_wrong_fields_are_named(fields: dict[str, Any]) -> None:
    """A field of the wrong type is a usage error that names it."""
    with pytest.raises(UsageError, match=f"`{next(iter(fields))}`"):
        Agent(ScriptedModel(["x"]), **fields)


def test_strings_where_lists_belong() -> None:
    """A batch of one string would run each letter; a script that is a number has no turns."""
    with pytest.raises(UsageError, match="`prompts` is a string"):
        Agent(ScriptedModel(["x"])).batch("hi")
    with pytest.raises(UsageError, match="`turns` is a int"):
        ScriptedModel(5)  # type: ignore[arg-type]  # the point of the test
