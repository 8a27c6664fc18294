"""The commands beside ``run`` and ``chat``: models, plan, sessions, doctor, bench."""

from __future__ import annotations

import json
from pathlib import Path

from distributions import HEAD, install
from scripted_cli import run_qak, scripted

from qwen_agent_kit import Media, Message, Text
from qwen_agent_kit.store import Position, Store


def _json(*arguments: str, site: Path, code: int = 0, **environment: str) -> dict:
    done = run_qak(*arguments, "--json", site=site, **environment)
    assert done.returncode == code, done.stderr
    data = json.loads(done.stdout)
    assert data["schema_version"] == 1
    return data


def test_models(site: Path, real_home: Path) -> None:
    """The list says what is here; fetching what is here gives its path and fetches nothing."""
    rows = {row["name"]: row for row in _json("models", site=site)["models"]}
    assert rows["smollm2"]["here"] is True
    fetched = _json("models", "fetch", "SMOLLM2", site=site)
    assert fetched["name"] == "smollm2"
    assert Path(fetched["path"]).stat().st_size == 98_362_432
    table = run_qak("models", site=site)
    assert "smollm2" in table.stdout
    assert "hub id" in table.stderr


def test_a_model_that_is_not_here(site: Path) -> None:
    """The list says how to get it."""
    rows = {row["name"]: row for row in _json("models", site=site)["models"]}
    assert (rows["smollm2"]["here"], rows["smollm2"]["hint"]) == (False, "qak models fetch smollm2")


def test_fetching_reports_on_stderr(site: Path) -> None:
    """A plugin's progress goes to stderr, and only the path to stdout, also where the plugin prints."""
    source = HEAD + (
        "from pathlib import Path\nfrom qwen_agent_kit.catalog import ModelEntry\n"
        "def fetch(report):\n    report('half way')\n    print('loud')\n    return Path('/somewhere')\n"
        "@hookimpl\ndef register_models():\n"
        "    print('loud')\n"
        "    return [ModelEntry('pond', 'qwen3', locate=lambda: None, fetch=fetch), ModelEntry('lake', 'qwen3')]\n"
    )
    install(site, "pond-models", {"models": "pond"}, source)
    done = run_qak("models", "fetch", "pond", site=site)
    assert (done.returncode, done.stdout) == (0, "/somewhere\n")
    assert "half way" in done.stderr
    cannot = run_qak("models", "fetch", "lake", site=site)
    assert cannot.returncode == 2
    assert "cannot be fetched" in cannot.stderr


def test_plan(site: Path, real_home: Path) -> None:
    """The plan names the scheme and the bytes; one that cannot fit is exit code 1 with the reason."""
    data = _json("plan", "smollm2", "--context", "1024", "--quant", "int8", site=site)
    assert (data["scheme"], data["context"], data["feasible"]) == ("int8", 1024, True)
    assert "int8" in run_qak("plan", "--quant", "int8", site=site).stdout
    huge = run_qak("plan", "smollm2", "--context", "1000000000", site=site)
    assert huge.returncode in (1, 2)
    assert "Traceback" not in huge.stderr
    assert "1,000,000,000" in huge.stdout + huge.stderr or "1000000000" in huge.stdout + huge.stderr


def test_sessions(site: Path) -> None:
    """List, show, export, delete and purge, each as text and as JSON."""
    for name in ("one", "two", "three"):
        spec = scripted(site, "turns = ['hello \\x1b[31m']\n")
        assert run_qak("run", f"I am {name}", "-m", spec, "--session", name, site=site).returncode == 0
    assert [row["name"] for row in _json("sessions", site=site)["sessions"]] == ["three", "two", "one"]
    assert _json("sessions", "list", site=site) == _json("sessions", site=site)
    assert "three" in run_qak("sessions", site=site).stdout
    assert run_qak("sessions", "show", "one", site=site).stdout == "user: I am one\nassistant: hello \x1b[31m\n"
    exported = json.loads(run_qak("sessions", "export", "one", site=site).stdout)
    assert exported == _json("sessions", "show", "one", site=site)
    assert exported["messages"][0]["parts"] == [{"type": "text", "text": "I am one"}]
    assert _json("sessions", "delete", "one", site=site)["deleted"] == ["one"]
    assert _json("sessions", "purge", "--keep", "1", site=site)["deleted"] == ["two"]
    assert "deleted 1" in run_qak("sessions", "purge", "--all", site=site).stderr
    nothing = run_qak("sessions", site=site)
    assert (nothing.returncode, nothing.stdout) == (0, "")
    assert "no conversation" in nothing.stderr


def test_doctor(site: Path, real_home: Path) -> None:
    """A sound installation: every check is ok and the exit code is 0."""
    data = _json("doctor", "--cache", site=site)
    checks = {row["what"]: row for row in data["checks"]}
    assert {"python", "memory", "data directory", "settings", "torch", "model smollm2"} <= set(checks)
    assert all(row["state"] in ("ok", "off", "missing") for row in checks.values())
    assert checks["model smollm2"]["state"] == "ok"
    assert "MiB" in checks["cache models"]["found"]


