"""The text backend covers the text-only families."""

from __future__ import annotations

import qwen_agent_kit_text as plugin

from qwen_agent_kit import Backend
from qwen_agent_kit.catalog import FAMILIES
from qwen_agent_kit.plugins import call_list, load


def test_it_is_offered_once():
    """Installed, it is the backend called `text`, and it accepts text and nothing else."""
    backends = [one for one in call_list(load("backends"), "register_backends", Backend) if one.name == "text"]
    assert [one.accepts for one in backends] == [frozenset({"text"})]


def test_it_covers_every_text_family_of_the_catalog():
    """No text-only family that our engine runs is left without a backend, and none is named that the catalog lacks."""
    (backend,) = plugin.register_backends()
    assert set(backend.families) == {family.name for family in FAMILIES if family.kinds == {"text"} and family.runs}


def test_importing_it_is_light():
    """The module holds data: no torch, no media functions."""
    (backend,) = plugin.register_backends()
    assert (backend.widen, backend.positions, backend.encoder, backend.footprint) == (None, None, None, None)
