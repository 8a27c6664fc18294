"""The conversation store."""

from __future__ import annotations

import json
import os
import sqlite3
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qwen_agent_kit.errors import StoreError, UsageError
from qwen_agent_kit.messages import (
    Audio,
    Image,
    Media,
    Message,
    Reasoning,
    Text,
    TokenLog,
    ToolCall,
    ToolResult,
)
from qwen_agent_kit.store import Pending, Position, Store
from qwen_agent_kit.store.schema import MIGRATIONS


@pytest.fixture
def store(tmp_path: Path):
    with Store(tmp_path / "store.sqlite3") as made:
        yield made


def ask(text: str) -> Message:
    return Message("user", (Text(text),))


FULL = (
    Message("system", "be kind"),
    Message("user", (Text("what?\n\ud83d \U0001f469\u200d\U0001f680 "), Image(b"png", options={"pixels": 1}))),
    Message("user", (Audio(b"wav", "found"),)),
    Message(
        "assistant",
        (Reasoning("hm"), Text("so"), ToolCall("c1", "f", {"a": [1, {"b": "ä"}]}), ToolCall("c2", "g", {}, "bad")),
        TokenLog((1, 2, 3), "fp"),
    ),
    Message("tool", (ToolResult((Text("r"), Image(b"png")), "c1", "f"),)),
    Message("tool", (ToolResult((Text("no"),), "c2", "g", True),)),
)  # fmt: skip


def test_what_was_appended_comes_back(store: Store) -> None:
    """Every kind of part, trust, options and token log included."""
    position = store.append("talk", FULL, Position())
    stored = store.load("talk")
    assert stored.messages == FULL
    assert stored.position == position == store.position("talk")
    assert position.count == len(FULL)


log = st.none() | st.builds(TokenLog, st.lists(st.integers(0, 2**31), max_size=8).map(tuple), st.text(max_size=40))
text = st.builds(Text, st.text(max_size=200))
image = st.builds(Image, st.binary(max_size=200), st.sampled_from(["configured", "found"]))
values = st.recursive(st.none() | st.booleans() | st.integers() | st.text(max_size=20), st.lists, max_leaves=8)
call = st.builds(
    ToolCall,
    st.text(max_size=20),
    st.text(max_size=20),
    st.dictionaries(st.text(max_size=20), values, max_size=3),
    st.none() | st.text(max_size=20),
)
thought = st.builds(Reasoning, st.text(max_size=200))
result = st.builds(ToolResult, st.tuples(text), st.text(max_size=20), st.text(max_size=20), st.booleans())


def said(role: str, parts: st.SearchStrategy, least: int = 0, most: int = 4) -> st.SearchStrategy[Message]:
    return st.builds(Message, st.just(role), st.lists(parts, min_size=least, max_size=most).map(tuple), log)


messages = st.one_of(
    said("user", text | image),
    said("system", text | image),
    said("assistant", text | image | thought | call),
    said("tool", result, 1, 1),
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.lists(messages, max_size=3), max_size=4))
def test_any_conversation_in_any_chunks_comes_back(tmp_path: Path, chunks: list[list[Message]]) -> None:
    """However it was appended, whatever it holds."""
    with Store(tmp_path / "any.sqlite3") as store:
        position = Position()
        for chunk in chunks:
            position = store.append("talk", chunk, position)
        assert list(store.load("talk").messages) == [message for chunk in chunks for message in chunk]
        store.purge(keep=0)


def test_the_position_depends_on_every_message(store: Store) -> None:
    """Same count, other content: another chain."""
    a = store.append("a", [ask("1"), ask("2")], Position())
    b = store.append("b", [ask("2"), ask("1")], Position())
    assert a.count == b.count
    assert a.chain != b.chain


def test_content_is_stored_once(store: Store) -> None:
    """The same messages and the same picture in ten conversations are one row each."""
    picture = os.urandom(50_000)
    for n in range(10):
        store.append(f"s{n}", [ask("hi"), Message("user", (Text(str(n)), Image(picture)))], Position())
    count = store._run(
        lambda db: [db.execute(f"SELECT count(*) FROM {t}").fetchone()[0] for t in ("messages", "media")]
    )
    assert count == [11, 1]


