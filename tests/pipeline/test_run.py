"""Running a pipeline: every item gets its one result, whatever single items do."""

from __future__ import annotations

import dataclasses
import gc
import json
import threading
import time
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pydantic
import pytest
from pictures import folder_of, png

import qwen_agent_kit.pipeline.attempt as attempt_module
from qwen_agent_kit import Agent, Audio, Image, Sampling, Text, run_pipeline, tool
from qwen_agent_kit.backends import Capabilities, ChatRequest
from qwen_agent_kit.errors import EngineError, ModelError, UsageError
from qwen_agent_kit.testing import ScriptedModel, tiny_model_dir

SEES = Capabilities(kinds=frozenset({"text", "image", "audio"}))


def _echo(request: ChatRequest) -> str:
    return request.messages[-1].text


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _outputs(path: Path) -> list[Any]:
    return [line["output"] for line in sorted(_lines(path), key=lambda line: line["index"])]


def test_every_item_gets_one_result(tmp_path: Path) -> None:
    """From values of any allowed kind, with the counts in the report."""
    model = ScriptedModel(_echo)
    sink = tmp_path / "out.jsonl"
    items = ({"q": f"n{i}"} for i in range(100))
    report = run_pipeline(items, Agent(model), prompt="say {q}", sink=sink)
    assert _outputs(sink) == [f"say n{i}" for i in range(100)]
    assert (report.seen, report.done, report.failed, report.before, report.stopped) == (100, 100, 0, 0, None)
    assert {tuple(line) for line in _lines(sink)} == {("key", "index", "output", "error", "stop_reason", "attempts")}
    run_pipeline(["a", "b"], Agent(ScriptedModel(_echo)), prompt="<{text}>", sink=tmp_path / "text.jsonl")
    assert _outputs(tmp_path / "text.jsonl") == ["<a>", "<b>"]


def test_a_second_run_asks_only_for_what_is_new(tmp_path: Path) -> None:
    """Items with a result are counted and left alone, wherever the new ones stand."""
    sink = tmp_path / "out.jsonl"
    run_pipeline([{"q": i} for i in (1, 2)], Agent(ScriptedModel(_echo)), prompt="{q}", sink=sink)
    model = ScriptedModel(_echo)
    report = run_pipeline([{"q": i} for i in (0, 1, 2, 3)], Agent(model), prompt="{q}", sink=sink)
    assert (report.before, report.done, len(model.requests)) == (2, 2, 2)
    assert sorted(line["output"] for line in _lines(sink)) == ["0", "1", "2", "3"]


def test_equal_items_without_a_key_each_get_a_result(tmp_path: Path) -> None:
    """Equal rows are none too many; in a key column the second of a name is counted and left out."""
    sink = tmp_path / "out.jsonl"
    report = run_pipeline(["a", "a", "a"], Agent(ScriptedModel(_echo)), prompt="{text}", sink=sink)
    assert (report.done, len({line["key"] for line in _lines(sink)})) == (3, 3)
    again = run_pipeline(["a", "a", "a"], Agent(ScriptedModel()), prompt="{text}", sink=sink)
    assert again.before == 3
    rows = [{"id": "x", "q": "1"}, {"id": "x", "q": "2"}]
    named = run_pipeline(rows, Agent(ScriptedModel(_echo)), prompt="{q}", sink=tmp_path / "k.jsonl", key="id")
    assert (named.seen, named.done, named.duplicates) == (2, 1, 1)


def test_a_typed_output_is_kept_as_data(tmp_path: Path) -> None:
    """A pydantic model, a dataclass and a JSON schema; an answer that never fits is that item's error."""

    class Fruit(pydantic.BaseModel):
        name: str
        count: int

    @dataclasses.dataclass
    class Plain:
        name: str
        count: int

    schema = {"type": "object", "properties": {"name": {"type": "string"}, "count": {"type": "integer"}}}
    for number, output in enumerate((Fruit, Plain, schema)):
        sink = tmp_path / f"{number}.jsonl"
        model = ScriptedModel(lambda request: '{"name": "fig", "count": 3}')
        run_pipeline(["x"], Agent(model), prompt="{text}", output=output, sink=sink)
        assert _outputs(sink) == [{"name": "fig", "count": 3}]
    model = ScriptedModel(lambda request: '{"name": "SECRET", "count": "no"}')
    sink = tmp_path / "bad.jsonl"
    report = run_pipeline(["x"], Agent(model, output=Fruit), prompt="{text}", sink=sink, retries=0)
    assert report.errors == {"output": 1}
    assert "SECRET" not in sink.read_text()


