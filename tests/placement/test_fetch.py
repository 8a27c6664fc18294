"""Fetching from a hub on loopback: only data files come, whole and verified; each refusal is explained."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hub import COMMIT, Hub, files_of, hub

from qwen_agent_kit.errors import FetchError, ModelError, QakError, UsageError
from qwen_agent_kit.placement import fetch as fetching
from qwen_agent_kit.placement.fetch import fetch_hub, fetch_model, locate_model, parse_reference
from qwen_agent_kit.placement.fetch_header import read_header
from qwen_agent_kit.testing.models import tiny_model_dir, tiny_tokenizer

CODE = "from qwen_agent_kit.placement.fetch import fetch_hub; print(fetch_hub({repo!r}))"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    return files_of(tiny_model_dir(tmp_path_factory.mktemp("model"), "qwen3", tokenizer_json=tiny_tokenizer(280)))


@pytest.fixture
def big() -> bytes:
    """3 MiB of a made-up safetensors file: one tensor of bytes."""
    count = 3 * 2**20
    header = json.dumps({"x": {"dtype": "U8", "shape": [count], "data_offsets": [0, count]}}).encode()
    return len(header).to_bytes(8, "little") + header + random.Random(7).randbytes(count)


@pytest.fixture
def served(model: dict[str, bytes], big: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    small = {"config.json": model["config.json"], "tokenizer.json": b"{}"}
    evil = {**small, "config.json": json.dumps({"model_type": "x", "auto_map": {"AutoModel": "m.M"}}).encode()}
    repos = {
        "own/tiny": {**model, "pytorch_model.bin": b"a pickle", "modeling_evil.py": b"code", ".fetched.json": b"{}"},
        "own/big": {**small, "model.safetensors": big},
        "own/pickled": {**small, "pytorch_model.bin": b"a pickle"},
        "own/code": {**evil, "model.safetensors": big},
        "own/gguf": {"m-q4_k_m.gguf": b"GGUF4", "m-q8_0.gguf": b"GGUF8", "README.md": b"x"},
        "own/one": {"sub/only.gguf": b"GGUF1", "m.imatrix": b"x"},
        "own/empty": {"README.md": b"x"},
        "own/gated": None,
    }
    with hub(repos) as made:
        for name, value in made.environment(tmp_path).items():
            monkeypatch.setenv(name, value)
        yield made


def child(code: str, served: Hub, home: Path, **variables: str) -> subprocess.Popen[str]:
    environment = {**os.environ, **served.environment(home), **variables}
    return subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )


def refused(repo: str, **options: str) -> QakError:
    with pytest.raises(QakError) as caught:
        fetch_hub(repo, **options)  # type: ignore[arg-type]
    assert caught.value.hint
    return caught.value


def asked_files(served: Hub) -> list[str]:
    return [path for _, path, _ in served.api.asked if "/resolve/" in path]


def test_data_comes_and_code_stays(served: Hub, model: dict[str, bytes], capsys: pytest.CaptureFixture[str]) -> None:
    """Safetensors, JSON and templates come whole; pickles, code and dotfiles are not asked for; stderr says what."""
    folder = fetch_hub("own/tiny")
    assert {p.name: p.read_bytes() for p in folder.iterdir() if p.name != ".fetched.json"} == model
    assert folder.name == COMMIT
    assert not [path for path in asked_files(served) if path.endswith((".bin", ".py")) or "/." in path]
    assert f"fetching own/tiny from {served.url}" in capsys.readouterr().err
    record = json.loads((folder / ".fetched.json").read_bytes())
    assert (record["commit"], record["revision"]) == (COMMIT, "main")
    assert all(file["checksum"] for file in record["files"])


def test_what_is_here_is_not_asked_for(served: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second time nobody is asked, online or not; a commit that was fetched as `main` is found by its name too."""
    folder = fetch_hub("own/tiny")
    seen = len(served.api.asked)
    monkeypatch.setenv("QAK_OFFLINE", "1")
    assert fetch_hub("own/tiny") == fetch_hub("own/tiny", revision=COMMIT) == folder
    monkeypatch.setenv("QAK_OFFLINE", "")
    assert fetch_hub("own/tiny") == folder
    assert len(served.api.asked) == seen


