"""Plugins are found, allowed and denied by metadata alone."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from bad_plugins import BAD, GOOD
from distributions import HEAD, install, python, qak
from hypothesis import given
from hypothesis import strategies as st

from qwen_agent_kit.plugins.discovery import Lists, command_names, installed, normal, one_line


def test_a_plugin_is_found_under_its_kinds_only(site: Path):
    """A distribution shows up for the kinds that it lists, with name and version."""
    install(site, "shed-tools", {"tools": "shed", "hooks": "shed"}, GOOD, version="3.2.1")
    (found,) = [one for one in installed(("tools",)) if one.name == "shed-tools"]
    assert (found.version, found.kinds) == ("3.2.1", ("tools", "hooks"))
    assert not [one for one in installed(("models",)) if one.name == "shed-tools"]


def test_finding_imports_nothing(site: Path):
    """Discovery and command names leave the module alone."""
    install(site, "asleep", {"commands": "asleep", "tools": "asleep"}, "raise SystemError\n")
    assert command_names()["asleep"] == "asleep"
    assert "asleep" not in sys.modules


def test_of_two_copies_the_importable_one_counts(site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The first on the path is the one that Python would import."""
    install(site, "twice", {"tools": "twice"}, GOOD, version="1.0")
    other = tmp_path / "other"
    install(other, "twice", {"tools": "twice"}, GOOD, version="2.0")
    monkeypatch.setattr(sys, "path", [*sys.path, str(other)])
    assert [one.version for one in installed() if one.name == "twice"] == ["1.0"]


def test_unreadable_metadata_of_a_stranger_stop_nothing(site: Path):
    """A distribution whose files are no text is passed over."""
    folder = site / "stranger-1.0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_bytes(b"\xff\xfe\x00")
    (folder / "entry_points.txt").write_bytes(b"\xff[qwen_agent_kit.tools]\nx = y\n")
    install(site, "beside", {"tools": "beside"}, GOOD)
    assert "beside" in [one.name for one in installed()]


@pytest.mark.parametrize("bad", [bad for bad in BAD if bad.state == "metadata"], ids=lambda bad: bad.name)
def test_broken_metadata_are_found_as_broken(site: Path, bad):
    """What is wrong with the metadata is said; whatever is right in them stays usable."""
    bad.install(site)
    (found,) = [one for one in installed() if "bad" in one.name]
    assert bad.error in found.error
    assert found.error


@pytest.mark.parametrize(
    ("allow", "deny", "off"),
    [
        (None, "", ""),
        ("", "", "not named in QAK_PLUGINS"),
        ("Shed_Tools", "", ""),
        ("saw", "", ""),
        ("other, SAW", "", ""),
        ("other", "", "not named in QAK_PLUGINS"),
        (None, "shed.tools", "named in QAK_PLUGINS_OFF"),
        (None, "x saw", "named in QAK_PLUGINS_OFF"),
        ("saw", "shed-tools", "named in QAK_PLUGINS_OFF"),
    ],
)
def test_lists_name_distributions_or_entry_points(allow: str | None, deny: str, off: str):
    """Names compare as PEP 503 says; an empty allow list allows none; the deny list has the last word."""
    environment = {"QAK_PLUGINS_OFF": deny} | ({} if allow is None else {"QAK_PLUGINS": allow})
    assert Lists.from_environment(environment).why_off("shed-tools", "saw") == off


@given(st.text(alphabet="aZ09-_.", min_size=1, max_size=20))
def test_normal_names_stay_normal(name: str):
    """Normalising twice changes nothing, and separators do not matter."""
    assert normal(normal(name)) == normal(name)
    assert normal(name.replace("_", "-")) == normal(name)


@given(st.text())
def test_one_line_is_one_printable_line(text: str):
    """Whatever a plugin says fits on one line of a terminal and moves no cursor."""
    line = one_line(text, 80)
    assert len(line) <= 80
    assert line.isprintable()


def test_help_with_thirty_slow_plugins(site: Path):
    """`qak --help` lists the commands of 30 plugins that sleep and import torch, without importing one."""
    for n in range(30):
        source = f"import time\ntime.sleep(.2)\nimport torch\nopen('imported-{n}', 'w').close()\n{HEAD}"
        install(site, f"slow-{n}", {"commands": f"slow{n}", "backends": "slow", "hooks": "slow"}, source)
    done = qak("--help", site=site)
    assert done.returncode == 0, done.stderr
    assert all(f"slow{n} " in done.stdout for n in range(30))
    assert not list(site.glob("imported-*"))


def test_f55_what_is_off_is_not_imported(site: Path):
    """A plugin that is denied, or not on the allow list, never reaches sys.modules, whatever is asked for."""
    for name in ("wanted", "denied", "unnamed"):
        install(site, name, dict.fromkeys(("tools", "hooks", "commands", "backends"), name), GOOD)
    code = (
        "import sys\n"
        "from qwen_agent_kit.plugins import KINDS, load, inventory, command, command_names\n"
        "rows = {r.distribution: r for kind in KINDS for r in load(kind).rows}\n"
        "rows |= {r.distribution: r for r in inventory()}\n"
        "command('denied'), command('unnamed'), command_names()\n"
        "print([n for n in ('wanted', 'denied', 'unnamed') if n in sys.modules])\n"
        "print(rows['denied'].state, rows['unnamed'].state, rows['denied'].error, rows['denied'].hooks)\n"
    )
    done = python(code, site, QAK_PLUGINS="wanted denied", QAK_PLUGINS_OFF="Denied")
    assert done.stdout.splitlines() == ["['wanted']", "off off named in QAK_PLUGINS_OFF ()"], done.stderr


def test_only_distributions_of_the_kind_are_imported(site: Path):
    """Loading backends leaves a distribution alone that lists itself under tools."""
    install(site, "toolish", {"tools": "toolish"}, GOOD)
    install(site, "backish", {"backends": "backish"}, HEAD + "@hookimpl\ndef register_backends():\n    return []\n")
    code = (
        "import sys\nfrom qwen_agent_kit.plugins import load\nload('backends')\n"
        "print('toolish' in sys.modules, 'backish' in sys.modules)"
    )
    assert python(code, site).stdout.split() == ["False", "True"]
