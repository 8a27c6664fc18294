"""A model hub on loopback: listings, redirects to a second host for large files, ranges, and every kind of trouble."""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

from loopback import Exchange, Site

COMMIT = "c0ffee" + "0" * 34
LARGE = (".safetensors", ".gguf", ".bin")


class Hub:
    """Serves repositories as Hugging Face and ModelScope do.

    Attributes:
        repos: Files by name, by repository. ``repos["own/gated"] = None`` is gated.
        commit: What ``main`` is.
        cut_after: Bytes after which each answer's connection is cut, None for never.
        corrupt: How many answers with large files get one byte wrong.
        ranges: Whether parts of a file can be asked for.
        pace: Seconds between blocks of 64 KiB.
        sent: Bytes of large files that were sent.
    """

    def __init__(self, repos: Mapping[str, Mapping[str, bytes] | None]) -> None:
        self.repos = dict(repos)
        self.commit = COMMIT
        self.cut_after: int | None = None
        self.corrupt = 0
        self.ranges = True
        self.pace = 0.0
        self.sent = 0
        self.cdn = Site({"*": self._cdn})
        self.api = Site({"*": self._api})

    @property
    def url(self) -> str:
        return self.api.url

    def close(self) -> None:
        self.api.close()
        self.cdn.close()

    def environment(self, home: Path) -> dict[str, str]:
        """What leads a process here, and keeps it from everything else."""
        return {
            "HF_ENDPOINT": self.url,
            "MODELSCOPE_ENDPOINT": self.url,
            "QAK_HOME": str(home / "qak"),
            "HF_HOME": str(home / "hf"),
            "HF_HUB_OFFLINE": "",
            "QAK_OFFLINE": "",
        }

    # --- the hub ---------------------------------------------------------------------------------------------------

    def _api(self, exchange: Exchange) -> None:
        url = urlsplit(exchange.path)
        path = unquote(url.path)
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/revision/(.+)", path):
            return self._listed(exchange, match[1], match[2])
        if match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            return self._resolved(exchange, match[1], match[2], match[3])
        if match := re.fullmatch(r"/api/v1/models/([^/]+/[^/]+)/repo(/files)?", path):
            return self._model_scope(exchange, match[1], parse_qs(url.query), bool(match[2]))
        return exchange.give(404)

    def _files(self, exchange: Exchange, repo: str) -> Mapping[str, bytes] | None:
        """A repository's files; None where the refusal was given already."""
        if repo not in self.repos:
            # As the hub does: an unknown repository and one that is hidden look the same to who is not signed in.
            known = "Authorization" in exchange.headers
            exchange.give(404 if known else 401, b"{}", {"X-Error-Code": "RepoNotFound"})
            return None
        files = self.repos[repo]
        if files is None and exchange.headers.get("Authorization") != "Bearer good":
            exchange.give(401, b"{}", {"X-Error-Code": "GatedRepo"})
            return None
        return files if files is not None else {}

    def _listed(self, exchange: Exchange, repo: str, revision: str) -> None:
        files = self._files(exchange, repo)
        if files is None:
            return
        if revision not in ("main", self.commit):
            exchange.give(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
            return
        siblings = []
        for name, data in files.items():
            entry: dict[str, object] = {"rfilename": name, "size": len(data), "blobId": git_sha1(data)}
            if name.endswith(LARGE):
                entry["lfs"] = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 130}
            siblings.append(entry)
        exchange.give(200, json.dumps({"id": repo, "sha": self.commit, "siblings": siblings}).encode())

    def _resolved(self, exchange: Exchange, repo: str, revision: str, name: str) -> None:
        files = self._files(exchange, repo)
        if files is None:
            return
        if revision != self.commit or name not in files:
            exchange.give(404, b"{}", {"X-Error-Code": "EntryNotFound"})
        elif name.endswith(LARGE):
            digest = hashlib.sha256(files[name]).hexdigest()
            place = f"{self.cdn.url}/{digest}?signature=secret"
            marks = {"Location": place, "X-Linked-Etag": f'"{digest}"', "X-Linked-Size": str(len(files[name]))}
            exchange.give(302, b"", {**marks, "X-Repo-Commit": revision})
        else:
            exchange.give(200, files[name], {"ETag": f'"{git_sha1(files[name])}"', "X-Repo-Commit": revision})

    def _model_scope(self, exchange: Exchange, repo: str, query: Mapping[str, list[str]], listing: bool) -> None:
        files = self.repos.get(repo)
        if files is None or query["Revision"] != ["master"]:
            exchange.give(404, json.dumps({"Code": 10010205001, "Message": "not found"}).encode())
        elif listing:
            rows: list[dict[str, object]] = [{"Name": "sub", "Path": "sub", "Type": "tree", "Size": 0}]
            for name, data in files.items():
                digest = hashlib.sha256(data).hexdigest()
                rows.append({"Name": name, "Path": name, "Type": "blob", "Size": len(data), "Sha256": digest})
            exchange.give(200, json.dumps({"Code": 200, "Data": {"Files": rows}}).encode())
        elif query["FilePath"][0] in files:
            self._send(exchange, files[query["FilePath"][0]])
        else:
            exchange.give(404)

    # --- the second host -------------------------------------------------------------------------------------------

    def _cdn(self, exchange: Exchange) -> None:
        digest = urlsplit(exchange.path).path[1:]
        for files in self.repos.values():
            for data in (files or {}).values():
                if hashlib.sha256(data).hexdigest() == digest:
                    return self._send(exchange, data)
        return exchange.give(404)

    def _send(self, exchange: Exchange, data: bytes) -> None:
        start, end = 0, len(data)
        match = re.fullmatch(r"bytes=(\d+)-(\d*)", exchange.headers.get("Range", ""))
        if match and self.ranges:
            start, end = int(match[1]), min(len(data), int(match[2]) + 1 if match[2] else len(data))
            marks = {"Content-Range": f"bytes {start}-{end - 1}/{len(data)}", "Content-Length": str(end - start)}
            exchange.head(206, marks)
        else:
            exchange.head(200, {"Content-Length": str(len(data))})
        body = bytearray(data[start:end])
        if self.corrupt > 0 and len(body) > 100:
            self.corrupt -= 1
            body[len(body) // 2] ^= 1
        for at in range(0, len(body), 2**16):
            block = bytes(body[at : at + 2**16])
            if self.cut_after is not None and at + len(block) > self.cut_after:
                exchange.write(block[: self.cut_after - at])
                self.sent += self.cut_after - at
                return exchange.cut()
            if not exchange.write(block):
                return None
            self.sent += len(block)
            if self.pace:
                time.sleep(self.pace)
        return None


def git_sha1(data: bytes) -> str:
    """The name of git's blob."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def files_of(folder: Path) -> dict[str, bytes]:
    """What lies in a folder, by name."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}


@contextmanager
def hub(repos: Mapping[str, Mapping[str, bytes] | None]) -> Iterator[Hub]:
    """A hub while the block runs."""
    made = Hub(repos)
    try:
        yield made
    finally:
        made.close()