def test_a_position_that_is_not_the_last_is_refused(store: Store) -> None:
    """Nothing is written, and the error names the conflict."""
    first = store.append("talk", [ask("a")], Position())
    store.append("talk", [ask("b")], first)
    for wrong in (Position(), first, Position(2, "0" * 64)):
        with pytest.raises(StoreError, match="changed by another process") as error:
            store.append("talk", [ask("c")], wrong)
        assert error.value.code == "conflict"
    assert [m.text for m in store.load("talk").messages] == ["a", "b"]


def test_pending_approvals_are_stored_with_their_step(store: Store) -> None:
    """They come back, media in results included, and are gone with the next append."""
    pending = Pending(("c1",), {"c2": ToolResult((Text("x"), Image(b"kept")), "c2", "f")})
    position = store.append("talk", FULL[:4], Position(), pending)
    assert store.load("talk").pending == pending
    assert store.list()[0].waiting == 1
    store.append("other", [ask("x")], Position())
    store.delete("other")  # collects what nothing names, which must not take the picture
    assert store.load("talk").pending == pending
    store.append("talk", FULL[4:], position)
    assert store.load("talk").pending is None


def test_list_export_delete(store: Store) -> None:
    """The latest first; export reads back with from_dict; deleting takes what nobody else holds."""
    store.append("old", [ask("shared"), ask("mine")], Position())
    store.append("new", [ask("shared"), Message("user", (Image(b"big"),))], Position())
    assert [info.name for info in store.list()] == ["new", "old"]
    data = json.loads(json.dumps(store.export("new")))
    assert data["schema_version"] == 1
    assert [Message.from_dict(m).media for m in data["messages"]] == [(), (Image(b"big", "found"),)]
    store.delete("new")
    assert [m.text for m in store.load("old").messages] == ["shared", "mine"]
    counts = store._run(
        lambda db: [db.execute(f"SELECT count(*) FROM {t}").fetchone()[0] for t in ("messages", "media", "links")]
    )
    assert counts == [2, 0, 0]
    for gone in (store.delete, store.export):
        with pytest.raises(UsageError, match="no session 'new'"):
            gone("new")


def test_what_is_deleted_is_gone_from_the_file(store: Store) -> None:
    """The bytes of a deleted conversation are overwritten, not only unlinked."""
    secret = "SECRET" * 50
    position = store.append("talk", [ask(secret)], Position())
    assert position.count == 1
    store.delete("talk")
    files = [path.read_bytes() for path in store.path.parent.iterdir()]
    assert not any(secret.encode() in data for data in files)


def test_purge_by_age_and_by_number(store: Store) -> None:
    """Either is enough to go; what is gone is named; the file shrinks."""
    for n in range(6):
        store.append(f"s{n}", [ask(os.urandom(20_000).hex())], Position())
    store._run(lambda db: db.execute("UPDATE conversations SET updated = updated - 1000 WHERE name IN ('s0', 's1')"))
    store.close()
    size = store.path.stat().st_size
    assert set(store.purge(older_than=500)) == {"s0", "s1"}
    assert set(store.purge(keep=2)) == {"s2", "s3"}
    assert [info.name for info in store.list()] == ["s5", "s4"]
    assert store.path.stat().st_size < size / 2
    for wrong in ({}, {"keep": -1}, {"older_than": -1.0}, {"older_than": float("nan")}):
        with pytest.raises(UsageError):
            store.purge(**wrong)


def test_forks_share_their_messages(store: Store) -> None:
    """A fork costs rows, not messages; what the one adds the other does not see."""
    position = store.append("a", [ask(str(n)) for n in range(20)], Position())
    assert store.fork("a", "b") == position
    store.append("b", [ask("only b")], position)
    assert len(store.load("a").messages) == 20
    assert store._run(lambda db: db.execute("SELECT count(*) FROM messages").fetchone()) == (21,)
    for wrong in (("a", "b"), ("nothing", "c")):
        with pytest.raises(UsageError):
            store.fork(*wrong)


