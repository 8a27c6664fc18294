"""``qak new-plugin``: write a complete plugin to start from, with a test that passes."""

from __future__ import annotations

import keyword
import re
from importlib import resources
from pathlib import Path
from string import Template

import click

from qwen_agent_kit.cli.output import json_option, note, print_json
from qwen_agent_kit.errors import UsageError

__all__ = ["KINDS", "new_plugin_command", "write_plugin"]

# What each kind offers: its entry-point group, and how the generated files name things.
KINDS = {"modality": "backends", "tools": "tools", "engine": "engines"}
_NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
_MOST = 40


@click.command("new-plugin")
@click.argument("name")
@click.option("--kind", type=click.Choice(list(KINDS)), required=True, help="What the plugin offers.")
@json_option
def new_plugin_command(name: str, kind: str, as_json: bool) -> None:
    """Write a plugin called NAME into ./qwen-agent-kit-NAME."""
    folder = write_plugin(name, kind, Path.cwd())
    if as_json:
        print_json({"path": str(folder), "kind": kind})
        return
    click.echo(folder)
    note(f"next: pip install --editable {folder.name}  and  python -m pytest {folder.name}")


def write_plugin(name: str, kind: str, where: Path) -> Path:
    """Write the plugin's files.

    Args:
        name: Lower-case words joined by ``-``; the distribution becomes ``qwen-agent-kit-NAME``.
        kind: ``modality``, ``tools`` or ``engine``.
        where: The directory that gets the new one.

    Returns:
        The new directory.

    Raises:
        UsageError: Where the name or kind is not allowed, or the directory exists.
    """
    if kind not in KINDS:
        raise UsageError(f"plugin kind is {kind!r}; allowed: {', '.join(KINDS)}")
    words = _words(name)
    folder = where / f"qwen-agent-kit-{words['name']}"
    try:
        folder.mkdir()
    except FileExistsError:
        raise UsageError(
            f"`{folder.name}` is already there", hint="choose another name, or move it away", code="exists"
        ) from None
    except OSError as error:
        raise UsageError(
            f"cannot make `{folder}`: {error.strerror}", hint="change to a directory you can write"
        ) from error
    (folder / "tests").mkdir()
    words["group"] = f"qwen_agent_kit.{KINDS[kind]}"
    for template, target in (
        ("pyproject.toml", "pyproject.toml"),
        (f"{kind}_readme.md", "README.md"),
        (f"{kind}_module.py", f"{words['module']}.py"),
        (f"{kind}_test.py", f"tests/test_{words['word']}.py"),
    ):
        (folder / target).write_text(_fill(template, words), encoding="utf-8")
    return folder


def _words(name: str) -> dict[str, str]:
    """How a plugin's name is written in the places that need it."""
    bare = name.removeprefix("qwen-agent-kit-")
    word = bare.replace("-", "_")
    if not _NAME.fullmatch(bare) or len(bare) > _MOST or keyword.iskeyword(word):
        raise UsageError(
            f"the plugin name is {name[:80]!r}; allowed: up to {_MOST} lower-case letters and digits, in words joined "
            "by `-`, beginning with a letter, no Python keyword",
            hint="for example `qak new-plugin weather --kind tools`",
            code="invalid_name",
        )
    return {"name": bare, "word": word, "module": f"qwen_agent_kit_{word}", "minor": _minor()}


def _minor() -> str:
    """The core's minor version, which the plugin requires."""
    from qwen_agent_kit import __version__

    return ".".join(__version__.split(".")[:2])


def _fill(template: str, words: dict[str, str]) -> str:
    text = resources.files("qwen_agent_kit.cli").joinpath("templates", f"{template}.txt").read_text(encoding="utf-8")
    return Template(text).substitute(words)
