"""Brings a model's files here: from Hugging Face or ModelScope, pinned, resumed, verified; nothing that is code.

A model lies under ``models/HUB/owner--name/``. ``COMMIT/`` (for one GGUF file ``COMMIT--file/``) appears, by one
rename, when every file in it is whole and has its checksum; until then the pieces are in ``COMMIT.fetching/``.
``refs/REVISION`` names the commit that a branch or tag was when it was last asked for. What Hugging Face's own tools
brought is used where it lies.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from urllib.parse import quote

from qwen_agent_kit.errors import FetchError, ModelError
from qwen_agent_kit.paths import cache_dir, write_private
from qwen_agent_kit.placement.fetch_choice import PATTERNS, choose, refuse_code, saved_as
from qwen_agent_kit.placement.fetch_file import PART, fetch_file, matches, no_space
from qwen_agent_kit.placement.fetch_hubs import (
    Listing,
    Reference,
    RemoteFile,
    endpoint_of,
    headers_for,
    list_files,
    parse_reference,
)
from qwen_agent_kit.placement.fetch_progress import Progress

__all__ = ["PATTERNS", "Reference", "fetch_hub", "fetch_model", "is_offline", "locate_model", "parse_reference"]

MANIFEST = ".fetched.json"
"""Written last; a folder without it is not whole. No file of a hub has this name here: dotfiles are left out."""
WORKERS = 4
SPARE = 64 * 2**20
"""Bytes of the disk that a download leaves free."""

_COMMIT_LENGTH = 40


def fetch_hub(repo: str, *, revision: str | None = None, offline: bool | None = None, token: str | None = None) -> Path:
    """The directory with the files of ``repo``; see ``fetch_model``.

    Args:
        repo: ``owner/name``, or any form of ``Reference``.
        revision: A branch, tag or commit.
        offline: Only look at what is here; the environment's where None.
        token: For gated repositories.
    """
    reference = parse_reference(repo)
    if reference is None:
        raise FetchError(f"{repo[:80]!r} names no model of a hub", hint="a hub id has the form owner/name")
    if revision is not None:
        reference = Reference(reference.hub, reference.repo, reference.file, revision)
    return fetch_model(reference, offline=offline, token=token)


def is_offline() -> bool:
    """Whether the environment forbids the network: ``QAK_OFFLINE`` or ``HF_HUB_OFFLINE``."""
    return any(os.environ.get(name, "") not in ("", "0") for name in ("QAK_OFFLINE", "HF_HUB_OFFLINE"))


def fetch_model(
    reference: Reference,
    *,
    offline: bool | None = None,
    token: str | None = None,
    renew: bool = False,
    progress: Callable[[str, int], Progress] = Progress.on_stderr,
) -> Path:
    """A model's directory, or its GGUF file: what is here already, else brought here.

    Args:
        reference: Which.
        offline: Only look at what is here; the environment's where None.
        token: For gated repositories; goes to the hub's own host only.
        renew: Ask the hub whether a branch or tag has moved, even if the model is here.
        progress: Makes what is told of the transfer, from a title and the bytes in all.

    Raises:
        FetchError: Where the hub cannot be reached, refuses, or has no such model; where the disk is full, or what came
            is not what the hub lists.
        ModelError: Where the model is refused: pickled weights, code of its own.
    """
    found = None if renew else locate_model(reference)
    if found is not None:
        return found
    if is_offline() if offline is None else offline:
        here = locate_model(reference)
        if here is not None:
            return here
        raise FetchError(
            f"`{reference}` is not on this machine, and fetching is switched off",
            hint="unset QAK_OFFLINE and HF_HUB_OFFLINE, or pass a local directory or a .gguf file",
            code="offline",
        )
    listing = list_files(reference, token)
    home = _home(reference)
    with _locked(home):
        place = _bring(listing, choose(listing), home, token, progress)
        _remember(home, reference, listing.commit)
    return place


def locate_model(reference: Reference) -> Path | None:
    """Where a model lies whole on this machine, None where it does not; asks nobody."""
    home = _home(reference)
    commit = _commit_of(home, reference)
    if commit is not None:
        for place in (home / _folder(commit, reference.file), *_guesses(home, commit, reference)):
            if (place / MANIFEST).is_file():
                return _opened(place)
    return _from_hugging_face(reference)


# --- where things lie -------------------------------------------------------------------------------------------------


def _home(reference: Reference) -> Path:
    owner, _, name = reference.repo.partition("/")
    return cache_dir("models", reference.hub) / f"{owner}--{name}"


def _folder(commit: str, file: str) -> str:
    return f"{commit}--{quote(file.casefold(), safe='')}" if file else commit


def _guesses(home: Path, commit: str, reference: Reference) -> list[Path]:
    """Folders of one GGUF file whose name holds what the reference says."""
    wanted = quote(reference.file.casefold(), safe="")
    folders = [p for p in sorted(home.glob(f"{commit}--*")) if not p.name.endswith(".fetching")]
    fitting = [p for p in folders if wanted in p.name.partition("--")[2]]
    return fitting if len(fitting) == 1 else []


def _opened(place: Path) -> Path:
    """The folder, or the GGUF file that is alone in it."""
    ggufs = sorted(place.glob("*.gguf"))
    return ggufs[0] if len(ggufs) == 1 and not any(place.glob("*.safetensors")) else place


def _commit_of(home: Path, reference: Reference) -> str | None:
    revision = reference.revision
    if len(revision) == _COMMIT_LENGTH and all(c in "0123456789abcdef" for c in revision):
        return revision
    try:
        text = (home / "refs" / quote(revision, safe="")).read_text().strip()
    except OSError:
        return None
    return text if len(text) == _COMMIT_LENGTH and text.isalnum() else None


def _remember(home: Path, reference: Reference, commit: str) -> None:
    refs = home / "refs"
    refs.mkdir(mode=0o700, exist_ok=True)
    write_private(refs / quote(reference.revision, safe=""), commit.encode())


def _from_hugging_face(reference: Reference) -> Path | None:
    """The snapshot that huggingface_hub keeps, if every weight file that it should have is there."""
    if reference.hub != "hf" or reference.file:
        return None
    root = os.environ.get("HF_HUB_CACHE") or os.environ.get("HF_HOME") or "~/.cache/huggingface"
    base = Path(root).expanduser() / ("" if os.environ.get("HF_HUB_CACHE") else "hub")
    home = base / f"models--{reference.repo.replace('/', '--')}"
    try:
        named = home / "refs" / reference.revision
        commit = named.read_text().strip() if named.is_file() else reference.revision
        place = home / "snapshots" / commit
        if not (place / "config.json").is_file() or "/" in commit:
            return None
        index = place / "model.safetensors.index.json"
        shards = json.loads(index.read_bytes())["weight_map"].values() if index.is_file() else ["model.safetensors"]
        texts = any((place / name).is_file() for name in ("tokenizer.json", "qwen.tiktoken"))
        return place if texts and all((place / str(shard)).is_file() for shard in shards) else None
    except (OSError, ValueError, KeyError, AttributeError):
        return None


@contextlib.contextmanager
def _locked(home: Path) -> Iterator[None]:
    """One process fetches a model at a time; the next one waits and finds it."""
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    with (home / ".lock").open("w") as file:
        with contextlib.suppress(ImportError):  # Windows: the rename at the end still keeps halves apart
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX)
        yield


# --- the transfer -----------------------------------------------------------------------------------------------------


def _bring(
    listing: Listing,
    chosen: Sequence[RemoteFile],
    home: Path,
    token: str | None,
    progress: Callable[[str, int], Progress],
) -> Path:
    """Fetch the chosen files and put them in their place together."""
    single = chosen[0].path if len(chosen) == 1 and chosen[0].path.lower().endswith(".gguf") else ""
    place = home / _folder(listing.commit, single)
    if (place / MANIFEST).is_file():
        return _opened(place)
    fetching = place.with_name(place.name + ".fetching")
    fetching.mkdir(mode=0o700, exist_ok=True)
    here = {file.path: _present(fetching, file) for file in chosen}
    total = sum(file.size for file in chosen)
    _check_space(total - sum(here.values()), home)
    meter = progress(f"fetching {listing.reference} from {endpoint_of(listing.reference.hub)}", total)
    meter.have(sum(here.values()))
    texts = [file for file in chosen if not file.path.endswith((".safetensors", ".gguf"))]
    weights = [file for file in chosen if file not in texts]
    _transfer(listing.reference, texts, fetching, token, meter)
    _refuse_by_config(fetching, str(listing.reference))  # before the large files come
    _transfer(listing.reference, weights, fetching, token, meter)
    meter.finish()
    write_private(fetching / MANIFEST, _manifest(listing, chosen))
    os.replace(fetching, place)
    return _opened(place)


def _present(folder: Path, file: RemoteFile) -> int:
    """Bytes of a file that are here; a whole one is trusted only after its checksum was seen once more."""
    whole = folder / saved_as(file)
    if whole.is_file():
        if matches(whole, file):
            return file.size
        whole.unlink()
    part = whole.with_name(whole.name + PART)
    return min(part.stat().st_size, file.size) if part.is_file() else 0


def _check_space(needed: int, home: Path) -> None:
    free = shutil.disk_usage(home).free
    if needed + SPARE > free:
        raise no_space(needed, free, home)


def _transfer(
    reference: Reference, files: Sequence[RemoteFile], folder: Path, token: str | None, meter: Progress
) -> None:
    """Several files at a time; the first failure ends all, and what has come is kept."""
    stop = threading.Event()
    headers = headers_for(reference, token)

    def one(file: RemoteFile) -> None:
        target = folder / saved_as(file)
        if not target.is_file():
            fetch_file(reference, file, target, headers=headers, tell=meter, stop=stop)

    with ThreadPoolExecutor(WORKERS, thread_name_prefix="qak-fetch") as pool:
        jobs = [pool.submit(one, file) for file in files]
        try:
            for job in as_completed(jobs):
                job.result()
        except BaseException:
            stop.set()
            for job in jobs:
                job.cancel()
            raise


def _refuse_by_config(folder: Path, where: str) -> None:
    path = folder / "config.json"
    if not path.is_file():
        return
    try:
        config = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ModelError(f"`config.json` of `{where}` is no JSON", code="invalid_config") from error
    if isinstance(config, dict):
        refuse_code(config, where)


def _manifest(listing: Listing, chosen: Sequence[RemoteFile]) -> bytes:
    reference = listing.reference
    record = {
        "hub": reference.hub,
        "repo": reference.repo,
        "revision": reference.revision,
        "commit": listing.commit,
        "files": [{"path": f.path, "size": f.size, "checksum": f.checksum} for f in chosen],
    }
    return json.dumps(record, indent=1).encode()