def test_a_branch_that_moved_is_taken_up_when_asked(served: Hub, model: dict[str, bytes]) -> None:
    """The revision stays pinned to its commit until it is renewed; the older commit stays whole."""
    reference = parse_reference("own/tiny")
    assert reference is not None
    old = fetch_model(reference)
    served.commit = "d" * 40
    served.repos["own/tiny"] = {**model, "generation_config.json": b"{}"}
    assert fetch_model(reference) == old
    new = fetch_model(reference, renew=True)
    assert (new.name, (new / "generation_config.json").is_file()) == ("d" * 40, True)
    assert fetch_model(reference) == new
    assert fetch_hub(f"own/tiny@{COMMIT}") == old


def test_offline_refuses_with_a_hint(served: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is asked where fetching is switched off."""
    for name in ("QAK_OFFLINE", "HF_HUB_OFFLINE"):
        monkeypatch.setenv(name, "1")
        assert refused("own/tiny").code == "offline"
        monkeypatch.setenv(name, "")
    assert served.api.asked == []


@pytest.mark.parametrize(
    ("repo", "code", "words"),
    [
        ("own/gated", "gated", "is gated"),
        ("own/none", "not_found", "no model `own/none` that you may read, or it is private and HF_TOKEN"),
        ("own/tiny@nope", "not_found", "no revision 'nope'"),
        ("own/pickled", "pickled_weights", "`pytorch_model.bin`, a pickle"),
        ("own/code", "remote_code", "`auto_map`"),
        ("own/gguf", "model_not_found", "`m-q4_k_m.gguf`, `m-q8_0.gguf`"),
        ("own/gguf:q5", "model_not_found", "no GGUF file 'q5'"),
        ("modelscope:own/none", "not_found", "no model `own/none`"),
    ],
)
def test_a_refusal_is_explained(served: Hub, repo: str, code: str, words: str) -> None:
    """A gated, hidden, unknown, pickled or executable repository: said with its cure, before any weight is fetched."""
    error = refused(repo)
    assert error.code == code
    assert words in str(error)
    assert served.cdn.asked == []
    reference = parse_reference(repo)
    assert reference is not None
    assert locate_model(reference) is None


def test_other_refusals(served: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """A repository without weights, a token that does not help, a hub that is not there, an endpoint that is none."""
    with pytest.raises(ModelError, match="no safetensors and no GGUF"):
        fetch_hub("own/empty")
    assert refused("own/none", token="bad").code == "not_found"
    assert refused("own/gated", token="bad").code == "gated"
    with pytest.raises(FetchError, match="names no model of a hub"):
        fetch_hub("a/b/c")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    assert refused("own/tiny").code == "fetch"
    monkeypatch.setenv("HF_ENDPOINT", "ftp://x")
    with pytest.raises(UsageError, match="HF_ENDPOINT"):
        fetch_hub("own/tiny")


@pytest.mark.parametrize(
    ("status", "code", "hint"),
    [
        (401, "unauthorized", "HF_TOKEN"),
        (403, "unauthorized", "HF_TOKEN"),
        (404, "not_found", "local directory"),
    ],
)
def test_a_bare_status_is_explained(served: Hub, big: bytes, status: int, code: str, hint: str) -> None:
    """A hub, or a host of its files, that says nothing but a status: an error with its cure, and nothing to load."""
    for site in (served.api, served.cdn):
        routes = site._server.RequestHandlerClass.routes  # type: ignore[attr-defined]
        site._server.RequestHandlerClass.routes = {"*": lambda exchange: exchange.give(status)}  # type: ignore[attr-defined]
        error = refused("own/big")
        assert error.code == code
        assert error.hint is not None
        assert hint in error.hint
        reference = parse_reference("own/big")
        assert reference is not None
        assert locate_model(reference) is None
        site._server.RequestHandlerClass.routes = routes  # type: ignore[attr-defined]
    assert (fetch_hub("own/big") / "model.safetensors").read_bytes() == big


def test_the_token_stays_with_the_hub(served: Hub, model: dict[str, bytes]) -> None:
    """It opens a gated repository, and the host of the large files never sees it."""
    served.repos["own/tiny"] = model
    fetch_hub("own/tiny", token="good")
    assert all(headers.get("authorization") == "Bearer good" for _, _, headers in served.api.asked)
    assert served.cdn.asked
    assert not any("authorization" in headers for _, _, headers in served.cdn.asked)


def test_gguf_files_are_chosen_by_name(served: Hub) -> None:
    """By a part of the name, by the whole, or because there is only one; each is found again."""
    for spec, name in (
        ("own/gguf:Q8_0", "m-q8_0.gguf"),
        ("own/gguf:m-q4_k_m.gguf", "m-q4_k_m.gguf"),
        ("own/one", "only.gguf"),
    ):
        path = fetch_hub(spec)
        assert path.name == name
        seen = len(served.api.asked)
        assert fetch_hub(spec) == path
        assert len(served.api.asked) == seen


def test_model_scope_gives_the_same_model(served: Hub, model: dict[str, bytes]) -> None:
    """The other hub, the same files, verified by its checksums."""
    served.repos["own/tiny"] = model
    folder = fetch_hub("modelscope:own/tiny")
    assert {p.name: p.read_bytes() for p in folder.iterdir() if p.name != ".fetched.json"} == model
    assert fetch_hub("modelscope:own/tiny") == folder
    assert "modelscope" in folder.parts


def test_what_huggingface_hub_brought_is_used(served: Hub, model: dict[str, bytes], tmp_path: Path) -> None:
    """A whole snapshot in its cache is taken where it lies; one that lacks a weight file is not."""
    place = tmp_path / "hf" / "hub" / "models--own--tiny"
    snapshot = place / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text(COMMIT)
    for name, data in model.items():
        (snapshot / name).write_bytes(data)
    assert fetch_hub("own/tiny") == snapshot
    assert served.api.asked == []
    (snapshot / "model.safetensors").unlink()
    assert fetch_hub("own/tiny") != snapshot


def test_a_cut_connection_is_resumed(served: Hub, big: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut every 400 KB, the file arrives whole, and no byte is sent twice."""
    served.cut_after = 400_000
    folder = fetch_hub("own/big")
    assert (folder / "model.safetensors").read_bytes() == big
    assert served.sent == len(big)
    assert len(served.cdn.asked) == -(-len(big) // 400_000)


def test_a_server_without_ranges_sends_all_again(served: Hub, big: bytes, tmp_path: Path) -> None:
    """What was there is dropped rather than doubled."""
    place = tmp_path / "qak" / "cache" / "models" / "hf" / "own--big" / f"{COMMIT}.fetching"
    place.mkdir(parents=True)
    (place / "model.safetensors.part").write_bytes(big[:1000])
    served.ranges = False
    assert (fetch_hub("own/big") / "model.safetensors").read_bytes() == big


def test_a_corrupted_chunk_is_detected(served: Hub, big: bytes) -> None:
    """One bad transfer is repeated; two are an error that names the file, and nothing is left that could be loaded."""
    served.corrupt = 2
    error = refused("own/big")
    assert error.code == "checksum"
    assert "`model.safetensors` of `own/big`" in str(error)
    reference = parse_reference("own/big")
    assert reference is not None
    assert locate_model(reference) is None
    served.corrupt = 1
    assert (fetch_hub("own/big") / "model.safetensors").read_bytes() == big


def test_pieces_of_another_file_do_not_survive(served: Hub, big: bytes, tmp_path: Path) -> None:
    """A damaged piece of an earlier run, a piece that is too long, a whole file that was changed: all are replaced."""
    place = tmp_path / "qak" / "cache" / "models" / "hf" / "own--big" / f"{COMMIT}.fetching"
    for name, data in (
        ("model.safetensors.part", b"\xff" * 5000),
        ("model.safetensors.part", big + b"more"),
        ("model.safetensors", big[:-1] + b"\0"),
    ):
        shutil.rmtree(place.parent, ignore_errors=True)
        place.mkdir(parents=True)
        (place / name).write_bytes(data)
        assert (fetch_hub("own/big") / "model.safetensors").read_bytes() == big


def test_a_file_that_is_longer_than_listed_is_refused(served: Hub, big: bytes) -> None:
    """An endless file fills no disk."""
    served.repos["own/big"] = {**(served.repos["own/big"] or {})}
    listed = fetching.list_files(parse_reference("own/big"))  # type: ignore[arg-type]
    from qwen_agent_kit.placement.fetch_hubs import Listing

    shorter = tuple(
        type(f)(f.path, f.size - 10, f.checksum, f.url) if f.path.endswith(".safetensors") else f for f in listed.files
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fetching, "list_files", lambda *_: Listing(listed.reference, listed.commit, shorter))
        assert refused("own/big").code == "size"


def test_the_disk_is_looked_at_first(served: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """Too little space is said before the first byte of a file is asked for."""
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(fetching.shutil, "disk_usage", lambda _: usage._replace(free=2**20))
    error = refused("own/big")
    assert error.code == "disk_full"
    assert "1.0 MiB free" in str(error)
    assert asked_files(served) == []


def test_a_full_disk_keeps_what_came(served: Hub, big: bytes, tmp_path: Path) -> None:
    """A write that fails half-way is explained; with space again the rest is fetched, not the whole."""
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, 2**20));"
    run = child(limit + CODE.format(repo="own/big"), served, tmp_path)
    _, stderr = run.communicate()
    assert run.returncode != 0
    last = stderr[stderr.rindex("FetchError") :]
    assert "the disk is full: `model.safetensors`" in last
    assert "hint: free some space" in last
    sent = served.sent
    assert (fetch_hub("own/big") / "model.safetensors").read_bytes() == big
    assert served.sent - sent <= len(big) - 2**20 + 2**16


def killed_and_resumed(served: Hub, home: Path, big: bytes, times: int) -> None:
    rng = random.Random(times)
    served.pace = 0.03
    part = home / "qak" / "cache" / "models" / "hf" / "own--big" / f"{COMMIT}.fetching" / "model.safetensors.part"
    for n in range(times):
        run = child(CODE.format(repo="own/big"), served, home)
        have = part.stat().st_size if part.exists() else 0
        while n % 2 == 0 and run.poll() is None and (part.stat().st_size if part.exists() else 0) == have:
            time.sleep(0.005)  # every other one after something came, so that there is something to resume
        time.sleep(rng.random() * (0.8 if n % 2 else 0.1))
        run.kill()
        run.communicate()
        assert not (part.parent.parent / COMMIT).exists()
    sent, served.pace = served.sent, 0.0
    run = child(CODE.format(repo="own/big"), served, home)
    stdout, stderr = run.communicate()
    assert run.returncode == 0, stderr
    folder = Path(stdout.strip())
    assert (folder / "model.safetensors").read_bytes() == big
    assert served.sent - sent < len(big)
    assert not part.exists()


def test_killed_and_resumed(served: Hub, tmp_path: Path, big: bytes) -> None:
    """Killed (SIGKILL) in the middle three times, the fourth run brings the identical file without starting over."""
    killed_and_resumed(served, tmp_path, big, 3)


@pytest.mark.full
def test_killed_and_resumed_at_length(served: Hub, tmp_path: Path) -> None:
    """Killed at random 20 times, the 21st run brings the identical file."""
    big = random.Random(8).randbytes(24 * 2**20)
    served.repos["own/big"] = {**(served.repos["own/big"] or {}), "model.safetensors": big}
    killed_and_resumed(served, tmp_path, big, 20)


def test_two_processes_fetch_once(served: Hub, tmp_path: Path, big: bytes) -> None:
    """The second waits for the first and finds what it brought."""
    served.pace = 0.01
    runs = [child(CODE.format(repo="own/big"), served, tmp_path) for _ in range(2)]
    told = [run.communicate() for run in runs]
    assert [run.returncode for run in runs] == [0, 0], told
    assert told[0][0] == told[1][0]
    assert served.sent == len(big)


@pytest.mark.parametrize(
    "name", ["../x.safetensors", "/etc/x.safetensors", "a\\b.safetensors", "c:x.safetensors", "a\0.json", ""]
)
def test_odd_file_names_are_refused(served: Hub, name: str) -> None:
    """A hub that names a file outside its folder is not followed."""
    served.repos["own/tiny"] = {name: b"x", "model.safetensors": b"y"}
    with pytest.raises(FetchError, match="names the file"):
        fetch_hub("own/tiny")


def test_a_hub_that_answers_nonsense(served: Hub) -> None:
    """No commit, no list, sizes that are none, no JSON: an error each, nothing else."""
    good = {"sha": COMMIT, "siblings": [{"rfilename": "model.safetensors", "size": 1}]}
    odd = [{"rfilename": "m.safetensors", "size": size} for size in (-1, 2**60, "3", None, True)]
    for answer in (b"[]", b"{", b"[" * 10**5, b"{}", json.dumps({**good, "sha": "x"}).encode(), b"\xff"):
        served.api._server.RequestHandlerClass.routes = {"*": lambda e, a=answer: e.give(200, a)}  # type: ignore[attr-defined, misc]
        refused("own/tiny")
    for entry in (*odd, 3, "x"):
        answer = json.dumps({**good, "siblings": [entry]}).encode()
        served.api._server.RequestHandlerClass.routes = {"*": lambda e, a=answer: e.give(200, a)}  # type: ignore[attr-defined, misc]
        refused("own/tiny")
    answer = json.dumps(good).encode()
    served.api._server.RequestHandlerClass.routes = {"*": lambda e: e.give(200, answer)}  # type: ignore[attr-defined]
    assert refused("own/tiny").code == "checksum"  # nothing to verify it by


def test_headers_are_read_without_the_weights(served: Hub, model: dict[str, bytes], tmp_path: Path) -> None:
    """Names, shapes and bytes of every tensor by range request; a local directory gives the same."""
    reference = parse_reference("own/big")
    assert reference is not None
    header = read_header(reference)
    assert (header.commit, header.weight_bytes) == (COMMIT, 3 * 2**20)
    assert served.sent < 2**20
    assert header.config["model_type"] == "qwen3"
    for name, data in model.items():
        (tmp_path / name).write_bytes(data)
    tiny = parse_reference("own/tiny")
    assert tiny is not None
    remote, local = read_header(tiny), read_header(tmp_path)
    assert {(t.name, t.dtype, t.shape, t.size) for t in remote.tensors} == {
        (t.name, t.dtype, t.shape, t.size) for t in local.tensors
    }
    assert remote.config == local.config
    assert locate_model(tiny) is None


@pytest.mark.parametrize(
    "spec", ["Qwen/Qwen3-4B", "hf:a/b@v1.0", "modelscope:a/b", "a/b:q4_k_m@refs/pr/1", "a/b:sub/x.gguf"]
)
def test_references_read_as_they_are_written(spec: str) -> None:
    """What a reference prints means itself."""
    reference = parse_reference(spec)
    assert reference is not None
    assert parse_reference(str(reference)) == reference
    assert str(reference) == spec.removeprefix("hf:")


@pytest.mark.parametrize(
    "spec", ["", "a", "a/b/c", "/a/b", "a/b:", "a/b@", "../b", "a/..", "other:a/b", "a/b c", "a/b@-x"]
)
def test_what_is_no_reference(spec: str) -> None:
    """Paths and names of other kinds are not taken for a hub's."""
    assert parse_reference(spec) is None
