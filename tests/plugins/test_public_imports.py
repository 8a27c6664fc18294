"""Plugins stand on the public modules alone, and never on each other; nor do the tests."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[2]
PUBLIC = frozenset({"backends", "catalog", "errors", "events", "foreign", "hookspecs"}) | frozenset(
    {"media", "messages", "net", "paths", "plugins", "testing", "tools"}
)  # what docs/guides/writing-a-plugin.md lists
SOURCES = sorted(
    path
    for pattern in ("plugins/*/qwen_agent_kit_*.py", "plugins/*/qwen_agent_kit_*/**/*.py", "examples/series/*.py")
    for path in CHECKOUT.glob(pattern)
)

MODALITIES = ("vision", "audio")
TESTS = sorted(path for pattern in ("tests/**/*.py", "plugins/*/tests/*.py") for path in CHECKOUT.glob(pattern))


def imported(tree: ast.AST) -> Iterator[str]:
    """The dotted names that a module imports, wherever the statement stands."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "plugins import by full name"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def faults(text: str, own: str) -> list[str]:
    """The imports in a plugin's source that are neither public nor its own."""
    found = []
    for name in imported(ast.parse(text)):
        top, _, rest = name.partition(".")
        module = rest.split(".")[0]
        lower = module.islower() and (CHECKOUT / "qwen_agent_kit" / module).exists()
        lower = lower or (CHECKOUT / "qwen_agent_kit" / f"{module}.py").exists()
        if (top == "qwen_agent_kit" and lower and module not in PUBLIC) or (
            top.startswith("qwen_agent_kit_") and not top.startswith(own)
        ):
            found.append(name)
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(CHECKOUT)))
def test_a_plugin_imports_public_modules_only(path: Path) -> None:
    """No engine, no models, no host; no other plugin."""
    own = next(part for part in path.relative_to(CHECKOUT).parts[2:] if part.endswith(".py") or "kit" in part)
    own = "qwen_agent_kit_series" if "series" in path.parts else own.removesuffix(".py")
    assert faults(path.read_text(encoding="utf-8"), own) == []


def test_the_check_finds_what_it_forbids() -> None:
    """An engine's module, a submodule of the host, another plugin; not the top level, nor a plugin's own modules."""
    text = (
        "from qwen_agent_kit import engine\nimport qwen_agent_kit.host.media\nfrom qwen_agent_kit_audio import join\n"
    )
    text += "from qwen_agent_kit import Agent, tool\nfrom qwen_agent_kit.media import Workers\n"
    text += "from qwen_agent_kit_vision.items import Item\n"
    assert faults(text, "qwen_agent_kit_vision") == [
        "qwen_agent_kit.engine",
        "qwen_agent_kit.host.media",
        "qwen_agent_kit_audio.join",
    ]
    assert len(SOURCES) > 15


def lent(text: str, own: str) -> list[str]:
    """The modalities besides ``own`` that a test's source imports, or without which it would skip."""
    tree = ast.parse(text)
    names = {name.partition(".")[0] for name in imported(tree)}
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    names |= {ast.unparse(call.args[0])[1:-1] for call in calls if ast.unparse(call.func).endswith("importorskip")}
    return sorted({f"qwen_agent_kit_{modality}" for modality in MODALITIES} & names - {own})


def test_tests_live_with_the_plugin_that_they_need() -> None:
    """`make test-without PLUGIN=...` runs the rest where it is not installed; `integration` needs both."""
    found = {}
    for path in TESTS:
        parts = path.relative_to(CHECKOUT).parts
        found[path] = lent(path.read_text(encoding="utf-8"), f"qwen_agent_kit_{parts[1]}")
    assert not {str(path): names for path, names in found.items() if names}
    assert len(TESTS) > 100


def test_the_check_finds_what_is_lent() -> None:
    """An import, at the top or inside, and a skip; not the plugin's own module."""
    text = "def test():\n    from qwen_agent_kit_audio.decode import decode\n"
    assert lent(text, "qwen_agent_kit_vision") == ["qwen_agent_kit_audio"]
    assert lent(text, "qwen_agent_kit_audio") == []
    skips = 'vision = pytest.importorskip("qwen_agent_kit_vision")\nimport qwen_agent_kit_audio\n'
    assert lent(skips, "qwen_agent_kit_host") == ["qwen_agent_kit_audio", "qwen_agent_kit_vision"]
