"""The Parquet sink: the same results as the lines, typed, whole or not at all."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest

import qwen_agent_kit.pipeline.parquet as parquet_module
from qwen_agent_kit import Agent, run_pipeline
from qwen_agent_kit.backends import ChatRequest
from qwen_agent_kit.errors import UsageError
from qwen_agent_kit.pipeline.parquet import write_parquet
from qwen_agent_kit.testing import ScriptedModel


def _echo(request: ChatRequest) -> str:
    return request.messages[-1].text


def _rows(path: Path) -> list[dict[str, Any]]:
    return pyarrow.parquet.read_table(path).to_pylist()


def test_results_are_rows_in_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Texts are the column `text`; errors have theirs; the file has several row groups; a second run adds to it."""
    monkeypatch.setattr(parquet_module, "GROUP", 10)

    def turn(request: ChatRequest) -> str:
        if _echo(request) == "3":
            raise UsageError("refused", code="some_code")
        return _echo(request)

    sink = tmp_path / "out.parquet"
    run_pipeline([str(i) for i in range(25)], Agent(ScriptedModel(turn)), prompt="{text}", sink=sink, ordered=True)
    assert pyarrow.parquet.ParquetFile(sink).num_row_groups == 3
    rows = _rows(sink)
    assert [row["text"] for row in rows] == [None if i == 3 else str(i) for i in range(25)]
    assert (rows[3]["error"], rows[3]["error_message"]) == ("some_code", "refused")
    assert "output" not in rows[0]
    report = run_pipeline([str(i) for i in range(30)], Agent(ScriptedModel(turn)), prompt="{text}", sink=sink)
    assert (report.before, report.done, len(_rows(sink))) == (25, 5, 30)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.parquet", "out.parquet.job", "out.parquet.journal"]


def test_typed_answers_are_a_column(tmp_path: Path) -> None:
    """A schema of objects, lists and scalars is a struct; what a column cannot hold is still whole in `text`."""
    item = {
        "type": "object",
        "properties": {"n": {"type": "integer"}, "tags": {"type": "array", "items": {"type": "string"}}},
    }
    answers = ['{"n": 1, "tags": ["a"]}', '{"tags": []}', json.dumps({"n": 10**30, "tags": ["é"]})]
    sink = tmp_path / "out.parquet"
    model = ScriptedModel(lambda request: answers[int(_echo(request))])
    run_pipeline(["0", "1", "2"], Agent(model), prompt="{text}", output=item, sink=sink, ordered=True)
    rows = _rows(sink)
    assert [row["output"] for row in rows] == [{"n": 1, "tags": ["a"]}, {"n": None, "tags": []}, None]
    assert [json.loads(row["text"]) for row in rows] == [json.loads(answer) for answer in answers]


@pytest.mark.parametrize(
    "schema", [{"anyOf": [{"type": "string"}, {"type": "null"}]}, {"type": "object"}, {"enum": [1, "a"]}]
)
def test_a_schema_that_is_no_column_type_stays_text(schema: dict[str, Any], tmp_path: Path) -> None:
    """Then there is no column `output`."""
    line = {"key": "a", "index": 0, "output": None, "error": None, "stop_reason": "done", "attempts": 1}
    (tmp_path / "j").write_text(json.dumps(line) + "\n")
    write_parquet(tmp_path / "j", tmp_path / "o.parquet", schema)
    (row,) = _rows(tmp_path / "o.parquet")
    assert "output" not in row
    assert row["text"] == "null"


def test_half_a_surrogate_pair_does_not_break_the_file(tmp_path: Path) -> None:
    """Parquet is UTF-8: it becomes a question mark there, and stays what it was in the journal."""
    line = {"key": "a", "index": 0, "output": "x\ud800", "error": None, "stop_reason": "done", "attempts": 1}
    (tmp_path / "j").write_text(json.dumps(line) + "\n")
    write_parquet(tmp_path / "j", tmp_path / "o.parquet", None)
    assert _rows(tmp_path / "o.parquet")[0]["text"] == "x?"


def test_a_file_without_its_journal_is_not_written_over(tmp_path: Path) -> None:
    """Whether a stranger's or ours whose journal was deleted."""
    sink = tmp_path / "out.parquet"
    run_pipeline(["a"], Agent(ScriptedModel(_echo)), prompt="{text}", sink=sink)
    whole = sink.read_bytes()
    (tmp_path / "out.parquet.journal").unlink()
    with pytest.raises(UsageError, match="without the journal"):
        run_pipeline(["a"], Agent(ScriptedModel(_echo)), prompt="{text}", sink=sink)
    assert sink.read_bytes() == whole
    assert run_pipeline(["a"], Agent(ScriptedModel(_echo)), prompt="{text}", sink=sink, restart=True).done == 1


def test_without_pyarrow_it_is_refused_before_anything_runs(tmp_path: Path) -> None:
    """With how to get it; JSON Lines need it not."""
    code = (
        "import sys\nsys.modules['pyarrow'] = None\nfrom qwen_agent_kit import Agent, run_pipeline\n"
        "from qwen_agent_kit.errors import UsageError\nfrom qwen_agent_kit.testing import ScriptedModel\n"
        "print(run_pipeline(['a'], Agent(ScriptedModel(['b'])), prompt='{text}', sink='o.jsonl').done)\n"
        "try:\n    run_pipeline(['a'], Agent(ScriptedModel()), prompt='{text}', sink='o.parquet')\n"
        "except UsageError as error:\n    print(error.hint)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["1", 'pip install "qwen-agent-kit[pipeline]"']
