"""Which model answers where none is named: a catalog entry for these kinds, else a backend's default that is here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from qwen_agent_kit import Agent, Backend, Host, Sampling, hookimpl
from qwen_agent_kit.catalog import ModelEntry
from qwen_agent_kit.errors import PluginError, UsageError
from qwen_agent_kit.host.routing import default_kinds, drivers
from qwen_agent_kit.testing.models import tiny_model_dir

SMELL = frozenset({"text", "smell"})


class Plugin:
    """Offers backends that cover smells, and entries."""

    def __init__(self, *defaults: str | None, entries: tuple[ModelEntry, ...] = ()) -> None:
        self._defaults, self._entries = defaults, entries

    @hookimpl
    def register_backends(self) -> list[Backend]:
        kinds = (SMELL, SMELL | {"taste"})
        return [
            Backend(f"smell{i}", kinds[i], families=("qwen3",), default=default)
            for i, default in enumerate(self._defaults)
        ]

    @hookimpl
    def register_models(self) -> list[ModelEntry]:
        return [*self._entries]


def host_of(*defaults: str | None, entries: tuple[ModelEntry, ...] = ()) -> Host:
    return Host(plugins=[Plugin(*defaults, entries=entries)])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tiny_model_dir(tmp_path / "here", "qwen3")


def test_a_backends_default_answers_where_it_is_here(folder: Path, tmp_path: Path) -> None:
    """Of two that cover the parts the narrower one's; one that is not here is passed over."""
    other = tiny_model_dir(tmp_path / "other", "qwen3")
    assert host_of(str(folder), str(other)).target(None, SMELL).name == "here"
    assert host_of(str(tmp_path / "gone"), str(other)).target(None, SMELL).name == "other"
    assert host_of(None, str(other)).target(None, SMELL).name == "other"


def test_an_entry_that_answers_goes_first(folder: Path) -> None:
    """It was installed for this; a backend's default is what is left."""
    entry = ModelEntry("roses", "qwen3", kinds=SMELL, locate=lambda: folder, default_for=SMELL)
    assert host_of(str(folder), entries=(entry,)).target(None, SMELL).name == "roses"


def test_a_name_of_an_entry_may_be_the_default(folder: Path) -> None:
    """It counts where the entry's files are here."""
    for here, found in ((folder, "roses"), (None, None)):
        entry = ModelEntry("roses", "qwen3", kinds=SMELL, locate=lambda here=here: here)
        host = host_of("roses", entries=(entry,))
        if found:
            assert host.target(None, SMELL).name == found
        else:
            with pytest.raises(UsageError, match="none installed answers"):
                host.target(None, SMELL)


def test_nothing_is_fetched_unasked() -> None:
    """A default of a hub that is not here is named in the hint, with the command that brings it."""
    with pytest.raises(UsageError, match=r"none installed answers for \['smell', 'text'\]") as error:
        host_of("someone/smells-7b").target(None, SMELL)
    assert "`qak models fetch someone/smells-7b`" in str(error.value.hint)


def test_a_default_that_means_nothing_names_its_backend() -> None:
    """The plugin's mistake, told as one."""
    with pytest.raises(PluginError, match="the backend `smell0` has the default 'no such thing'"):
        host_of("no such thing").target(None, SMELL)


def test_routing_knows_of_it(folder: Path) -> None:
    """The backend is eligible, and a conversation of text may come to hold its kinds."""
    host = host_of(str(folder))
    assert "smell0" in {backend.name for backend in drivers(host, host.backends, (None,))}
    assert default_kinds(host, frozenset({"text"})) >= SMELL
    away = host_of("someone/smells-7b")
    assert "smell" not in default_kinds(away, frozenset({"text"}))


def test_an_agent_without_a_model_answers_with_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Text is among what the backend covers, and no entry answers."""
    monkeypatch.setattr(Host, "entries", property(lambda self: ()))
    with Host(quant="fp32", cache=False, prefixes=False, plugins=[Plugin(str(folder))]) as host:
        agent: Any = Agent(host=host, sampling=Sampling(max_tokens=4, temperature=0.0))
        result = agent.run("Hello")
        assert result.usage.generated_tokens
        assert host.target(None).name == "here"
