"""The options that ``run``, ``chat`` and ``pipeline`` share, and the agent they make."""

from __future__ import annotations

import contextlib
import json
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qwen_agent_kit.cli import process
from qwen_agent_kit.cli.toolfiles import load_tool
from qwen_agent_kit.errors import MediaError, UsageError

if TYPE_CHECKING:
    from qwen_agent_kit.agent import Agent
    from qwen_agent_kit.messages import Media, ToolCall

__all__ = [
    "agent_options",
    "lone_agent_options",
    "media_parts",
    "open_agent",
    "parse_thinking",
    "quant_option",
    "read_schema",
]

MAX_SCHEMA = 4 * 2**20

quant_option = click.option(
    "--quant",
    type=click.Choice(["auto", "fp32", "bf16", "int8", "int4"]),
    metavar="SCHEME",
    help="auto, fp32, bf16, int8 or int4.",
)

_SESSION = click.option("--session", metavar="NAME", help="Keep the conversation under this name and go on with it.")
_OPTIONS = (
    click.option("--model", "-m", metavar="SPEC", help="A name, a path, engine:spec or a hub id."),
    click.option(
        "--tool", "-t", "tools", multiple=True, metavar="TOOL", help="module:function, file.py:function or a name."
    ),
    click.option("--system", "-s", metavar="TEXT", help="The system message."),
    _SESSION,
    click.option("--thinking", metavar="on|off|TOKENS", help="Whether the model thinks first, or for how many tokens."),
    click.option("--tool-choice", default="auto", metavar="CHOICE", help="auto, required, none or a tool's name."),
    click.option("--max-tokens", type=int, metavar="N", help="The most tokens per step."),
    click.option("--max-steps", type=int, metavar="N", help="The most turns of the model."),
    click.option("--max-seconds", type=float, metavar="S", help="The most time for an answer."),
    click.option("--temperature", type=float, metavar="T", help="0 is greedy."),
    click.option("--seed", type=int, metavar="N", help="Makes drawing repeatable."),
    quant_option,
    click.option("--adapter", metavar="DIR", help="A LoRA adapter beside the model, as `peft` saves it."),
    click.option("--yes", is_flag=True, help="Approve tools with side effects without asking."),
)


def agent_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the shared options to a command."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def lone_agent_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the shared options to a command whose runs are no conversations."""
    for option in reversed(_OPTIONS):
        if option is not _SESSION:
            command = option(command)
    return command


@contextlib.contextmanager
def open_agent(
    options: dict[str, Any], *, output: Any = None, ask: Callable[[ToolCall], bool | str | None] | None = None
) -> Iterator[Agent]:
    """The agent that the shared options describe; its engines stop with the block.

    Args:
        options: By the names of the parameters.
        output: As ``Agent`` takes it.
        ask: Puts a call of a tool with side effects to a person; None where nobody can answer.

    Raises:
        UsageError: Where an option's value is not allowed.
    """
    from qwen_agent_kit.agent import Agent, Limits
    from qwen_agent_kit.backends import Sampling
    from qwen_agent_kit.host import Host
    from qwen_agent_kit.host.tuning import own_process

    def approve(call: ToolCall) -> bool | str | None:
        tool = next((tool for tool in agent.tools if tool.name == call.name), None)
        if options["yes"] or tool is None or not tool.side_effects:
            return True
        return None if ask is None else ask(call)

    limits = {"steps": options["max_steps"], "seconds": options["max_seconds"]}
    if process.begun():
        own_process()
    adapters = {} if options["adapter"] is None else {options["adapter"]: options["adapter"]}
    with Host(quant=options["quant"], adapters=adapters) as host:
        agent = Agent(
            options["model"],
            tools=[load_tool(name) for name in options["tools"]],
            system=options["system"],
            output=output,
            sampling=Sampling(
                temperature=options["temperature"], seed=options["seed"], max_tokens=options["max_tokens"]
            ),
            limits=Limits(**{name: value for name, value in limits.items() if value is not None}),
            thinking=parse_thinking(options["thinking"]),
            tool_choice=options["tool_choice"],
            approve=approve,
            adapter=options["adapter"],
            host=host,
        )
        yield agent


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
    if text.isascii() and text.isdigit() and len(text) < 10:
        return int(text)
    raise UsageError(f"`--thinking` is {text[:40]!r}; allowed: on, off or a number of tokens")


def media_parts(images: tuple[str, ...], audio: tuple[str, ...], video: tuple[str, ...]) -> list[Media]:
    """The media named on the command line, in the order images, audio, video.

    Raises:
        MediaError: Where a file is not there or is no regular file.
    """
    from qwen_agent_kit.messages import Audio, Image, Video

    kinds = ((Image, images), (Audio, audio), (Video, video))
    return [kind(_source(kind.kind, source)) for kind, sources in kinds for source in sources]


def _source(kind: str, source: str) -> str:
    if source[:5].lower() == "data:" or "://" in source[:16]:
        return source
    path = Path(source).expanduser()
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "not a path"
        raise MediaError(f"cannot read the {kind} `{source[:200]}`: {reason}", hint="check the path") from error
    if not stat.S_ISREG(mode):
        what = "a directory" if stat.S_ISDIR(mode) else "no regular file"
        raise MediaError(f"the {kind} `{source[:200]}` is {what}", hint="name one file; the option may be repeated")
    return str(path)


def read_schema(text: str | None) -> dict[str, Any] | None:
    """A JSON schema, given as text or as the path of a file.

    Raises:
        UsageError: Where it is neither.
    """
    if text is None:
        return None
    allowed = "allowed: a JSON schema or the path of one"
    try:
        source = text if text.lstrip().startswith(("{", "[")) else _read_text(Path(text).expanduser())
        data = json.loads(source)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8"
        raise UsageError(f"`--output-schema` is {text[:80]!r}; {allowed}", hint=f"{reason}: check the path") from error
    except (ValueError, RecursionError) as error:
        where = f"line {error.lineno}, column {error.colno}" if isinstance(error, json.JSONDecodeError) else "nesting"
        raise UsageError(f"`--output-schema` holds no JSON ({where}); {allowed}", hint="check the JSON") from error
    if not isinstance(data, dict):
        hint = 'as in \'{"type": "object", "properties": {...}}\''
        raise UsageError(f"`--output-schema` holds a {type(data).__name__}; allowed: an object", hint=hint)
    return data


def _read_text(path: Path) -> str:
    with path.open(encoding="utf-8") as file:
        text = file.read(MAX_SCHEMA + 1)
    if len(text) > MAX_SCHEMA:
        raise UsageError(f"`--output-schema` has more than {MAX_SCHEMA} characters")
    return text
