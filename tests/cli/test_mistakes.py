"""What a user can do wrong: each mistake is one clear message with a cure, an exit code, and no traceback."""

from __future__ import annotations

import resource
import stat
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from scripted_cli import environment_of, run_qak, scripted

CANARY = "xylophone-4711"


@dataclass(frozen=True)
class Mistake:
    """A wrong invocation.

    Args:
        arguments: ``SPEC`` stands for a model that answers.
        says: What the message must hold.
        code: The exit code.
    """

    name: str
    arguments: tuple[str, ...]
    says: tuple[str, ...]
    code: int = 2
    stdin: bytes = b""
    environment: dict[str, str] = field(default_factory=dict)


def run(*arguments: str) -> tuple[str, ...]:
    return ("run", CANARY, "-m", "SPEC", *arguments)


MISTAKES = (
    Mistake("unknown command", ("rum",), ("rum",)),
    Mistake("unknown flag", run("--temprature", "1"), ("--temprature", "--temperature")),
    Mistake("flag without a value", ("run", "--model"), ("--model",)),
    Mistake("two prompts", run("another"), ("another",)),
    Mistake("not a number", run("--max-tokens", "many"), ("many", "--max-tokens")),
    Mistake("max-tokens out of range", run("--max-tokens", "-1"), ("max_tokens", "-1")),
    Mistake("temperature out of range", run("--temperature", "nan"), ("temperature", "nan")),
    Mistake("steps out of range", run("--max-steps", "0"), ("steps", "0")),
    Mistake("unknown quant", run("--quant", "int3"), ("int3", "int4")),
    Mistake("wrong thinking", run("--thinking", "maybe"), ("maybe", "on, off")),
    Mistake("wrong tool choice", run("--tool-choice", "zoom"), ("zoom", "auto")),
    Mistake("required without tools", run("--tool-choice", "required"), ("required", "tools")),
    Mistake("no prompt", ("run", "-m", "SPEC"), ("no prompt", "hint: ")),
    Mistake("blank prompt", ("run", " \n ", "-m", "SPEC"), ("no prompt", "hint: ")),
    Mistake("huge stdin", run(), ("16777216", "hint: "), stdin=b"a" * (16 * 2**20 + 1)),
    Mistake("latin-1 stdin", run(), ("not UTF-8", "byte 3", "hint: "), stdin="caf\xe9".encode("latin-1")),
    Mistake("prompt of broken bytes", ("run", "caf\udce9", "-m", "SPEC"), ("not UTF-8", "hint: ")),
    Mistake("unknown model", ("run", CANARY, "-m", "smollm3"), ("smollm3", "smollm2")),
    Mistake("chat with an unknown model", ("chat", "-m", "smollm3"), ("smollm3", "smollm2")),
    Mistake("chat with a bad session", ("chat", "-m", "SPEC", "--session", "../x"), ("session name",)),
    Mistake("empty model", ("run", CANARY, "-m", " "), ("' '",)),
    Mistake("missing model file", ("run", CANARY, "-m", "./none.gguf"), ("none.gguf", "hint: ")),
    Mistake("no model file", ("run", CANARY, "-m", "script_0.py"), ("script_0.py",), code=1),
    Mistake("unknown engine", ("run", CANARY, "-m", "vllm:x"), ("vllm", "scripted", "hint: ")),
    Mistake("model not fetched", ("run", CANARY), ("smollm2", "qak models fetch smollm2"), code=1),
    Mistake("unknown tool", run("--tool", "zooom"), ("zooom", "hint: ")),
    Mistake("tool without a function", run("--tool", "tools.py"), ("tools.py", "hint: ")),
    Mistake("missing tool file", run("--tool", "nothing.py:f"), ("nothing.py", "hint: ")),
    Mistake("missing tool function", run("--tool", "tools.py:subtract"), ("subtract", "hint: ")),
    Mistake("missing tool module", run("--tool", "no_such_module:f"), ("no_such_module", "hint: ")),
    Mistake("a tool that is none", run("--tool", "tools.py:number"), ("int", "function")),
    Mistake("tool file that raises", run("--tool", "raises.py:f"), ("raises.py", "line 2", "ValueError", "hint: ")),
    Mistake("tool module that raises", run("--tool", "raises:f"), ("raises.py", "line 2", "ValueError", "hint: ")),
    Mistake("tool file that exits", run("--tool", "exits.py:f"), ("exits.py", "SystemExit")),
    Mistake("tool file of bad syntax", run("--tool", "syntax.py:f"), ("syntax.py", "line 1")),
    Mistake("tool without types", run("--tool", "untyped.py:f"), ("x", "hint: ")),
    Mistake("same tool twice", run("--tool", "tools.py:add", "--tool", "tools.py:add"), ("add",)),
    Mistake("missing image", run("--image", "none.png"), ("none.png", "hint: ")),
    Mistake("directory as image", run("--image", "."), ("directory", "hint: ")),
    Mistake("pipe as audio", run("--audio", "fifo"), ("no regular file", "hint: ")),
    Mistake("image for a text model", run("--image", "tools.py"), ("image",)),
    Mistake("missing schema file", run("--output-schema", "none.json"), ("none.json", "hint: ")),
    Mistake("directory as schema", run("--output-schema", "."), ("--output-schema", "hint: ")),
    Mistake("schema that is no JSON", run("--output-schema", "{type: object"), ("JSON", "column 2")),
    Mistake("schema that is a list", run("--output-schema", "[1]"), ("list", "object", "hint: ")),
    Mistake("schema of nonsense", run("--output-schema", '{"type": "objekt"}'), ("objekt",)),
    Mistake("schema of endless depth", run("--output-schema", "deep.json"), ("--output-schema",)),
    Mistake("resume without a session", run("--approve", "call_1"), ("--session",)),
    Mistake(
        "approve an unknown call",
        ("run", "-m", "SPEC", "--session", "a", "--approve", "all"),
        ("no session 'a'", "qak sessions"),
    ),
    Mistake("resume with a prompt", run("--session", "a", "--resume"), ("no prompt", "hint: ")),
    Mistake(
        "nothing to resume", ("run", "-m", "SPEC", "--session", "a", "--resume"), ("no session 'a'", "qak sessions")
    ),
    Mistake("quant in the environment", run(), ("QAK_QUANT", "int3", "bf16"), environment={"QAK_QUANT": "int3"}),
    Mistake("QAK_HOME is a file", run("--session", "a"), ("QAK_HOME",), environment={"QAK_HOME": "/dev/null"}),
    Mistake("plan of nothing", ("plan", "nothing-here"), ("nothing-here",)),
    Mistake("plan of an engine's model", ("plan", "SPEC"), ("scripted",)),
    Mistake("fetch of nothing", ("models", "fetch", "nothing-here"), ("nothing-here", "smollm2", "hint: ")),
    Mistake("unknown session", ("sessions", "show", "nobody"), ("nobody", "hint: ")),
    Mistake("delete an unknown session", ("sessions", "delete", "nobody"), ("nobody", "hint: ")),
    Mistake("purge of what", ("sessions", "purge"), ("--older-than", "hint: ")),
    Mistake("unknown hook", ("plugins", "--hook", "on_stop"), ("on_stop", "on_step")),
    Mistake("unknown bench", ("bench", "lop"), ("lop",)),
)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A folder with the scripted engine and what the mistakes name; and the model spec."""
    site = tmp_path_factory.mktemp("mistakes")
    spec = scripted(site, "turns = ['never asked'] * 3\n")
    (site / "raises.py").write_text(f"secret = {CANARY!r}\nraise ValueError(secret)\n")
    (site / "deep.json").write_text('{"a":' * 100_000)
    (site / "exits.py").write_text("import sys\nsys.exit(3)\n")
    (site / "syntax.py").write_text("def (:\n")
    (site / "untyped.py").write_text("def f(x):\n    '''Do.'''\n")
    subprocess.run(["mkfifo", str(site / "fifo")], check=True)
    return site, spec


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.name.replace(" ", "-"))
def test_a_mistake_is_explained(place: tuple[Path, str], mistake: Mistake) -> None:
    """The exit code is right, the message says what is wrong, nothing is on stdout, and no content is told."""
    site, spec = place
    arguments = [spec if argument == "SPEC" else argument for argument in mistake.arguments]
    done = run_qak(*arguments, site=site, stdin=mistake.stdin, **mistake.environment)
    assert done.returncode == mistake.code, done.stderr
    assert "Traceback" not in done.stderr
    assert "error: unexpected" not in done.stderr
    assert done.stdout == ""
    for part in mistake.says:
        assert part in done.stderr
    assert CANARY not in done.stderr
    assert len(done.stderr) < 2000


BAD_NAMES = (
    "", ".", "..", "../x", "a/b", "a\\b", "/etc/passwd", "a b", "-", ".hidden", "con", "nul.txt", "x" * 101, "a:b", "~",
    "%2e%2e", "\u00e4", "a\nb",
)  # fmt: skip


@pytest.mark.parametrize(
    "command", [("run", "hi", "-m", "SPEC", "--session"), ("sessions", "show"), ("sessions", "delete")]
)
def test_f50_session_names_leave_no_directory(
    place: tuple[Path, str], command: tuple[str, ...], tmp_path: Path
) -> None:
    """Names that could leave the store's directory are refused with exit code 2, and nothing is written."""
    site, spec = place
    for name in BAD_NAMES[:: 1 if command[0] == "run" else 4]:
        arguments = [spec if argument == "SPEC" else argument for argument in command]
        tail = ["--", name] if command[0] == "sessions" else [name]
        done = run_qak(*arguments, *tail, site=site, QAK_HOME=str(tmp_path / "home"))
        assert done.returncode == 2, (name, done.stderr)
        assert "session name" in done.stderr, (name, done.stderr)
        assert "Traceback" not in done.stderr
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert all("home/data/sessions" in str(path) for path in written), written


