"""What a hub says about a model: its commit, its files, their sizes and checksums, and where their bytes are.

Hugging Face (huggingface.co/docs/hub/api): ``GET /api/models/REPO/revision/REV?blobs=true`` lists, and
``GET /REPO/resolve/COMMIT/FILE`` gives. ModelScope (modelscope/hub/api.py of github.com/modelscope/modelscope):
``GET /api/v1/models/REPO/repo/files?Revision=REV&Recursive=true`` and ``.../repo?Revision=REV&FilePath=FILE``.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any, NoReturn
from urllib.parse import quote

from qwen_agent_kit.errors import FetchError, UsageError

if TYPE_CHECKING:
    from qwen_agent_kit import net

__all__ = [
    "Listing",
    "Reference",
    "RemoteFile",
    "endpoint_of",
    "headers_for",
    "list_files",
    "parse_reference",
    "refusal",
]

_LISTING_BYTES = 64 * 2**20
_MOST_FILES = 20_000
_REPO = r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}"
_REFERENCE = re.compile(
    rf"(?:(?P<hub>hf|modelscope):)?(?P<repo>{_REPO})(?::(?P<file>[\w.,+/ -]{{1,200}}))?"
    r"(?:@(?P<revision>[\w.][\w./-]{0,199}))?"
)
_DEFAULT_ENDPOINTS = {"hf": "https://huggingface.co", "modelscope": "https://modelscope.cn"}
_VARIABLES = {"hf": "HF_ENDPOINT", "modelscope": "MODELSCOPE_ENDPOINT"}
_BRANCHES = {"hf": "main", "modelscope": "master"}
_SHA1, _SHA256 = re.compile(r"[0-9a-f]{40}"), re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Reference:
    """A model on a hub, as a user names it: ``[hf:|modelscope:]owner/name[:file][@revision]``.

    Args:
        hub: ``hf`` or ``modelscope``.
        repo: ``owner/name``.
        file: A GGUF file of the repository or a part of its name (``q4_k_m``), empty for the whole model.
        revision: Branch, tag or commit.
    """

    hub: str
    repo: str
    file: str = ""
    revision: str = "main"

    def __str__(self) -> str:
        hub = "" if self.hub == "hf" else f"{self.hub}:"
        file = f":{self.file}" if self.file else ""
        revision = "" if self.revision == _BRANCHES[self.hub] else f"@{self.revision}"
        return f"{hub}{self.repo}{file}{revision}"


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file of a repository.

    Args:
        path: Inside the repository, with slashes.
        size: In bytes.
        checksum: ``sha256:HEX``, or ``git:HEX`` for the SHA-1 of git's blob; empty where the hub tells none.
        url: Where its bytes are.
    """

    path: str
    size: int
    checksum: str
    url: str


@dataclass(frozen=True, slots=True)
class Listing:
    """A repository at one commit."""

    reference: Reference
    commit: str
    files: tuple[RemoteFile, ...]


def parse_reference(text: str) -> Reference | None:
    """What a user wrote, None where it names no hub model."""
    match = _REFERENCE.fullmatch(text)
    if match is None:
        return None
    hub = match["hub"] or "hf"
    return Reference(hub, match["repo"], match["file"] or "", match["revision"] or _BRANCHES[hub])


def endpoint_of(hub: str) -> str:
    """The hub's address, the environment's where it names one.

    Raises:
        UsageError: Where that is no http(s) address.
    """
    from qwen_agent_kit.net import check_url  # net brings httpx, which looking for a local model can do without

    address = os.environ.get(_VARIABLES[hub]) or _DEFAULT_ENDPOINTS[hub]
    try:
        check_url(address, "configured")
    except UsageError as error:
        raise UsageError(f"`{_VARIABLES[hub]}` is no address: {error.message}", code="invalid_config") from None
    return address.rstrip("/")


def headers_for(reference: Reference, token: str | None) -> dict[str, str]:
    """What is sent besides the address; ``net`` keeps the token from every other host."""
    return {"Authorization": f"Bearer {token}"} if token and reference.hub == "hf" else {}


def list_files(reference: Reference, token: str | None = None) -> Listing:
    """Ask the hub.

    Raises:
        FetchError: ``not_found``, ``gated``, ``unauthorized`` or ``fetch``, with the cure.
    """
    return _hugging_face(reference, token) if reference.hub == "hf" else _model_scope(reference)


def _hugging_face(reference: Reference, token: str | None) -> Listing:
    endpoint = endpoint_of("hf")
    url = f"{endpoint}/api/models/{reference.repo}/revision/{quote(reference.revision, safe='')}?blobs=true"
    data = _ask(reference, url, headers_for(reference, token))
    commit = data.get("sha")
    if not isinstance(commit, str) or not _SHA1.fullmatch(commit):
        _odd(reference, "names no commit")
    files = []
    for entry in _entries(reference, data.get("siblings")):
        path, size, lfs, blob = entry.get("rfilename"), entry.get("size"), entry.get("lfs"), entry.get("blobId")
        if isinstance(lfs, Mapping):
            size = lfs.get("size", size)
        sha256 = lfs.get("sha256") if isinstance(lfs, Mapping) else None
        checksum = _checksum(sha256, _SHA256, "sha256") or _checksum(blob, _SHA1, "git")
        place = f"{endpoint}/{reference.repo}/resolve/{commit}/{quote(str(path))}"
        files.append(_file(reference, path, size, checksum, place))
    return Listing(reference, commit, tuple(files))