def test_one_failure_is_one_error(tmp_path: Path) -> None:
    """An item that fails is recorded with type, code and message; what a stranger's exception says is kept nowhere."""

    def turn(request: ChatRequest) -> str:
        text = _echo(request)
        if text == "3":
            raise ValueError("SECRET of item 3")
        if text == "5":
            raise UsageError("item 5 is refused", code="some_code")
        return text

    sink = tmp_path / "out.jsonl"
    report = run_pipeline([{"q": i} for i in range(8)], Agent(ScriptedModel(turn)), prompt="{q}", sink=sink)
    assert (report.done, report.failed, report.errors) == (6, 2, {"unexpected": 1, "some_code": 1})
    failed = {line["index"]: line for line in _lines(sink) if line["error"]}
    assert failed[3]["error"]["type"] == "ValueError"
    assert failed[5]["error"] == {"type": "UsageError", "code": "some_code", "message": "item 5 is refused"}
    assert (failed[3]["attempts"], failed[5]["attempts"]) == (2, 1)
    assert "SECRET" not in sink.read_text() + repr(report)


def test_faults_that_may_pass_are_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As often as `retries` says and no more; failed items can be run again by a later run."""
    monkeypatch.setattr(attempt_module, "FIRST_PAUSE", 0.001)
    asked: dict[str, int] = {}

    def turn(request: ChatRequest) -> str:
        text = _echo(request)
        asked[text] = asked.get(text, 0) + 1
        if text == "never" or (text == "once" and asked[text] == 1):
            raise EngineError("lost")
        return text

    sink = tmp_path / "out.jsonl"
    rows = ["once", "never", "good"]
    report = run_pipeline(rows, Agent(ScriptedModel(turn)), prompt="{text}", sink=sink, retries=3)
    assert asked == {"once": 2, "never": 4, "good": 1}
    assert (report.done, report.failed, report.retried, report.errors) == (2, 1, 4, {"engine": 1})
    kept = run_pipeline(rows, Agent(ScriptedModel()), prompt="{text}", sink=sink)
    assert (kept.before, kept.done) == (3, 0)
    again = run_pipeline(rows, Agent(ScriptedModel(_echo)), prompt="{text}", sink=sink, retry_failed=True)
    assert (again.before, again.done) == (2, 1)
    assert sorted(line["output"] for line in _lines(sink)) == ["good", "never", "once"]


def test_what_is_wrong_for_every_item_ends_the_run(tmp_path: Path) -> None:
    """A model that is not there blames no item; the same command can go on later."""
    sink = tmp_path / "out.jsonl"
    with pytest.raises(ModelError, match="gone"):
        run_pipeline(["a"] * 50, Agent(ScriptedModel(lambda r: ModelError("gone"))), prompt="{text}", sink=sink)
    assert _lines(sink) == []
    assert run_pipeline(["a"], Agent(ScriptedModel(_echo)), prompt="{text}", sink=sink).done == 1


def test_a_source_that_breaks_ends_the_run(tmp_path: Path) -> None:
    """The caller's own exception comes out, and what was finished is kept."""

    def items() -> Iterator[str]:
        yield from (str(i) for i in range(40))
        raise RuntimeError("the caller's own")

    sink = tmp_path / "out.jsonl"
    with pytest.raises(RuntimeError, match="the caller's own"):
        run_pipeline(items(), Agent(ScriptedModel(_echo)), prompt="{text}", sink=sink)
    report = run_pipeline([str(i) for i in range(41)], Agent(ScriptedModel(_echo)), prompt="{text}", sink=sink)
    assert (report.seen, report.failed, report.before + report.done) == (41, 0, 41)
    assert len({line["key"] for line in _lines(sink)}) == len(_lines(sink)) == 41


