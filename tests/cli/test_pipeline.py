"""``qak pipeline``: counts on stdout with --json, talk on stderr, exit codes, Ctrl-C."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path

from pictures import folder_of
from scripted_cli import environment_of, run_qak, scripted

ECHO = "def turns(request):\n    return request.messages[-1].text\n"
SLOW = "import time\ndef turns(request):\n    time.sleep(0.02)\n    return request.messages[-1].text\n"


def _lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_table_becomes_lines(site: Path) -> None:
    """stdout stays empty without --json; stderr sums up; a second run has nothing left to do."""
    (site / "in.csv").write_text("id,q\n1,hello\n2,there\n")
    command = ("pipeline", "in.csv", "-p", "Say {q}", "-o", "out.jsonl", "--key", "id", "-m", scripted(site, ECHO))
    done = run_qak(*command, site=site)
    assert (done.returncode, done.stdout) == (0, "")
    assert "2 answered, 0 failed" in done.stderr
    assert {line["key"]: line["output"] for line in _lines(site / "out.jsonl")} == {"1": "Say hello", "2": "Say there"}
    again = run_qak(*command, "--json", site=site)
    data = json.loads(again.stdout)
    assert (data["schema_version"], data["before"], data["done"], data["seen"]) == (1, 2, 0, 2)
    assert set(data) == {
        "sink", "job", "seen", "before", "duplicates", "done", "failed", "cut", "retried", "errors", "prompt_tokens",
        "generated_tokens", "seconds", "peak_items", "order", "stopped", "items_per_second", "schema_version",
    }  # fmt: skip


def test_a_schema_types_the_answers(site: Path) -> None:
    """--output-schema makes each output data; --prompt-file is the prompt."""
    (site / "in.jsonl").write_text('{"q": 1}\n')
    (site / "prompt.txt").write_text("Answer {q}\n")
    spec = scripted(site, "def turns(request):\n    return '{\"yes\": true}'\n")
    schema = '{"type": "object", "properties": {"yes": {"type": "boolean"}}}'
    done = run_qak(
        "pipeline",
        "in.jsonl",
        "--prompt-file",
        "prompt.txt",
        "-o",
        "o.jsonl",
        "--output-schema",
        schema,
        "-m",
        spec,
        site=site,
    )
    assert done.returncode == 0, done.stderr
    assert _lines(site / "o.jsonl")[0]["output"] == {"yes": True}


def test_failures_give_exit_code_1_and_no_content(site: Path) -> None:
    """The codes are counted on stderr; what items hold is not there."""
    (site / "in.jsonl").write_text('{"q": "SECRET"}\nSECRET no json\n')
    spec = scripted(site, "def turns(request):\n    raise ValueError('SECRET ' + request.messages[-1].text)\n")
    done = run_qak("pipeline", "in.jsonl", "-p", "{q}", "-o", "out.jsonl", "-m", spec, "--json", site=site)
    assert done.returncode == 1
    assert json.loads(done.stdout)["errors"] == {"invalid_row": 1, "unexpected": 1}
    assert "1 x unexpected" in done.stderr
    assert "--retry-failed" in done.stderr
    assert "SECRET" not in done.stdout + done.stderr + (site / "out.jsonl").read_text()


def test_mistakes_give_exit_code_2(site: Path) -> None:
    """Each is told in a line with its cure, and no traceback."""
    (site / "in.csv").write_text("id,q\n1,hello\n")
    spec = scripted(site, ECHO)
    base = ("pipeline", "in.csv", "-o", "out.jsonl", "-m", spec)
    for more, told in (
        (("-p", "{question}"), "columns found: 'id', 'q'"),
        (("-p", "{q.upper}"), "no attributes"),
        ((), "the prompt is missing"),
        (("-p", "{q}", "--image", "photo"), "no column 'photo'"),
        (("-p", "{q}", "--concurrency", "0"), "allowed: a whole number from 1 to 256"),
        (("-p", "{q}", "--pattern", "*.png"), "goes with a folder"),
        (("-p", "{q}", "--output-schema", "{"), "holds no JSON"),
    ):
        done = run_qak(*base, *more, site=site)
        assert (done.returncode, done.stdout) == (2, ""), done.stderr
        assert told in done.stderr
        assert "Traceback" not in done.stderr
        assert not (site / "out.jsonl").exists()
    missing = run_qak("pipeline", "nowhere", "-p", "x", "-o", "out.jsonl", "-m", spec, site=site)
    assert (missing.returncode, "is nothing; allowed" in missing.stderr) == (2, True)


def test_an_empty_folder_is_told(site: Path) -> None:
    """It is no failure."""
    (site / "empty").mkdir()
    done = run_qak("pipeline", "empty", "-p", "x", "-o", "out.jsonl", "-m", scripted(site, ECHO), site=site)
    assert done.returncode == 0
    assert "the source has no items" in done.stderr


def test_ctrl_c_stops_and_says_how_to_go_on(site: Path) -> None:
    """Exit code 1, the counts are printed, and the same command does the rest."""
    (site / "in.jsonl").write_text("".join(f'{{"q": "{i}"}}\n' for i in range(400)))
    command = ["pipeline", "in.jsonl", "-p", "{q}", "-o", "out.jsonl", "-m", scripted(site, SLOW), "--json"]
    child = subprocess.Popen(
        [sys.executable, "-m", "qwen_agent_kit", *command],
        cwd=site,
        env=environment_of(site),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    while not (site / "out.jsonl").exists() or len((site / "out.jsonl").read_bytes()) < 2000:
        assert child.poll() is None
        time.sleep(0.005)
    child.send_signal(signal.SIGINT)
    out, err = child.communicate(timeout=120)
    assert child.returncode == 1, err
    report = json.loads(out)
    assert report["stopped"] == "interrupted"
    assert "the same command goes on" in err
    assert len(_lines(site / "out.jsonl")) == report["done"] < 400
    rest = json.loads(run_qak(*command, site=site).stdout)
    assert (rest["before"], rest["done"]) == (report["done"], 400 - report["done"])


def test_a_person_sees_a_bar_with_rate_and_time_left(site: Path) -> None:
    """On a terminal stderr shows how many of how many, the rate and the time left."""
    folder_of(site / "f", 30)
    spec = scripted(site, "import time\ndef turns(request):\n    time.sleep(0.05)\n    return 'x'\n")
    master, slave = pty.openpty()
    environment = {**environment_of(site), "TERM": "xterm", "COLUMNS": "100"}
    # The scripted model takes text only, so that each picture fails: the bar counts them all the same.
    command = [sys.executable, "-m", "qwen_agent_kit", "pipeline", "f", "-p", "x", "-o", "out.jsonl", "-m", spec]
    child = subprocess.Popen(command, cwd=site, env=environment, stdin=subprocess.DEVNULL, stdout=slave, stderr=slave)
    os.close(slave)
    seen = b""
    while True:
        try:
            seen += (more := os.read(master, 65536))
        except OSError:
            break
        if not more:
            break
    child.wait(60)
    os.close(master)
    shown = seen.decode(errors="replace")
    assert "/30" in shown
    assert "items/s" in shown
    assert "0:00:" in shown or "-:--:--" in shown
    assert "30 failed" in shown
