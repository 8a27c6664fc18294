"""What `qak new-plugin` writes is complete: it builds, installs, is found, and its tests pass."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from distributions import python, qak

from qwen_agent_kit.cli.new_plugin import KINDS, write_plugin
from qwen_agent_kit.errors import UsageError

PACKAGE = Path(__import__("qwen_agent_kit").__file__).parent


def _tests(folder: Path, *path: Path) -> subprocess.CompletedProcess[str]:
    """Run the plugin's own tests in its folder, warnings as errors."""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, path))}
    command = [sys.executable, "-m", "pytest", "-q", "-W", "error", "-p", "no:cacheprovider"]
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=300, check=False)


def _lint(folder: Path) -> None:
    ruff = Path(sys.executable).with_name("ruff")
    for command in (["check", "--isolated", "--select", "E,F,I,B,UP"], ["format", "--isolated", "--check"]):
        done = subprocess.run(
            [ruff, *command, "--no-cache", "--line-length", "120", "."],
            cwd=folder,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("kind", KINDS)
def test_its_tests_pass(kind: str, tmp_path: Path):
    """The generated tests pass as they are, and there are at least three."""
    folder = write_plugin("river-bank", kind, tmp_path)
    done = _tests(folder, folder)
    assert done.returncode == 0, done.stdout + done.stderr
    assert int(done.stdout.strip().splitlines()[-1].split()[0]) >= 3


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_tidy(kind: str, tmp_path: Path):
    """What is written is formatted and free of lint; its pyproject names module, group and the core's minor."""
    folder = write_plugin("river-bank", kind, tmp_path)
    _lint(folder)
    project = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
    assert project["name"] == "qwen-agent-kit-river-bank"
    assert project["entry-points"] == {f"qwen_agent_kit.{KINDS[kind]}": {"river-bank": "qwen_agent_kit_river_bank"}}
    assert project["dependencies"] == ["qwen-agent-kit==0.1.*"]
    assert "$" not in "".join(p.read_text() for p in folder.rglob("*") if p.is_file())


def _install(folder: Path, target: Path) -> None:
    """As pip does it, from the network's point of view offline."""
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation", "--no-index"]
    done = subprocess.run(
        [*command, "--target", str(target), str(folder)], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "kind", ["tools", *(pytest.param(kind, marks=pytest.mark.full) for kind in KINDS if kind != "tools")]
)
def test_it_installs_and_is_found(kind: str, tmp_path: Path):
    """Built and installed by pip, it is a sound row of `qak plugins`, and its tests pass against what was installed."""
    folder, target = write_plugin("river", kind, tmp_path), tmp_path / "target"
    _install(folder, target)
    code = (
        "from qwen_agent_kit.plugins import inventory\n"
        "print([(r.state, r.kinds, r.hooks) for r in inventory() if r.distribution == 'qwen-agent-kit-river'])\n"
    )
    done = python(code, target)
    expected = [("ok", (KINDS[kind],), (f"register_{KINDS[kind]}",))]
    assert done.stdout.strip() == str(expected), done.stderr
    assert _tests(folder, target).returncode == 0


def test_a_generated_engine_answers_on_the_command_line(tmp_path: Path):
    """`qak run --model NAME:...` reaches the engine of a plugin that was just written and installed."""
    target = tmp_path / "target"
    _install(write_plugin("brook", "engine", tmp_path), target)
    done = qak("run", "--model", "brook:upper", "hello there", site=target)
    assert done.returncode == 0, done.stderr
    assert "HELLO THERE" in done.stdout


@pytest.mark.parametrize(
    "name",
    [
        "",
        "A",
        "1x",
        "a_b",
        "a--b",
        "-a",
        "a-",
        "../x",
        "a/b",
        "a b",
        "a\n",
        "é",
        "x" * 41,
        "import",
        "con.",
        "$name",
        ".",
    ],
)
def test_f50_bad_names_are_refused(name: str, tmp_path: Path):
    """The name is shown with what is allowed, and nothing is written."""
    with pytest.raises(UsageError, match="plugin name") as caught:
        write_plugin(name, "tools", tmp_path)
    assert caught.value.code == "invalid_name"
    assert not list(tmp_path.iterdir())


def test_what_is_there_is_left_alone(tmp_path: Path):
    """An existing directory is refused, and its content stays."""
    folder = write_plugin("lake", "tools", tmp_path)
    (folder / "README.md").write_text("mine")
    with pytest.raises(UsageError, match="already there"):
        write_plugin("lake", "engine", tmp_path)
    assert (folder / "README.md").read_text() == "mine"


def test_the_long_name_means_the_same(tmp_path: Path):
    """A distribution's full name is taken for what it is."""
    assert write_plugin("qwen-agent-kit-sea", "tools", tmp_path).name == "qwen-agent-kit-sea"


def test_an_unknown_kind_is_refused(tmp_path: Path):
    """The kinds are named."""
    with pytest.raises(UsageError, match="modality, tools, engine"):
        write_plugin("sea", "toolz", tmp_path)
