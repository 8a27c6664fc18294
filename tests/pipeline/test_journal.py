"""The journal: whatever is cut off its end, the rest is read and the file goes on."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qwen_agent_kit import Agent, run_pipeline
from qwen_agent_kit.errors import StoreError, UsageError
from qwen_agent_kit.pipeline.items import mark_of
from qwen_agent_kit.pipeline.journal import Journal, read_lines
from qwen_agent_kit.testing import ScriptedModel


def _record(key: str, **more: Any) -> dict[str, Any]:
    return {"key": key, "index": 0, "output": "x", "error": None, "stop_reason": "done", "attempts": 1, **more}


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.text(max_size=8), min_size=1, max_size=8, unique=True), st.data())
def test_any_prefix_is_read(tmp_path: Path, keys: list[str], data: st.DataObject) -> None:
    """Cut at any byte, the whole lines count and the rest is gone; what is appended then is whole."""
    path = tmp_path / "j"
    path.unlink(missing_ok=True)
    journal = Journal(path)
    for key in keys:
        journal.append(_record(key, output=key))
    journal.close()
    whole = path.read_bytes()
    cut = data.draw(st.integers(0, len(whole)))
    path.write_bytes(whole[:cut])
    kept = whole[:cut].count(b"\n")
    journal = Journal(path)
    journal.recover()
    assert journal.done == {mark_of(key) for key in keys[:kept]}
    for key in keys[kept:]:
        journal.append(_record(key, output=key))
    journal.close()
    assert [record["key"] for record in read_lines(path)] == keys
    assert path.read_bytes() == whole


def test_any_prefix_of_a_run_goes_on_to_the_same_results(tmp_path: Path) -> None:
    """A run's results, cut at every byte in turn: the next run gives the same lines and asks for the rest only."""
    sink = tmp_path / "out.jsonl"
    items = [{"id": f"é{i}"} for i in range(4)]

    def run() -> int:
        model = ScriptedModel(lambda request: request.messages[-1].text)
        run_pipeline(items, Agent(model, sampling=None), prompt="<{id}>", sink=sink, key="id", concurrency=1)
        return len(model.requests)

    assert run() == 4
    whole = sink.read_bytes()
    for cut in range(len(whole)):
        sink.write_bytes(whole[:cut])
        assert run() == 4 - whole[:cut].count(b"\n")
        assert sorted(sink.read_bytes().splitlines()) == sorted(whole.splitlines())


def test_a_broken_line_in_the_middle_is_refused(tmp_path: Path) -> None:
    """It was not torn by a crash: nothing is thrown away, and its number is told."""
    path = tmp_path / "j"
    for line in (b"no json", b'{"key": 3, "error": null}', b"[]", b"\0\0", b'{"key": "a"}'):
        good = json.dumps(_record("a")).encode() + b"\n"
        path.write_bytes(good + line + b"\n" + good)
        journal = Journal(path)
        with pytest.raises(StoreError, match="line 2"):
            journal.recover()
        journal.close()
        assert path.read_bytes() == good + line + b"\n" + good


def test_a_full_disk_leaves_whole_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A line of which only a part could be written is cut off again, and the error says what to do."""
    journal = Journal(tmp_path / "j")
    journal.append(_record("a"))
    true_write = os.write
    calls = iter([5, None])

    def write(handle: int, data: bytes) -> int:
        part = next(calls)
        if part is None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return true_write(handle, data[:part])

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", write)
        with pytest.raises(StoreError, match="No space left"):
            journal.append(_record("b"))
    journal.append(_record("c"))
    journal.close()
    assert [record["key"] for record in read_lines(tmp_path / "j")] == ["a", "c"]


def test_two_processes_do_not_share_a_journal(tmp_path: Path) -> None:
    """The second is refused while the first lives, however it ends."""
    code = (
        "import sys\nfrom pathlib import Path\nfrom qwen_agent_kit.pipeline.journal import Journal\n"
        "journal = Journal(Path(sys.argv[1]))\nprint('open', flush=True)\nsys.stdin.read()\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "j")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "open\n"
        with pytest.raises(UsageError, match="another process"):
            Journal(tmp_path / "j")
        child.kill()
    Journal(tmp_path / "j").close()


def test_failed_lines_are_dropped_whole(tmp_path: Path) -> None:
    """The file without its errors replaces the old one, is locked, and goes on."""
    journal = Journal(tmp_path / "j")
    for number in range(6):
        journal.append(_record(str(number), error={"code": "x"} if number % 2 else None))
    journal.close()
    journal = Journal(tmp_path / "j")
    journal.recover()
    assert journal.failed == 3
    journal.drop_failed()
    with pytest.raises(UsageError, match="another process"):
        Journal(tmp_path / "j")
    journal.append(_record("1"))
    journal.close()
    assert [record["key"] for record in read_lines(tmp_path / "j")] == ["0", "2", "4", "1"]
    assert sorted(os.listdir(tmp_path)) == ["j"]


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    """A folder and a named pipe are no sinks; nothing is waited for."""
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe", tmp_path / "no" / "j"):
        with pytest.raises(UsageError, match=r"cannot write|no regular file"):
            Journal(path)


def test_half_a_surrogate_pair_is_escaped(tmp_path: Path) -> None:
    """A text that UTF-8 cannot carry comes back as it was."""
    journal = Journal(tmp_path / "j")
    journal.append(_record("a", output="\ud800 é"))
    journal.close()
    assert next(read_lines(tmp_path / "j"))["output"] == "\ud800 é"
