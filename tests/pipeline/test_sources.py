"""Sources: each bad row is an error of that row, and nothing outside the source's folder is read."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pictures import folder_of

from qwen_agent_kit.errors import UsageError
from qwen_agent_kit.pipeline.folder import Folder
from qwen_agent_kit.pipeline.given import Given, source_of
from qwen_agent_kit.pipeline.items import Columns, items_of
from qwen_agent_kit.pipeline.tables import MAX_LINE, CsvFile, JsonLines


def _write(path: Path, data: bytes | str) -> Path:
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return path


BAD_LINES = {
    "nul": (b'{"a": "\x00"}', "no JSON"),
    "latin1": (b'{"a": "\xe9"}', "not UTF-8"),
    "twice": (b'{"a": 1, "a": 2}', "a key twice"),
    "twice inside": (b'{"a": {"b": 1, "b": 2}}', "a key twice"),
    "deep": (b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nested too deeply"),
    "nan": (b'{"a": NaN}', "NaN"),
    "long number": (b'{"a": ' + b"9" * 5000 + b"}", "number"),
    "half": (b'{"a": "\\ud800"}', "surrogate"),
    "list": (b"[1, 2]", "allowed: an object"),
    "text": (b'"a"', "allowed: an object"),
    "torn": (b'{"a": 1', "no JSON"),
    "words": (b"hello there", "no JSON"),
}


@pytest.mark.parametrize("name", BAD_LINES)
def test_a_bad_line_of_json_is_one_bad_row(name: str, tmp_path: Path) -> None:
    """The rows around it are read; the message holds the line's number and nothing of its text."""
    line, problem = BAD_LINES[name]
    path = _write(tmp_path / "in.jsonl", b'\xef\xbb\xbf{"a": "first"}\n' + line + b'\n\n{"a": "last"}')
    first, bad, last = JsonLines(path).rows()
    assert (first.fields, last.fields) == ({"a": "first"}, {"a": "last"})
    assert bad.error is not None
    assert problem in bad.error.message
    assert bad.error.message.startswith("line 2: ")
    assert JsonLines(path).total() == 3


def test_a_huge_line_is_skipped_without_being_kept(tmp_path: Path) -> None:
    """A line of 200 MB costs an error, not 200 MB; the row after it is read."""
    path = tmp_path / "in.jsonl"
    with path.open("wb") as file:
        file.write(b'{"a": "')
        for _ in range(200):
            file.write(b"x" * 2**20)
        file.write(b'"}\n{"a": "last"}\n')
    code = (
        "import resource, sys\nfrom pathlib import Path\nfrom qwen_agent_kit.pipeline.tables import JsonLines\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "bad, last = JsonLines(Path(sys.argv[1])).rows()\n"
        "print(bad.error.code, last.fields, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    told, grown = done.stdout.rsplit(" ", 1)
    assert told == "too_large {'a': 'last'}"
    assert int(grown) * 1024 < 4 * MAX_LINE


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        (b"1,\xe9", "not UTF-8"),
        (b"1,\x00", "NUL"),
        (b"1", "1 cells; the first row has 2"),
        (b"1,2,3", "3 cells"),
        (b"1," + b"x" * 200_000, "cannot be read"),
        (b'1,"a"b', "cannot be read"),
        (b"1," + b"x" * (MAX_LINE + 10), "too long"),
    ],
)
def test_a_bad_row_of_a_table_is_one_bad_row(body: bytes, problem: str, tmp_path: Path) -> None:
    """The rows around it are read."""
    path = _write(tmp_path / "in.csv", b"\xef\xbb\xbfa,b\r\n0,first\n" + body + b"\n\n2,last\n")
    first, bad, last = CsvFile(path).rows()
    assert (first.fields, last.fields) == ({"a": "0", "b": "first"}, {"a": "2", "b": "last"})
    assert bad.error is not None
    assert problem in f"{bad.error}"
    assert CsvFile(path).total() == 3