def test_calls_that_wait_for_approval_are_errors(tmp_path: Path) -> None:
    """Nobody can be asked: the tool does not run, and the item says why."""
    ran = []

    @tool(side_effects=True)
    def delete(path: str) -> str:
        """Delete.

        Args:
            path: Which
        """
        ran.append(path)
        return "gone"

    from qwen_agent_kit import ToolCall

    model = ScriptedModel(lambda request: [ToolCall("", "delete", {"path": "x"})])
    report = run_pipeline(["a"], Agent(model, tools=[delete]), prompt="{text}", sink=tmp_path / "out.jsonl")
    assert (report.errors, ran) == ({"approval": 1}, [])


# --- order, bounds and stopping --------------------------------------------------------------------------------------


def test_ordered_results_come_in_the_order_of_the_source(tmp_path: Path) -> None:
    """However long single items take, failed ones included; and across a run that was stopped."""

    def turn(request: ChatRequest) -> str:
        number = int(_echo(request))
        time.sleep(0.02 if number % 7 == 0 else 0)
        if number % 5 == 0:
            raise UsageError("refused")
        return str(number)

    sink = tmp_path / "out.jsonl"
    for limit in (30, None):
        agent = Agent(ScriptedModel(turn))
        report = run_pipeline(({"q": i} for i in range(60)), agent, prompt="{q}", sink=sink, ordered=True, limit=limit)
    assert [line["index"] for line in _lines(sink)] == list(range(60))
    assert report.order == "source"


