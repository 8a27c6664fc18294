"""Brings a model's files from a Hugging Face hub: safetensors, tokenizer and configuration, nothing that is code.

``huggingface_hub`` does the transfer: resumable, cached, checked against the hub's sizes and hashes.
"""

from __future__ import annotations

import os
from pathlib import Path

from qwen_agent_kit.errors import FetchError

__all__ = ["PATTERNS", "fetch_hub"]

PATTERNS = ("*.safetensors", "*.safetensors.index.json", "*.json", "*.jinja", "*.txt")


def fetch_hub(repo: str, *, revision: str | None = None, offline: bool | None = None, token: str | None = None) -> Path:
    """The directory with the files of ``repo``, fetched where they are not here yet.

    Args:
        repo: ``owner/name``.
        revision: A branch, tag or commit.
        offline: Only look at what is here; the environment's ``HF_HUB_OFFLINE`` where None.
        token: For gated repositories.

    Raises:
        FetchError: Where the hub cannot be reached, refuses, or has no such model.
    """
    import httpx
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

    if offline is None:
        offline = os.environ.get("HF_HUB_OFFLINE", "") not in ("", "0")
    hint = "pass a local directory or a .gguf file; `qak models` lists what is here"
    try:
        patterns = list(PATTERNS)
        place = snapshot_download(
            repo, revision=revision, allow_patterns=patterns, local_files_only=offline, token=token
        )
    except GatedRepoError as error:
        raise FetchError(f"`{repo}` is gated on the hub", hint="accept its licence there and set HF_TOKEN") from error
    except RepositoryNotFoundError as error:
        raise FetchError(f"the hub has no model `{repo}` that you may read", hint=hint) from error
    except LocalEntryNotFoundError as error:
        raise FetchError(f"`{repo}` is not on this machine and the hub cannot be reached", hint=hint) from error
    except (HfHubHTTPError, httpx.HTTPError, OSError) as error:
        raise FetchError(f"fetching `{repo}` failed: {type(error).__name__}", hint=hint) from error
    return Path(place)
