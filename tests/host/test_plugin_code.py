"""What a backend's code is: keys and values on disk are told apart by it."""

from __future__ import annotations

import functools
import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from qwen_agent_kit.backends import Backend
from qwen_agent_kit.host.joint import joint
from qwen_agent_kit.host.plugin_code import code_of

CODE = "def widen(*given): return 1, 'digest', None\ndef encoder(*given): return None\n"


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """With a module ``smells`` and a package ``feels``."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "smells.py").write_text(CODE)
    (tmp_path / "feels" / "deep").mkdir(parents=True)
    (tmp_path / "feels" / "__init__.py").write_text("from feels.deep.tower import encoder, widen\n")
    (tmp_path / "feels" / "deep" / "tower.py").write_text(CODE)
    yield tmp_path
    for name in [name for name in sys.modules if name.partition(".")[0] in {"smells", "feels"}]:
        del sys.modules[name]


def backend(name: str, **functions: Any) -> Backend:
    module = importlib.import_module(name)
    made = {"widen": module.widen, "encoder": module.encoder} | functions
    return Backend(name, frozenset({"text", name}), ("both",), **made)


@pytest.mark.parametrize(("name", "file"), [("smells", "smells.py"), ("feels", "feels/deep/tower.py")])
def test_the_code_is_what_its_files_hold(site: Path, name: str, file: str) -> None:
    """A change anywhere in the package is another code; what lies beside it is none of it, and no other's."""
    first = code_of(backend(name))
    (site / "stranger.py").write_text("1")
    assert code_of(backend(name)) == first
    (site / file).write_text(CODE + "# another\n")
    changed = code_of(backend(name))
    assert changed != first
    assert code_of(backend(name, widen=functools.partial(backend(name).widen))) == changed  # type: ignore[arg-type]
    (site / file).write_text(CODE)
    assert code_of(backend(name)) == first


def test_backends_together_have_the_code_of_all(site: Path) -> None:
    """A change in either is another code."""
    found = [code_of(joint("both", [backend("smells"), backend("feels")]))]
    for file in ("smells.py", "feels/deep/tower.py"):
        (site / file).write_text(CODE + "# another\n")
        found.append(code_of(joint("both", [backend("smells"), backend("feels")])))
    assert len(set(found)) == 3


def test_functions_of_no_file_are_no_error() -> None:
    """What was typed into a notebook is not covered."""
    names: dict[str, Any] = {"__name__": "typed"}
    exec(CODE, names)
    assert len(code_of(Backend("t", frozenset({"text"}), ("t",), widen=names["widen"], encoder=names["encoder"]))) == 64
