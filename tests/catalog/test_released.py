"""The catalogue: every entry states where its facts come from, and what it states agrees with itself."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from qwen_agent_kit import dialects
from qwen_agent_kit.catalog import FAMILIES, RELEASES
from qwen_agent_kit.catalog.released import find, released
from qwen_agent_kit.placement import file_bytes, shape_from_config

TASKS = {"chat", "code", "math", "vision", "audio", "agents"}
ENTRIES = released()


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name)
def test_an_entry_agrees_with_itself(entry):
    """Sizes follow from the configuration, kinds from the towers, and every word is one that the kit knows."""
    shape = shape_from_config(entry.config, entry.name)
    assert (shape.parameters, shape.active_parameters) == (entry.parameters, entry.active)
    kinds = {"text"} | {
        kind for tower in shape.towers for kind in ({"image", "video"}, {"audio"})[tower.kind == "audio"]
    }
    assert kinds == entry.kinds
    assert entry.family in {family.name for family in FAMILIES}
    assert set(entry.releases) <= set(RELEASES)
    assert entry.tasks
    assert set(entry.tasks) <= TASKS
    assert entry.thinking in ("no", "optional", "always")
    assert dialects.get(entry.dialect)
    assert entry.languages
    assert entry.licence
    assert 0 < entry.context <= shape.context
    assert entry.verified == bool(entry.source)


def test_names_are_unique():
    """No two entries answer to one name, releases included."""
    names = [entry.name.casefold() for entry in ENTRIES]
    names += [f"{entry.name}-{release}".casefold() for entry in ENTRIES for release in entry.releases]
    assert len(names) == len(set(names))


def test_an_extension_says_how():
    """Where a model reaches further than it was trained for, the rope scaling that it needs is there, or a note."""
    for entry in ENTRIES:
        if entry.extended > entry.context:
            assert entry.note or (entry.rope or {})["rope_type"] == "yarn", entry.name


def test_models_are_found_by_any_of_their_names():
    """With and without the owner, whatever the case, and by the names of their quantised releases."""
    assert find("qwen3-8b")[0].name == "Qwen/Qwen3-8B"
    assert find("Qwen/Qwen2.5-7B-Instruct-AWQ")[1] == "AWQ"
    assert find("qwen2.5-7b-instruct-gptq-int4")[1] == "GPTQ-Int4"
    assert find("Qwen/Qwen3-8B-of-another-kind") is None


@pytest.mark.parametrize(
    ("name", "scheme", "published"),
    [("Qwen2.5-7B-Instruct", "awq", 5_570_000_000), ("Qwen2.5-7B-Instruct", "bf16", 15_231_233_024)],
)
def test_a_release_has_about_the_size_of_its_files(name, scheme, published):
    """The bytes of the files on the hub, as its pages show them: 15.2 GB and 5.57 GB."""
    assert file_bytes(shape_from_config(find(name)[0].config), scheme) == pytest.approx(published, rel=0.01)


def test_the_catalogue_loads_no_torch():
    """Reading it needs the standard library."""
    code = "import sys, qwen_agent_kit.catalog.released as r; r.released(); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_an_entry_is_data():
    """``to_dict`` is JSON, and says whether the sizes were verified."""
    rows = json.loads(json.dumps([entry.to_dict() for entry in ENTRIES]))
    assert {row["verified"] for row in rows} == {True, False}