def _model_scope(reference: Reference) -> Listing:
    endpoint = endpoint_of("modelscope")
    base = f"{endpoint}/api/v1/models/{reference.repo}/repo"
    revision = quote(reference.revision, safe="")
    data = _ask(reference, f"{base}/files?Revision={revision}&Recursive=true", {})
    inner = data.get("Data")
    if data.get("Code") not in (200, None) or not isinstance(inner, Mapping):
        _odd(reference, "lists no files")
    files = []
    for entry in _entries(reference, inner.get("Files")):
        if entry.get("Type") == "tree":
            continue
        path, checksum = entry.get("Path"), _checksum(entry.get("Sha256"), _SHA256, "sha256")
        place = f"{base}?Revision={revision}&FilePath={quote(str(path), safe='')}"
        files.append(_file(reference, path, entry.get("Size"), checksum, place))
    # The listing names no commit of the whole, so the checksums of the files stand for it.
    together = "\n".join(sorted(f"{f.path} {f.size} {f.checksum}" for f in files))
    return Listing(reference, hashlib.sha256(together.encode()).hexdigest()[:40], tuple(files))


def _checksum(value: Any, form: re.Pattern[str], name: str) -> str:
    return f"{name}:{value}" if isinstance(value, str) and form.fullmatch(value) else ""


def _entries(reference: Reference, given: Any) -> list[Mapping[str, Any]]:
    if not isinstance(given, list) or len(given) > _MOST_FILES or not all(isinstance(e, Mapping) for e in given):
        _odd(reference, f"lists no files, or more than {_MOST_FILES}")
    return given


def _file(reference: Reference, path: Any, size: Any, checksum: str, url: str) -> RemoteFile:
    if not isinstance(path, str) or not _harmless(path):
        _odd(reference, f"names the file {str(path)[:80]!r}")
    if isinstance(size, bool) or not isinstance(size, int) or not 0 <= size < 2**50:
        _odd(reference, f"gives `{path[:80]}` the size {str(size)[:40]!r}")
    return RemoteFile(path, size, checksum, url)


def _harmless(path: str) -> bool:
    """Whether a name stays where it is put, on any system."""
    parts = PurePosixPath(path).parts
    odd = any(c in '\\:*?"<>|' or ord(c) < 32 for c in path)
    return bool(parts) and len(path) <= 400 and not odd and not path.startswith("/") and ".." not in parts


def _ask(reference: Reference, url: str, headers: Mapping[str, str]) -> dict[str, Any]:
    from qwen_agent_kit.net import open_url

    with open_url(url, trust="configured", headers=headers, seconds=60.0) as reply:
        if reply.status != 200:
            raise refusal(reference, reply)
        body = reply.read(_LISTING_BYTES)
    try:
        data = json.loads(body)
    except (ValueError, RecursionError):
        data = None
    if not isinstance(data, dict):
        _odd(reference, "answers with something else than a JSON object")
    return data


def _odd(reference: Reference, what: str) -> NoReturn:
    raise FetchError(
        f"the hub's answer about `{reference}` {what}", hint=f"check {_VARIABLES[reference.hub]} and the name"
    )


def refusal(reference: Reference, reply: net.Reply) -> FetchError:
    """The error for an answer that is no success, by its status and the hub's ``X-Error-Code``."""
    code, status = reply.headers.get("x-error-code", ""), reply.status
    if code == "GatedRepo":
        return FetchError(
            f"`{reference.repo}` is gated on the hub", hint="accept its licence there and set HF_TOKEN", code="gated"
        )
    if code == "RevisionNotFound" or (status == 404 and code == "EntryNotFound"):
        return FetchError(
            f"`{reference.repo}` has no revision {reference.revision!r}, or lost a file of it",
            hint="leave `@revision` out for the newest",
            code="not_found",
        )
    if status in (401, 404) and code != "":
        known = "" if status == 404 else ", or it is private and HF_TOKEN is missing or wrong"
        return FetchError(
            f"the hub has no model `{reference.repo}` that you may read{known}", hint=_HERE, code="not_found"
        )
    if status in (401, 403):
        return FetchError(
            f"the hub refuses `{reference.repo}` with status {status}",
            hint="set HF_TOKEN to a token that may read it",
            code="unauthorized",
        )
    if status == 404:
        return FetchError(f"the hub has no model `{reference.repo}`", hint=_HERE, code="not_found")
    again = "try again later" if status == 429 or status >= 500 else "check the endpoint"
    return FetchError(f"the hub answers for `{reference.repo}` with status {status}", hint=again)


_HERE = "pass a local directory or a .gguf file; `qak models` lists what is here"