def test_doctor_says_what_is_broken(site: Path, private_home: Path) -> None:
    """A package that does not import, settings that are refused, a model whose plugin breaks: rows with a cure."""
    (site / "gguf.py").write_text("raise OSError('libgguf.so: cannot open')\n")
    (private_home / "data").mkdir()
    (private_home / "data" / "config.toml").write_text("colour = 'red'\n")
    source = HEAD + (
        "from qwen_agent_kit.catalog import ModelEntry\nprint('loud')\n"
        "@hookimpl\ndef register_models():\n    return [ModelEntry('pond', 'qwen3', locate=lambda: 1 / 0)]\n"
    )
    install(site, "pond-models", {"models": "pond"}, source)
    checks = {row["what"]: row for row in _json("doctor", site=site, code=1)["checks"]}
    assert checks["gguf"]["state"] == "broken"
    assert "cannot open" in checks["gguf"]["found"]
    assert checks["gguf"]["cure"]
    assert checks["settings"]["state"] == "broken"
    assert "colour" in checks["settings"]["found"]
    table = run_qak("doctor", site=site)
    assert table.returncode == 1
    assert "need attention: " in table.stderr
    (private_home / "data" / "config.toml").unlink()
    checks = {row["what"]: row for row in _json("doctor", site=site, code=1)["checks"]}
    assert checks["model pond"]["state"] == "broken"


def test_doctor_reads_the_conversations(site: Path, private_home: Path) -> None:
    """A store that is no database is a row with a cure; a sound one says how many conversations it holds."""
    folder = private_home / "data" / "sessions"
    folder.mkdir(parents=True)
    (folder / "store.sqlite3").write_bytes(b"no database" * 100)
    checks = {row["what"]: row for row in _json("doctor", site=site, code=1)["checks"]}
    assert checks["sessions"]["state"] == "broken"
    assert checks["sessions"]["cure"]
    (folder / "store.sqlite3").unlink()
    assert "sessions" not in {row["what"] for row in _json("doctor", site=site)["checks"]}


def test_doctor_where_nothing_can_be_written(site: Path) -> None:
    """A root that cannot be is told with its cure, and the other checks are made."""
    checks = {row["what"]: row for row in _json("doctor", "--cache", site=site, code=1, QAK_HOME="/dev/null")["checks"]}
    assert checks["data directory"]["state"] == "broken"
    assert "QAK_HOME" in checks["data directory"]["cure"]
    assert checks["torch"]["state"] == "ok"


def test_f61_settings_that_are_refused(site: Path, private_home: Path) -> None:
    """A wrong key in config.toml is exit code 2 with key and line, and no secret is shown."""
    (private_home / "data").mkdir()
    (private_home / "data" / "config.toml").write_text("hub_token = 'hf_canary'\nmodell = 'x'\n")
    done = run_qak("run", "hi", "-m", scripted(site, "turns = ['x']\n"), site=site)
    assert done.returncode == 2
    assert "modell" in done.stderr
    assert "line 2" in done.stderr
    assert "hf_canary" not in done.stderr + done.stdout


def test_bench_loop(site: Path) -> None:
    """The loop's cost is measured: rows with value, unit and promise, the exit code says whether all were kept."""
    done = run_qak("bench", "loop", "--steps", "60", "--repeats", "1", "--json", site=site)
    assert done.returncode in (0, 1), done.stderr
    data = json.loads(done.stdout)
    assert data["schema_version"] == 1
    assert all(row["value"] > 0 for row in data["rows"])
    assert any("step 60" in row["name"] for row in data["rows"])
    assert done.returncode == (0 if all(row["ok"] for row in data["rows"]) else 1)


SCANS = (
    HEAD
    + """
from qwen_agent_kit import Backend, Media


class Scan(Media):
    kind = "scan"


@hookimpl
def register_backends():
    return [Backend("scans", frozenset({"text", "scan"}), parts=(Scan,))]
"""
)


def test_a_session_may_hold_the_part_of_a_plugin(site: Path) -> None:
    """It is shown and exported where the plugin is installed; where it is not, that is what the error says."""

    class Scan(Media):
        kind = "scan"

    Store().append("drive", [Message("user", (Scan(b"bytes"), Text("what?")))], Position())
    gone = run_qak("sessions", "show", "drive", site=site)
    assert gone.returncode != 0
    assert "install the plugin" in gone.stderr
    install(site, "some-scans", {"backends": "scans"}, SCANS)
    assert run_qak("sessions", "show", "drive", site=site).stdout == "user: what? [scan]\n"
    (exported,) = json.loads(run_qak("sessions", "export", "drive", site=site).stdout)["messages"]
    assert exported["parts"][0] == {"type": "scan", "data": "Ynl0ZXM="}