class _Counted:
    """Values whose number alive is counted."""

    def __init__(self) -> None:
        self.alive = self.peak = self.made = 0
        self.lock = threading.RLock()

    def new(self, number: int) -> Image:
        with self.lock:
            self.made += 1
            self.alive += 1
            self.peak = max(self.peak, self.alive)
        image = Image(png(2, 2, (number % 256, number // 256, 0)))
        weakref.finalize(image, self._gone)
        return image

    def _gone(self) -> None:
        with self.lock:
            self.alive -= 1


@pytest.mark.parametrize("ordered", [False, True])
def test_the_number_of_items_alive_is_bounded(ordered: bool, tmp_path: Path) -> None:
    """Never more than those that run and those that are loaded ahead, also behind one that is slow."""
    counted = _Counted()

    class Forgetful(ScriptedModel):
        """Keeps no request, unlike its base."""

        def stream(self, request: ChatRequest) -> Iterator[Any]:
            yield from super().stream(request)
            self.requests.clear()

    def turn(request: ChatRequest) -> str:
        time.sleep(0.2 if counted.made < 10 else 0.0005)
        return "seen"

    gc.disable()  # what only the collector would free counts as alive
    try:
        report = run_pipeline(
            ({"id": i, "image": counted.new(i)} for i in range(400)),
            Agent(Forgetful(turn, caps=SEES)),
            prompt="What is it?",
            sink=tmp_path / "out.jsonl",
            key="id",
            concurrency=4,
            prefetch=3,
            ordered=ordered,
        )
    finally:
        gc.enable()
    assert report.done == 400
    assert report.peak_items == 7
    assert counted.peak <= 7 + 4, "the items in the window, and what threads still hold on their way"


def test_items_run_at_once_and_load_ahead(tmp_path: Path) -> None:
    """As many requests are in flight as were asked for, and the source is read while they run."""
    together = threading.Barrier(5)
    read = []

    def items() -> Iterator[dict[str, int]]:
        for number in range(20):
            read.append(number)
            yield {"q": number}

    def turn(request: ChatRequest) -> str:
        together.wait(30)
        return str(len(read))

    sink = tmp_path / "out.jsonl"
    run_pipeline(items(), Agent(ScriptedModel(turn)), prompt="{q}", sink=sink, concurrency=5, prefetch=5)
    assert len(_lines(sink)) == 20
    assert not any(line["error"] for line in _lines(sink))


def test_max_errors_stops(tmp_path: Path) -> None:
    """A job that fails throughout does not go through the whole source."""
    model = ScriptedModel(lambda request: UsageError("no"))
    sink = tmp_path / "out.jsonl"
    report = run_pipeline((str(i) for i in range(10_000)), Agent(model), prompt="{text}", sink=sink, max_errors=10)
    assert report.stopped == "max_errors"
    assert 10 <= len(_lines(sink)) <= 10 + 16


def test_ctrl_c_keeps_what_is_finished(tmp_path: Path) -> None:
    """The interrupt comes out, requests in flight are cancelled, and the next run does the rest."""
    sink = tmp_path / "out.jsonl"

    def progress(report: Any) -> None:
        if report.done >= 20:
            raise KeyboardInterrupt

    rows = [str(i) for i in range(400)]

    def slow(request: ChatRequest) -> str:
        time.sleep(0.01)
        return _echo(request)

    with pytest.raises(KeyboardInterrupt):
        run_pipeline(rows, Agent(ScriptedModel(slow)), prompt="{text}", sink=sink, progress=progress)
    assert 20 <= len(_lines(sink)) < 400
    before = len(_lines(sink))
    report = run_pipeline(rows, Agent(ScriptedModel(_echo)), prompt="{text}", sink=sink)
    assert (report.before, report.done) == (before, 400 - before)
    assert not [
        thread for thread in threading.enumerate() if thread.name.startswith(("qak-item", "qak-load", "qak-writer"))
    ]


# --- before the first item -------------------------------------------------------------------------------------------


def test_unknown_fields_are_refused_before_anything_runs(tmp_path: Path) -> None:
    """In the prompt and in the mapping of columns; the columns that were found are told, and no sink is made."""
    (tmp_path / "in.csv").write_text("id,question\n1,x\n")
    (tmp_path / "in.jsonl").write_text('{"id": 1}\n{"id": 2, "question": "x"}\n')
    model = ScriptedModel()
    for name in ("in.csv", "in.jsonl"):
        for wrong in (
            {"prompt": "{qestion}"},
            {"prompt": "{question}", "images": "photo"},
            {"prompt": "x", "key": "no"},
        ):
            with pytest.raises(UsageError, match="columns found: 'id', 'question'"):
                run_pipeline(tmp_path / name, Agent(model), sink=tmp_path / "out.jsonl", **wrong)
    with pytest.raises(UsageError, match="'path', 'name', 'stem', 'suffix', 'file'"):
        run_pipeline(folder_of(tmp_path / "f", 1), Agent(model), prompt="{text}", sink=tmp_path / "out.jsonl")
    assert not (tmp_path / "out.jsonl").exists()
    assert model.requests == []


def test_a_row_without_a_field_that_others_have_is_one_error(tmp_path: Path) -> None:
    """JSON Lines rows may differ; the one that lacks it fails alone."""
    (tmp_path / "in.jsonl").write_text('{"q": "a"}\n{"r": "b"}\nbroken\n{"q": "c"}\n')
    sink = tmp_path / "out.jsonl"
    report = run_pipeline(tmp_path / "in.jsonl", Agent(ScriptedModel(_echo)), prompt="{q}", sink=sink)
    assert (report.done, report.errors) == (2, {"unknown_field": 1, "invalid_row": 1})
    assert run_pipeline(tmp_path / "in.jsonl", Agent(ScriptedModel()), prompt="{q}", sink=sink).before == 4


def test_another_job_is_refused_or_begins_anew(tmp_path: Path) -> None:
    """A changed prompt, schema, model, setting or column is named; `restart` replaces the results."""
    sink = tmp_path / "out.jsonl"
    base: dict[str, Any] = {"prompt": "{text}", "sink": sink}
    run_pipeline(["a"], Agent(ScriptedModel(_echo)), **base)
    changes = {
        "prompt": (Agent(ScriptedModel()), {"prompt": "{text}!"}),
        "output": (Agent(ScriptedModel()), {"output": {"type": "object"}}),
        "model": (Agent(ScriptedModel(name="other")), {}),
        "settings": (Agent(ScriptedModel(), sampling=Sampling(temperature=0.5)), {}),
        "columns": (Agent(ScriptedModel()), {"key": "text"}),
    }
    for name, (agent, more) in changes.items():
        with pytest.raises(UsageError, match=f"another job: {name} changed(.|\n)*restart"):
            run_pipeline(["a"], agent, **{**base, **more})
    assert _outputs(sink) == ["a"]
    report = run_pipeline(["b"], Agent(ScriptedModel(_echo)), **{**base, "prompt": "{text}!"}, restart=True)
    assert (report.done, _outputs(sink)) == (1, ["b!"])


def test_a_strangers_file_is_not_written_over(tmp_path: Path) -> None:
    """A file that no pipeline wrote, the source itself, and an item of the folder that is read are refused as sinks."""
    sink = tmp_path / "out.jsonl"
    sink.write_text('{"my": "data"}\n')
    with pytest.raises(UsageError, match="holds no results of a pipeline"):
        run_pipeline(["a"], Agent(ScriptedModel()), prompt="{text}", sink=sink)
    (tmp_path / "link.jsonl").symlink_to(sink)
    for place in (sink, tmp_path / "link.jsonl"):
        with pytest.raises(UsageError, match="is the source"):
            run_pipeline(sink, Agent(ScriptedModel()), prompt="{my}", sink=place, restart=True)
    assert sink.read_text() == '{"my": "data"}\n'
    pictures = folder_of(tmp_path / "f", 1)
    with pytest.raises(UsageError, match="lies in the folder"):
        run_pipeline(pictures, Agent(ScriptedModel()), prompt="x", sink=pictures / "out.jsonl")
    for wrong in ("out.csv", "missing/out.jsonl"):
        with pytest.raises(UsageError, match="sink"):
            run_pipeline(["a"], Agent(ScriptedModel()), prompt="{text}", sink=tmp_path / wrong)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("concurrency", 0),
        ("concurrency", 257),
        ("concurrency", True),
        ("retries", 11),
        ("limit", -1),
        ("prefetch", "8"),
    ],
)
def test_settings_have_ranges(name: str, value: object, tmp_path: Path) -> None:
    """Each names itself; an unknown one is named, too."""
    with pytest.raises(UsageError, match=f"`{name}` is"):
        run_pipeline(["a"], Agent(ScriptedModel()), prompt="x", sink=tmp_path / "o.jsonl", **{name: value})
    with pytest.raises(UsageError, match="takes no 'concurency'"):
        run_pipeline(["a"], Agent(ScriptedModel()), prompt="x", sink=tmp_path / "o.jsonl", concurency=1)


def test_no_items_are_no_error(tmp_path: Path) -> None:
    """An empty source gives an empty sink."""
    report = run_pipeline([], Agent(ScriptedModel()), prompt="{anything}", sink=tmp_path / "out.jsonl")
    assert (report.seen, report.done, (tmp_path / "out.jsonl").read_bytes()) == (0, 0, b"")


# --- media -----------------------------------------------------------------------------------------------------------


def test_a_folder_of_mixed_files(tmp_path: Path) -> None:
    """Each file is what its first bytes say, whatever its name; what is nothing known is one error."""
    folder = folder_of(tmp_path / "f", 2)
    (folder / "a.txt").write_bytes(png(1, 1, (1, 2, 3)))
    (folder / "b.png").write_text("plain text")
    (folder / "c.wav").write_bytes(b"RIFF\x24\0\0\0WAVEfmt ")
    (folder / "d.bin").write_bytes(b"\xff\xfe\0\1\0")
    model = ScriptedModel(lambda request: "|".join(part.kind for part in request.messages[-1].parts), caps=SEES)
    report = run_pipeline(folder, Agent(model), prompt="{name}: ", sink=tmp_path / "out.jsonl")
    found = {line["key"]: line["output"] for line in _lines(tmp_path / "out.jsonl")}
    assert found.pop("d.bin") is None
    kinds = {"a.txt": "text|image", "b.png": "text", "c.wav": "text|audio"}
    assert found == {"set0/00000.png": "text|image", "set1/00001.png": "text|image", **kinds}
    assert report.errors == {"invalid_media": 1}


def test_columns_name_media_beside_the_table(tmp_path: Path) -> None:
    """Paths are relative to the table's folder and may not leave it; `data:` URLs work; `file:` addresses do not."""
    folder_of(tmp_path / "data", 1)
    (tmp_path / "secret.png").write_bytes(png(1, 1, (9, 9, 9)))
    (tmp_path / "data" / "leak.png").symlink_to(tmp_path / "secret.png")
    rows = {
        "good": "set0/00000.png",
        "url": "data:image/png;base64,iVBORw0KGgo=",
        "none": "",
        "up": "../secret.png",
        "absolute": str(tmp_path / "secret.png"),
        "link": "leak.png",
        "missing": "missing.png",
        "folder": "set0",
        "file": "file:///etc/passwd",
        "device": "/proc/self/environ",
        "nul": "a\0b",
    }
    table = tmp_path / "data" / "in.jsonl"
    table.write_text("".join(json.dumps({"id": name, "photo": path}) + "\n" for name, path in rows.items()))
    model = ScriptedModel(lambda request: f"{len(request.messages[-1].media)} pictures", caps=SEES)
    job: dict[str, Any] = {"prompt": "See: {photo} {id}", "images": "photo", "key": "id"}
    run_pipeline(table, Agent(model), sink=tmp_path / "out.jsonl", **job)
    found = {
        line["key"]: line["error"]["code"] if line["error"] else line["output"]
        for line in _lines(tmp_path / "out.jsonl")
    }
    assert (found["good"], found["url"], found["none"]) == ("1 pictures", "1 pictures", "0 pictures")
    assert {found[name] for name in ("up", "absolute", "link", "device")} == {"outside_root"}
    assert {found[name] for name in ("missing", "folder", "nul")} == {"unreadable"}
    assert found["file"] == "blocked_path"
    run_pipeline(table, Agent(model), sink=tmp_path / "outside.jsonl", outside=True, **job)
    found = {line["key"]: line["error"] and line["error"]["code"] for line in _lines(tmp_path / "outside.jsonl")}
    assert (found["up"], found["absolute"], found["link"]) == (None, None, None)


def test_media_of_the_callers_own_code(tmp_path: Path) -> None:
    """Parts, bytes and paths in values; several in one field; the model gets bytes, read once and ahead."""
    picture = tmp_path / "p.png"
    picture.write_bytes(png(1, 1, (0, 0, 0)))
    rows = [
        {"photo": picture},
        {"photo": [str(picture), picture.read_bytes()]},
        {"photo": Image(picture)},
        {"photo": None},
    ]
    model = ScriptedModel(
        lambda request: " ".join(type(media.source).__name__ for media in request.messages[-1].media) or "none",
        caps=SEES,
    )
    sink = tmp_path / "out.jsonl"
    run_pipeline(rows, Agent(model), prompt="x", images=["photo"], sink=sink)
    assert _outputs(sink) == ["bytes", "bytes bytes", "bytes", "none"]
    report = run_pipeline([{"photo": Audio(b"x")}], Agent(model), prompt="x", images="photo", sink=tmp_path / "k.jsonl")
    assert report.errors == {"invalid_media": 1}
    plain = Agent(ScriptedModel(_echo))
    report = run_pipeline([Image(picture)], plain, prompt="x", sink=tmp_path / "m.jsonl")
    assert report.errors == {"unsupported_kind": 1}


def test_parts_reach_the_model_in_the_templates_order(tmp_path: Path) -> None:
    """A picture stands where the prompt names it."""
    model = ScriptedModel(["ok"], caps=SEES)
    run_pipeline([{"p": Image(b"\x89PNG")}], Agent(model), prompt="a {p} b", images="p", sink=tmp_path / "o.jsonl")
    assert model.requests[0].messages[-1].parts == (Text("a "), Image(b"\x89PNG"), Text(" b"))


# --- a real model ----------------------------------------------------------------------------------------------------


def test_a_real_model_answers_as_it_does_alone(tmp_path: Path) -> None:
    """Through the true engine, greedily: four at a time give what each gives alone, typed and as text."""
    agent = Agent(str(tiny_model_dir(tmp_path / "m")), sampling=Sampling(temperature=0, max_tokens=12))
    rows = [{"q": f"number {i} of {i * i}"} for i in range(12)]
    alone = [agent.run(f"Say {row['q']}.").output for row in rows]
    sink = tmp_path / "out.jsonl"
    report = run_pipeline(rows, agent, prompt="Say {q}.", sink=sink, concurrency=4)
    assert _outputs(sink) == alone
    assert report.generated_tokens
    assert report.cut == 12 - sum(line["stop_reason"] == "done" for line in _lines(sink))
    schema = {"type": "object", "properties": {"yes": {"type": "boolean"}}, "required": ["yes"]}
    typed = Agent(str(tmp_path / "m"), sampling=Sampling(temperature=0, max_tokens=60))
    run_pipeline(rows, typed, prompt="{q}?", output=schema, sink=tmp_path / "typed.jsonl", concurrency=4)
    assert {type(output["yes"]) for output in _outputs(tmp_path / "typed.jsonl")} == {bool}