def test_appending_costs_the_same_in_a_long_conversation(store: Store) -> None:
    """A message after 3,000 others takes no longer than the first ones, by the median."""

    def spend(n: int) -> float:
        times = []
        nonlocal position
        for i in range(n):
            start = time.perf_counter()
            position = store.append("talk", [ask(f"{i} {os.urandom(4).hex()}")], position)
            times.append(time.perf_counter() - start)
        return sorted(times)[n // 2]

    position = Position()
    early = spend(100)
    position = store.append("talk", [ask(f"bulk {i}") for i in range(3000)], position)
    assert spend(100) < 3 * early + 0.001


def test_files_are_private(private_home: Path) -> None:
    """0600 in 0700, the journal beside it too."""
    with Store() as store:
        store.append("a", [ask("x")], Position())
        assert store.path.is_relative_to(private_home)
        assert stat.S_IMODE(store.path.parent.stat().st_mode) == 0o700
        for path in store.path.parent.iterdir():
            assert stat.S_IMODE(path.stat().st_mode) == 0o600, path


def test_an_older_file_is_brought_up_to_date(tmp_path: Path) -> None:
    """A file of every earlier format keeps its conversations."""
    for version in range(1, len(MIGRATIONS)):
        path = tmp_path / f"v{version}.sqlite3"
        db = sqlite3.connect(path)
        for statement in [s for migration in MIGRATIONS[:version] for s in migration]:
            db.execute(statement)
        body = '{"parts":[{"text":"old","type":"text"}],"role":"user"}'
        db.execute("INSERT INTO conversations (name, created, updated, count, chain) VALUES ('a', 1, 1, 1, 'c')")
        db.execute("INSERT INTO messages (digest, body) VALUES ('d', ?)", (body,))
        db.execute("INSERT INTO entries VALUES (1, 0, 1)")
        db.execute(f"PRAGMA user_version = {version}")
        db.commit()
        db.close()
        with Store(path) as store:
            stored = store.load("a")
            assert [m.text for m in stored.messages] == ["old"]
            store.append("a", [ask("new")], stored.position, Pending(("x",), {}))
        with Store(path) as store:
            assert store.load("a").pending == Pending(("x",), {})


def test_a_newer_file_is_refused_and_left_alone(tmp_path: Path) -> None:
    """Instead of being read wrongly."""
    path = tmp_path / "s.sqlite3"
    with Store(path) as store:
        store.append("a", [ask("x")], Position())
        store._run(lambda db: db.execute("PRAGMA user_version = 99"))
    with Store(path) as store, pytest.raises(StoreError, match="format 99"):
        store.load("a")
    db = sqlite3.connect(path)
    assert db.execute("SELECT count(*) FROM messages").fetchone() == (1,)
    db.close()


def test_many_threads_and_one_store(store: Store) -> None:
    """Each its own conversation; nothing is lost."""

    def write(name: str) -> None:
        position = Position()
        for n in range(20):
            position = store.append(name, [ask(f"{name} {n}")], position)

    threads = [threading.Thread(target=write, args=(f"t{n}",)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for n in range(6):
        assert [m.text for m in store.load(f"t{n}").messages] == [f"t{n} {i}" for i in range(20)]


class Scan(Media):
    """A plugin's own part."""

    kind = "scan"


def test_the_parts_of_plugins(store: Store) -> None:
    """Read back where the plugin is there; named, with a cure, where it is not."""
    store.append("a", [Message("user", (Scan(b"bytes"),))], Position())
    assert store.load("a", [Scan]).messages[0].media == (Scan(b"bytes"),)
    with pytest.raises(StoreError, match="'scan'") as error:
        store.load("a")
    assert "plugin" in error.value.hint


def test_found_paths_and_addresses_are_not_opened(store: Store, tmp_path: Path) -> None:
    """A path that a tool returned is kept as it was written, and stays untrusted."""
    secret = tmp_path / "secret"
    secret.write_bytes(b"secret")
    parts = (Image(str(secret), "found"), Image("http://127.0.0.1:9/x.png"))
    store.append("a", [Message("user", parts)], Position())
    assert store.load("a").messages[0].media == parts
    assert store._run(lambda db: db.execute("SELECT count(*) FROM media").fetchone()) == (0,)


# --- what can go wrong ------------------------------------------------------------------------------------------------


def test_f51_a_full_disk(tmp_path: Path) -> None:
    """A write past the bound fails with a cure; what was there is there, and small writes go on after a purge."""
    with Store(tmp_path / "s.sqlite3", max_bytes=200_000) as store:
        position = store.append("a", [ask("precious")], Position())
        with pytest.raises(StoreError, match="full") as error:
            store.append("a", [Message("user", (Image(os.urandom(500_000)),))], position)
        assert "purge" in error.value.hint
        assert [m.text for m in store.load("a").messages] == ["precious"]
        assert store.append("a", [ask("small")], position).count == 2


def test_f51_a_directory_that_cannot_be_written(tmp_path: Path) -> None:
    """As another user, in a directory and over a file that are not theirs: a clear error, nothing changed."""
    directory = tmp_path / "s"
    directory.mkdir()
    with Store(directory / "store.sqlite3") as store:
        store.append("a", [ask("precious")], Position())
    code = f"""
import os, sys
from qwen_agent_kit.errors import StoreError
from qwen_agent_kit.messages import Message
from qwen_agent_kit.store import Position, Store
if os.geteuid() == 0:
    os.setuid(65534)
try:
    store = Store({str(directory / "store.sqlite3")!r})
    store.append('a', [Message('user', 'x')], store.position('a'))
except StoreError as error:
    print(error.hint)
"""
    for path in (directory, *directory.iterdir()):
        path.chmod(0o555 if path.is_dir() else 0o444)
    for path in (tmp_path, *tmp_path.parents[:2]):
        path.chmod(0o755)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    directory.chmod(0o755)
    assert "QAK_HOME" in done.stdout, done.stderr
    (directory / "store.sqlite3").chmod(0o600)
    with Store(directory / "store.sqlite3") as store:
        assert [m.text for m in store.load("a").messages] == ["precious"]


@pytest.mark.parametrize("damage", ["garbage", "truncated", "header"])
def test_f51_a_damaged_file(tmp_path: Path, damage: str) -> None:
    """It is named, never overwritten, and the error says what to do."""
    path = tmp_path / "s.sqlite3"
    with Store(path) as store:
        store.append("a", [ask("x" * 5000) for _ in range(50)], Position())
    data = path.read_bytes()
    broken = {
        "garbage": b"this is no database at all" * 100,
        "truncated": data[: len(data) // 3],
        "header": b"\0" * 50 + data[50:],
    }[damage]
    path.write_bytes(broken)
    with Store(path) as store, pytest.raises(StoreError) as error:
        store.load("a")
    assert error.value.hint
    assert str(path) in str(error.value)
    assert path.read_bytes()[: len(broken)] == broken


def test_f51_a_damaged_medium_is_not_passed_on(store: Store) -> None:
    """Its digest is checked when it is read."""
    store.append("a", [Message("user", (Image(b"true"),))], Position())
    store._run(lambda db: db.execute("UPDATE media SET bytes = ?", (b"false",)))
    with pytest.raises(StoreError, match="damaged"):
        store.load("a")


def test_f51_a_crash_inside_the_transaction(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """An exception between the first row and the commit leaves nothing of the step."""
    from qwen_agent_kit.store import rows

    position = store.append("a", [ask("one")], Position())
    real = rows.put_message
    calls = []

    def break_second(db, row):
        calls.append(row)
        if len(calls) == 2:
            raise OSError("disk gone")
        return real(db, row)

    monkeypatch.setattr(rows, "put_message", break_second)
    with pytest.raises(OSError, match="disk gone"):
        store.append("a", [ask("two"), ask("three")], position)
    monkeypatch.undo()
    assert [m.text for m in store.load("a").messages] == ["one"]
    assert store.append("a", [ask("two")], position).count == 2


def test_a_store_crosses_a_fork(store: Store) -> None:
    """The child opens its own connection; both see both writes."""
    position = store.append("a", [ask("parent")], Position())
    child = os.fork()
    if child == 0:
        code = 1
        try:
            store.append("a", [ask("child")], position)
            code = 0
        finally:
            os._exit(code)
    assert os.waitpid(child, 0)[1] == 0
    assert [m.text for m in store.load("a").messages] == ["parent", "child"]
