"""Fetching from a hub that is served on loopback: only data files come, and each refusal is explained."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

COMMIT = "a" * 40
FILES = {
    "config.json": json.dumps({"model_type": "qwen2"}).encode(),
    "model.safetensors": b"\x02\0\0\0\0\0\0\0{}",
    "pytorch_model.bin": b"a pickle",
    "modeling_evil.py": b"print('code')",
    "tokenizer.json": b"{}",
}
FETCH = "from qwen_agent_kit.placement.fetch import fetch_hub; print(fetch_hub({repo!r}))"


class Hub(BaseHTTPRequestHandler):
    """As much of the hub's interface as snapshot_download uses."""

    asked: list[str]

    def answer(self, body: bool) -> None:
        type(self).asked.append(self.path)
        path = self.path.split("?")[0]
        if "gated" in path:
            return self.send(403, b"", {"X-Error-Code": "GatedRepo", "X-Error-Message": "gated"}, body)
        if path.startswith("/api/models/own/tiny"):
            listed = [
                {"type": "file", "path": name, "size": len(data), "oid": "0" * 40} for name, data in FILES.items()
            ]
            info = {"id": "own/tiny", "sha": COMMIT, "siblings": [{"rfilename": name} for name in FILES]}
            return self.send(200, json.dumps(listed if "/tree/" in path else info).encode(), {}, body)
        name = path.rpartition("/")[2]
        if path.startswith("/own/tiny/resolve/") and name in FILES:
            mark = {"ETag": f'"{hashlib.sha1(FILES[name]).hexdigest()}"', "X-Repo-Commit": COMMIT}
            return self.send(200, FILES[name], mark, body)
        return self.send(404, b"{}", {"X-Error-Code": "RepoNotFound", "X-Error-Message": "not found"}, body)

    def send(self, code: int, data: bytes, headers: dict[str, str], body: bool) -> None:
        self.send_response(code)
        for name, value in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.wfile.write(data)

    def do_GET(self) -> None:
        self.answer(True)

    def do_HEAD(self) -> None:
        self.answer(False)

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@pytest.fixture
def hub() -> Iterator[str]:
    Hub.asked = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


def fetch(repo: str, endpoint: str, home: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1", **variables}
    code = FETCH.format(repo=repo)
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)


def test_data_comes_and_code_stays(hub: str, tmp_path: Path) -> None:
    """Safetensors and JSON are fetched whole; pickles and code are not even asked for; offline finds them again."""
    run = fetch("own/tiny", hub, tmp_path)
    assert run.returncode == 0, run.stderr[-1500:]
    folder = Path(run.stdout.strip())
    assert {path.name for path in folder.iterdir()} == {"config.json", "model.safetensors", "tokenizer.json"}
    assert (folder / "config.json").read_bytes() == FILES["config.json"]
    assert not [path for path in Hub.asked if path.endswith((".bin", ".py"))]
    Hub.asked.clear()
    again = fetch("own/tiny", hub, tmp_path, HF_HUB_OFFLINE="1")
    assert Path(again.stdout.strip()) == folder
    assert Hub.asked == []


@pytest.mark.parametrize(
    ("repo", "words"),
    [("own/gated", "gated"), ("own/none", "no model `own/none`"), ("own/away", "not on this machine")],
)
def test_a_refusal_is_explained(hub: str, tmp_path: Path, repo: str, words: str) -> None:
    """A gated, an unknown and an unreachable repository are errors with a hint."""
    offline = {"HF_HUB_OFFLINE": "1"} if repo == "own/away" else {}
    run = fetch(repo, hub, tmp_path, **offline)
    assert run.returncode != 0
    last = run.stderr[run.stderr.rindex("FetchError") :]
    assert words in last
    assert "hint: " in last