def test_a_quote_that_never_closes_is_bounded(tmp_path: Path) -> None:
    """It spoils the rows up to the bound of a cell, says from which line on, and the rest is read."""
    lines = [b"a,b", b'1,"never closed', *(b"%d,%s" % (i, b"x" * 1000) for i in range(300)), b"9,last"]
    rows = list(CsvFile(_write(tmp_path / "in.csv", b"\n".join(lines))).rows())
    assert rows[0].error is not None
    assert rows[0].where == "line 2"
    assert rows[-1].fields == {"a": "9", "b": "last"}
    assert sum(row.error is not None for row in rows) == 1
    assert len(rows) > 100


def test_a_record_of_endless_quoted_lines_is_bounded(tmp_path: Path) -> None:
    """Cells that each stay small, in one record that goes on for ever, end at the bound of a line."""
    more = b'x","\n' * (MAX_LINE // 5 + 10)
    rows = list(CsvFile(_write(tmp_path / "in.csv", b'a,b\n1,"' + more + b'"\n7,last\n')).rows())
    assert rows[0].error is not None
    assert len(rows) <= 3


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(
            st.text(alphabet=st.characters(exclude_characters="\0", codec="utf-8"), min_size=1, max_size=20),
            st.text(max_size=20, alphabet="ab,\"\n\r'"),
        ),
        max_size=20,
    )
)
def test_a_table_that_the_csv_module_wrote_is_read_whole(
    tmp_path_factory: pytest.TempPathFactory, cells: list[tuple[str, str]]
) -> None:
    """Quotes, commas and newlines inside cells come back as they were."""
    import csv
    import io

    out = io.StringIO()
    csv.writer(out).writerows([("a", "b"), *cells])
    path = tmp_path_factory.mktemp("csv") / "in.csv"
    path.write_bytes(out.getvalue().encode())
    assert [(row.fields["a"], row.fields["b"]) for row in CsvFile(path).rows()] == cells


@pytest.mark.parametrize("name", ["in.csv", "in.jsonl"])
@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-be"])
def test_utf16_is_named(name: str, encoding: str, tmp_path: Path) -> None:
    """It is refused with its cure before anything runs."""
    data = ("\ufeff" if encoding == "utf-16-be" else "") + 'a,b\n{"a": 1}\n'
    source = source_of(_write(tmp_path / name, data.encode(encoding)))
    with pytest.raises(UsageError, match=r"UTF-16(.|\n)*iconv"):
        source.columns()


@pytest.mark.parametrize(
    ("name", "data", "problem"),
    [
        ("in.csv", "a,a\n1,2\n", "names the column 'a' twice"),
        ("in.csv", b"\x00\x01\x02,\xff", "cannot be read"),
        ("in.txt", "a", "a file with suffix '.txt'"),
        ("in", "a", "a file with suffix ''"),
    ],
)
def test_a_source_that_is_none_is_refused(name: str, data: bytes | str, problem: str, tmp_path: Path) -> None:
    """With what was found."""
    with pytest.raises(UsageError, match=problem):
        source_of(_write(tmp_path / name, data)).columns()


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    """A missing file, a named pipe (nothing is waited for), a number, bytes and one mapping."""
    os.mkfifo(tmp_path / "pipe.csv")
    for items in (tmp_path / "missing.csv", tmp_path / "pipe.csv"):
        with pytest.raises(UsageError, match=r"cannot read|no regular file"):
            source_of(items).columns()
    for wrong in (3, b"abc", {"a": 1}, None):
        with pytest.raises(UsageError, match="`items` is a"):
            source_of(wrong)


def test_empty_sources_have_no_columns(tmp_path: Path) -> None:
    """Neither do they have rows."""
    for name in ("in.csv", "in.jsonl"):
        source = source_of(_write(tmp_path / name, "\n\n"))
        assert (source.columns(), list(source.rows()), source.total()) == (None, [], 0)
    assert Given([]).columns() is None


# --- folders -----------------------------------------------------------------------------------------------------


def test_a_folder_is_read_in_order(tmp_path: Path) -> None:
    """By name, folder by folder; hidden names and what the pattern leaves out are no items."""
    folder_of(tmp_path, 7)
    _write(tmp_path / ".hidden.png", b"x")
    _write(tmp_path / "notes.txt", b"x")
    names = [row.name for row in Folder(tmp_path, "*.png").rows()]
    assert names == sorted(names, key=lambda name: str(name).split("/"))
    assert len(names) == 7
    assert Folder(tmp_path).total() == 8


