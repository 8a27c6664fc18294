"""The command line beside plugins, sound and broken."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from bad_plugins import BAD, GOOD, ROWS
from distributions import HEAD, install, qak

ENGINE = (
    HEAD
    + '''
from qwen_agent_kit import TextDelta
from qwen_agent_kit.backends import Capabilities, EngineSpec, Finish

class Echo:
    """Answers with what it was asked."""

    def __init__(self, rest):
        self.name, self.caps = "echo:" + rest, Capabilities()

    def check(self, request):
        pass

    def stream(self, request):
        yield TextDelta("echo " + request.messages[-1].text)
        yield Finish("stop")

    def close(self):
        pass

@hookimpl
def register_engines():
    return [EngineSpec("echo", Echo)]
'''
)


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with every broken plugin, a sound one, and an engine to run."""
    folder = tmp_path_factory.mktemp("broken")
    for bad in BAD:
        bad.install(folder)
    for name in ("before_step(request)", "on_step(step)", "choose_backend(messages)"):
        hook = name.split("(")[0]
        source = HEAD + f"@hookimpl\ndef {name}:\n    raise ValueError('no')\n"
        install(folder, f"bad-{hook.replace('_', '-')}", {"hooks": hook}, source)
    install(folder, "good-one", {"tools": "good"}, GOOD)
    install(folder, "echo-engine", {"engines": "echo"}, ENGINE)
    return folder


def test_f54_plugins_explains_them_all(broken: Path):
    """`qak plugins` exits well and shows each broken plugin with its error and its cure, once."""
    done = qak("plugins", "--json", site=broken, QAK_PLUGIN_SECONDS="1")
    assert done.returncode == 0, done.stderr
    data = json.loads(done.stdout)
    assert data["schema_version"] == 1
    rows = {row["distribution"]: row for row in data["plugins"]}
    assert len(rows) == len(data["plugins"])
    for bad in BAD:
        row = rows[ROWS[bad.name]]
        assert row["state"] == bad.state
        assert row["error"]
        assert row["cure"]
    assert rows["good-one"]["state"] == "ok"
    table = qak("plugins", site=broken, QAK_PLUGIN_SECONDS="1")
    assert table.returncode == 0, table.stderr
    assert all(ROWS[bad.name] in table.stdout for bad in BAD)
    assert "Traceback" not in table.stdout + table.stderr


def test_f54_run_works_beside_them(broken: Path):
    """`qak run` answers, and says on stderr which hooks failed."""
    done = qak("run", "--model", "echo:x", "hello", site=broken, QAK_PLUGIN_SECONDS="1")
    assert done.returncode == 0, done.stderr
    assert "echo hello" in done.stdout
    assert "shadow" not in done.stdout
    assert "Traceback" not in done.stderr
    assert "bad-before-step" in done.stderr


def test_f54_doctor_works_beside_them(broken: Path):
    """`qak doctor` reports the broken plugins by name and does not crash."""
    done = qak("doctor", site=broken, QAK_PLUGIN_SECONDS="1")
    assert "Traceback" not in done.stderr
    for name in ("bad-raises", "bad-hang", "bad-newer", "bad-hook-raises"):
        assert name in done.stdout + done.stderr


def test_a_plugin_can_be_asked_for_by_hook(tmp_path: Path):
    """`--hook` shows those who implement it; an unknown one is answered with the known ones."""
    install(tmp_path, "good-one", {"tools": "good"}, GOOD)
    install(tmp_path, "echo-engine", {"engines": "echo"}, ENGINE)
    done = qak("plugins", "--hook", "register_engines", "--json", site=tmp_path)
    names = [row["distribution"] for row in json.loads(done.stdout)["plugins"]]
    assert "echo-engine" in names
    assert "good-one" not in names
    wrong = qak("plugins", "--hook", "register_engine", site=tmp_path)
    assert wrong.returncode == 2
    assert "register_engines" in wrong.stderr


def test_a_plugins_command_runs(tmp_path: Path):
    """Its name is in --help and it gets its arguments."""
    source = HEAD + (
        "import click\n@hookimpl\ndef register_commands(cli):\n"
        "    @cli.command('shout')\n    @click.argument('what')\n"
        "    def shout(what):\n        click.echo(what.upper())\n"
    )
    install(tmp_path, "shouter", {"commands": "shout"}, source)
    assert "shout" in qak("--help", site=tmp_path).stdout
    assert qak("shout", "hey", site=tmp_path).stdout == "HEY\n"


def test_a_shadowing_command_never_runs(broken: Path):
    """The core's command keeps its name."""
    done = qak("run", "--help", site=broken)
    assert done.returncode == 0
    assert "shadow" not in done.stdout
    assert "--model" in done.stdout


def test_new_plugin_on_the_command_line(tmp_path: Path):
    """The folder is printed; a second time is a user mistake with exit code 2."""
    done = qak("new-plugin", "pond", "--kind", "modality", site=tmp_path)
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()) == tmp_path / "qwen-agent-kit-pond"
    again = qak("new-plugin", "pond", "--kind", "modality", site=tmp_path)
    assert again.returncode == 2
    assert "already there" in again.stderr
    assert "hint: " in again.stderr
    assert "Traceback" not in again.stderr