def _small_files() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (2048, 2048))


def test_f51_a_full_disk_is_told(place: tuple[Path, str], tmp_path: Path) -> None:
    """Where the store cannot write, the run fails with one line, exit code 1, and the earlier turn is intact."""
    site, _ = place
    spec = scripted(site, "turns = ['one', 'two'] * 2\n")
    home = {"QAK_HOME": str(tmp_path)}
    assert run_qak("run", "first", "-m", spec, "--session", "s", site=site, **home).returncode == 0
    full = run_qak("run", CANARY * 400, "-m", spec, "--session", "s", site=site, before=_small_files, **home)
    assert full.returncode == 1
    assert "Traceback" not in full.stderr
    assert "hint: " in full.stderr
    assert CANARY not in full.stderr
    shown = run_qak("sessions", "show", "s", site=site, **home)
    assert "first" in shown.stdout
    assert CANARY not in shown.stdout


@pytest.mark.parametrize("flag", [(), ("--json",)])
def test_a_full_stdout_is_told(place: tuple[Path, str], flag: tuple[str, ...]) -> None:
    """Where stdout cannot be written, the exit code is 1 and stderr says why, in one line."""
    site, spec = place
    command = f"exec python -m qwen_agent_kit run hi -m {spec} {' '.join(flag)} > /dev/full"
    done = _shell(command, site)
    assert done.returncode == 1
    assert "No space left on device" in done.stderr
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr


