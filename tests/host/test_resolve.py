"""What a user writes as a model, and what it means."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from qwen_agent_kit.backends import EngineSpec
from qwen_agent_kit.catalog import FAMILIES, ModelEntry, dialect_of, family_of
from qwen_agent_kit.errors import ModelError, UsageError
from qwen_agent_kit.host.resolve import resolve

HERE = ModelEntry("tiny", "qwen2", locate=lambda: Path("/here/tiny.gguf"), aliases=("Tiny-1",))
AWAY = ModelEntry("away", "qwen2", locate=lambda: None, hint="`qak models fetch away`")


def engine(*_: Any) -> Any:
    raise AssertionError("resolving opens nothing")


ENGINES = [EngineSpec("other", engine)]


def test_a_catalog_name_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name or alias of an installed model means that model, in any case, also where a file has that name."""
    monkeypatch.chdir(tmp_path)
    Path("tiny").mkdir()
    assert resolve("tiny", [HERE, AWAY], []).path() == Path("/here/tiny.gguf")
    assert resolve("TINY-1", [HERE, AWAY], []).name == "tiny"


def test_a_model_that_is_not_here_says_how_to_get_it() -> None:
    """The error carries the entry's own hint."""
    with pytest.raises(ModelError) as caught:
        resolve("away", [HERE, AWAY], []).path()
    assert caught.value.hint == "`qak models fetch away`"


def test_paths_and_engines(tmp_path: Path) -> None:
    """A directory or file that exists is a path; ``prefix:rest`` an engine."""
    file = tmp_path / "m.gguf"
    file.write_bytes(b"")
    assert resolve(str(file), [], ENGINES).path() == file
    assert resolve(str(tmp_path), [], ENGINES).path() == tmp_path
    found = resolve("other:http://127.0.0.1:8000/v1#name", [], ENGINES)
    assert (found.engine, found.rest) == (ENGINES[0], "http://127.0.0.1:8000/v1#name")


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("", "allowed"),
        ("  ", "allowed"),
        ("a\0b", "allowed"),
        ("x" * 5000, "allowed"),
        (3, "allowed"),
        ("tinny", "did you mean `tiny`"),
        ("nope:rest", "'other'"),
        ("./missing", "no file"),
        ("missing.gguf", "no file"),
    ],
)
def test_what_means_nothing_is_explained(spec: Any, words: str) -> None:
    """The error says what was found, what is allowed and what may have been meant."""
    with pytest.raises((UsageError, ModelError), match=words):
        resolve(spec, [HERE, AWAY], ENGINES)


def test_a_hub_id_is_fetched_only_when_its_files_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Resolving ``owner/name`` touches nothing; offline, its files are an error with a hint."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    target = resolve("Qwen/Qwen3-4B", [HERE], [])
    assert target.name == "Qwen/Qwen3-4B"


@pytest.mark.parametrize(
    ("name", "dialect"),
    [("Qwen3-Coder", "xml"), ("Qwen2.5-7B-Instruct", "hermes"), ("Qwen3-0.6B", "hermes"), ("Qwen3.5-4B", "xml")],
)
def test_the_dialect_is_read_off_the_template(name: str, dialect: str) -> None:
    """What stands in a template inside the call tags tells its format."""
    marks = {"xml": "<tool_call>\n<function=", "hermes": '<tool_call>\n{"name":'}
    assert dialect_of(f"... {marks[dialect]} ... {name}") == dialect
    assert dialect_of("<|im_start|>user") == dialect_of(None) == "generic"


def test_families_do_not_overlap() -> None:
    """Each model type and each GGUF architecture belongs to one family."""
    for names in ([t for f in FAMILIES for t in f.model_types], [g for f in FAMILIES for g in f.gguf]):
        assert len(names) == len(set(names))
    assert family_of("qwen3moe") is family_of("qwen3_moe")
    assert family_of("gpt2") is None