def test_links_that_lead_out_are_errors(tmp_path: Path) -> None:
    """A link to a file outside, to a folder, to a folder that holds it; inside the folder a link is followed (F05)."""
    inner = folder_of(tmp_path / "inner", 1)
    secret = _write(tmp_path / "secret.txt", b"secret")
    (inner / "good").symlink_to(inner / "set0" / "00000.png")
    (inner / "leak").symlink_to(secret)
    (inner / "up").symlink_to(tmp_path)
    (inner / "chain").symlink_to(inner / "leak")
    rows = {row.name: row for row in Folder(inner).rows()}
    assert {name for name, row in rows.items() if row.error} == {"leak", "up", "chain"}
    assert {row.error.code for row in rows.values() if row.error} == {"outside_root"}
    outside = {row.name: row for row in Folder(inner, outside=True).rows()}
    assert outside["leak"].error is None
    assert any(name and name.startswith("up/") for name in outside)
    assert outside["up/inner"].error is not None


def test_odd_names_and_deep_folders(tmp_path: Path) -> None:
    """A name that is not UTF-8 is an error; 600 folders inside each other are read."""
    deep = tmp_path
    for _ in range(600):
        deep = deep / "d"
    os.makedirs(deep)
    _write(deep / "x.txt", b"x")
    with open(os.path.join(os.fsencode(tmp_path), b"\xff.txt"), "wb"):
        pass
    rows = list(Folder(tmp_path).rows())
    assert [row.error is None for row in rows] == [True, False]
    assert rows[1].error is not None
    assert "not UTF-8" in rows[1].error.message


# --- keys --------------------------------------------------------------------------------------------------------


def _keys(rows: list[dict[str, object]], key: str | None = None) -> list[str]:
    return [item.key for item in items_of(Given(rows), Columns(key))]


@settings(deadline=None)
@given(st.lists(st.dictionaries(st.text(max_size=3), st.integers(0, 3), max_size=2), max_size=12), st.data())
def test_keys_are_unique_and_stay(rows: list[dict[str, object]], data: st.DataObject) -> None:
    """Every row has a key of its own, the same in every run; rows put before others change no key but equal rows'."""
    keys = _keys(rows)
    assert len(set(keys)) == len(rows)
    assert keys == _keys(rows)
    more = data.draw(st.permutations(rows))
    assert sorted(_keys(list(more))) == sorted(keys)


def test_a_key_column_names_the_items() -> None:
    """Texts and whole numbers name; what cannot is an error; the second of a name is marked."""
    rows = [
        {"id": "a"},
        {"id": 7},
        {"id": "a"},
        {"id": ""},
        {"id": None},
        {"id": [1]},
        {"id": "x" * 2000},
        {"other": 1},
    ]
    items = list(items_of(Given(rows), Columns("id")))
    assert [item.key for item in items[:3]] == ["a", "7", "a"]
    assert [item.repeated for item in items] == [False, False, True, *[False] * 5]
    assert [item.row.error is not None for item in items] == [*[False] * 3, *[True] * 5]


def test_what_has_no_digest_needs_a_key() -> None:
    """An object of no kind that we know is an error that names the cure."""
    (item,) = items_of(Given([{"a": object()}]), Columns())
    assert item.row.error is not None
    assert "key=" in str(item.row.error)
    assert next(iter(items_of(Given([{"a": object(), "id": "x"}]), Columns("id")))).row.error is None


def test_json_and_table_rows_keep_their_keys_between_runs(tmp_path: Path) -> None:
    """A row's key does not depend on where it stands."""
    one, two = {"a": "1"}, {"a": "2"}
    path = tmp_path / "in.jsonl"
    _write(path, "\n".join(json.dumps(row) for row in (one, two)))
    first = {item.key for item in items_of(JsonLines(path), Columns())}
    _write(path, "\n".join(json.dumps(row) for row in ({"a": "0"}, two, one)))
    assert first < {item.key for item in items_of(JsonLines(path), Columns())}