def test_a_home_that_cannot_be_read(place: tuple[Path, str], tmp_path: Path) -> None:
    """A store that is no database, and a directory in its place, are one line each; nothing is overwritten."""
    site, spec = place
    sessions = tmp_path / "data" / "sessions"
    sessions.mkdir(parents=True)
    store = sessions / "store.sqlite3"
    store.write_bytes(b"not a database, but somebody's notes" * 100)
    broken = run_qak("run", "hi", "-m", spec, "--session", "s", site=site, QAK_HOME=str(tmp_path))
    assert broken.returncode == 1
    assert "Traceback" not in broken.stderr
    assert "store.sqlite3" in broken.stderr
    assert store.read_bytes().startswith(b"not a database")
    store.unlink()
    store.mkdir()
    folder = run_qak("sessions", site=site, QAK_HOME=str(tmp_path))
    assert folder.returncode == 1
    assert "Traceback" not in folder.stderr
    assert stat.S_ISDIR(store.stat().st_mode)


def test_a_fault_is_named_by_its_place(place: tuple[Path, str]) -> None:
    """An engine that breaks is told by type and place, its text not; QAK_TRACEBACK=1 shows the way there."""
    site, _ = place
    spec = scripted(site, f"def turns(request):\n    raise RuntimeError({CANARY!r})\n")
    done = run_qak("run", "hi", "-m", spec, site=site)
    assert done.returncode == 1
    assert "RuntimeError" in done.stderr
    assert "script_" in done.stderr
    assert "Traceback" not in done.stderr
    assert CANARY not in done.stderr
    shown = run_qak("run", "hi", "-m", spec, site=site, QAK_TRACEBACK="1")
    assert "Traceback" in shown.stderr


def _shell(command: str, site: Path) -> subprocess.CompletedProcess[str]:
    command = command.replace("python", sys.executable, 1)
    return subprocess.run(
        ["bash", "-c", command],
        cwd=site,
        env=environment_of(site),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
