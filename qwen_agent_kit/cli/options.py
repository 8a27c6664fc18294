"""The options that ``run`` and ``chat`` share, and the agent they make."""

from __future__ import annotations

import importlib
import importlib.util
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qwen_agent_kit.errors import UsageError

if TYPE_CHECKING:
    from qwen_agent_kit.agent import Agent
    from qwen_agent_kit.messages import Media, ToolCall

__all__ = ["agent_options", "make_agent", "media_parts", "parse_thinking"]

_OPTIONS = (
    click.option("--model", "-m", metavar="SPEC", help="A name, a path, engine:spec or a hub id."),
    click.option(
        "--tool", "-t", "tools", multiple=True, metavar="TOOL", help="module:function, file.py:function or a name."
    ),
    click.option("--system", "-s", metavar="TEXT", help="The system message."),
    click.option("--session", metavar="NAME", help="Keep the conversation under this name and go on with it."),
    click.option("--thinking", metavar="on|off|TOKENS", help="Whether the model thinks first, or for how many tokens."),
    click.option("--tool-choice", default="auto", metavar="CHOICE", help="auto, required, none or a tool's name."),
    click.option("--max-tokens", type=int, metavar="N", help="The most tokens per step."),
    click.option("--temperature", type=float, metavar="T", help="0 is greedy."),
    click.option("--seed", type=int, metavar="N", help="Makes drawing repeatable."),
    click.option("--quant", default="auto", metavar="SCHEME", help="auto, fp32, bf16, int8 or int4."),
    click.option("--yes", is_flag=True, help="Approve tools with side effects without asking."),
)


def agent_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the shared options to a command."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def make_agent(
    options: dict[str, Any], *, output: Any = None, approve: Callable[[ToolCall], Any] | None = None
) -> Agent:
    """The agent that the shared options describe.

    Raises:
        UsageError: Where an option's value is not allowed.
    """
    from qwen_agent_kit.agent import Agent
    from qwen_agent_kit.backends import Sampling
    from qwen_agent_kit.host import Host

    host = Host(quant=options["quant"])
    sampling = Sampling(temperature=options["temperature"], seed=options["seed"], max_tokens=options["max_tokens"])
    return Agent(
        options["model"],
        tools=[_load_tool(name) for name in options["tools"]],
        system=options["system"],
        output=output,
        sampling=sampling,
        thinking=parse_thinking(options["thinking"]),
        tool_choice=options["tool_choice"],
        approve=(lambda _call: True) if options["yes"] else approve,
        host=host,
    )


def parse_thinking(text: str | None) -> bool | int | None:
    """None, on, off or a number of tokens.

    Raises:
        UsageError: For anything else.
    """
    if text is None:
        return None
    if text.lower() in ("on", "true", "yes"):
        return True
    if text.lower() in ("off", "false", "no"):
        return False
    if text.isascii() and text.isdigit() and 0 < int(text) < 2**31:
        return int(text)
    raise UsageError(f"`--thinking` is {text!r}; allowed: on, off or a number of tokens")


def media_parts(images: tuple[str, ...], audio: tuple[str, ...], video: tuple[str, ...]) -> list[Media]:
    """The media named on the command line, in the order images, audio, video."""
    from qwen_agent_kit.messages import Audio, Image, Video

    return [*map(Image, images), *map(Audio, audio), *map(Video, video)]


def read_schema(text: str | None) -> dict[str, Any] | None:
    """A JSON schema, given as text or as the path of a file.

    Raises:
        UsageError: Where it is neither.
    """
    if text is None:
        return None
    try:
        source = text if text.lstrip().startswith("{") else Path(text).read_text(encoding="utf-8")
        data = json.loads(source)
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(
            f"`--output-schema` is {text[:80]!r}; allowed: a JSON schema or the path of one", hint=str(error)[:120]
        ) from error
    if not isinstance(data, dict):
        raise UsageError(f"`--output-schema` holds a {type(data).__name__}; allowed: an object")
    return data


def _load_tool(name: str) -> Any:
    if ":" not in name:
        return name
    place, _, attribute = name.rpartition(":")
    module = _load_file(Path(place)) if place.endswith(".py") else _load_module(place)
    value = module
    for part in attribute.split("."):
        value = getattr(value, part, None)
    if value is None:
        raise UsageError(f"`{place}` has no {attribute!r}", hint="write --tool file.py:function")
    return value


def _load_module(name: str) -> Any:
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UsageError(f"cannot import the tool's module `{name}`: {error}", hint="check the name") from error


def _load_file(path: Path) -> Any:
    if not path.is_file():
        raise UsageError(f"there is no file `{path}`", hint="write --tool file.py:function")
    name = f"qak_tool_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path.resolve())
    assert spec is not None, "a path that ends in .py has a loader"
    assert spec.loader is not None, "a path that ends in .py has a loader"
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # the user's file may raise anything; it is theirs to mend
        raise UsageError(f"`{path}` failed while it was read: {type(error).__name__}: {error}") from error
    return module
