"""Which files of a repository make up a model, and which repositories are refused before a weight is fetched."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

from qwen_agent_kit.errors import ModelError, UsageError
from qwen_agent_kit.placement.fetch_hubs import Listing, RemoteFile

__all__ = ["OWN_CODE", "PATTERNS", "choose", "refuse_code", "saved_as"]

PATTERNS = ("*.safetensors", "*.safetensors.index.json", "*.json", "*.jinja", "*.txt", "*.tiktoken")
"""What a model directory is made of; nothing here is code, and no pickle."""

OWN_CODE = frozenset({"configuration_qwen.QWenConfig", "modeling_qwen.QWenLMHeadModel"})
"""What Qwen 1.0 repositories name as remote code: their own model, which the kit builds itself."""

_PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")
_TEXT_BYTES = 256 * 2**20


def saved_as(file: RemoteFile) -> str:
    """The name of a file in the model's folder."""
    return PurePosixPath(file.path).name


def choose(listing: Listing) -> tuple[RemoteFile, ...]:
    """The files to fetch: one GGUF file, or a directory of safetensors with what belongs to it.

    Raises:
        ModelError: ``pickled_weights`` where the weights are pickles only; ``no_weights`` where there are none.
        UsageError: Where the reference names no GGUF file, or does not tell which of several.
    """
    reference, files = listing.reference, listing.files
    ggufs = [f for f in files if f.path.lower().endswith(".gguf")]
    top = [f for f in files if "/" not in f.path and not f.path.startswith(".")]
    tensors = [f for f in top if f.path.endswith(".safetensors")]
    if reference.file or (ggufs and not tensors):
        return (_gguf(reference.file, ggufs, str(reference)),)
    if not tensors:
        pickled = sorted(f.path for f in files if f.path.endswith(_PICKLES))
        if pickled:
            raise ModelError(
                f"`{reference}` has its weights as `{pickled[0]}`, a pickle, which can run code when opened; allowed: "
                ".safetensors, .gguf",
                hint="take a repository or revision with safetensors, or convert it where you trust it",
                code="pickled_weights",
            )
        raise ModelError(f"`{reference}` holds no safetensors and no GGUF file", code="no_weights")
    named = [f for f in tensors if f.path.startswith("model")] or tensors
    others = [f for f in top if f not in tensors and any(fnmatch.fnmatch(f.path, p) for p in PATTERNS)]
    return (*(f for f in others if f.size <= _TEXT_BYTES), *named)


def _gguf(wanted: str, ggufs: list[RemoteFile], reference: str) -> RemoteFile:
    fitting = [f for f in ggufs if wanted.casefold() == f.path.casefold()]
    fitting = fitting or [f for f in ggufs if wanted.casefold() in f.path.casefold()]
    if len(fitting) == 1:
        if "-of-" in fitting[0].path:
            raise ModelError(
                f"`{fitting[0].path}` of `{reference}` is one piece of a GGUF file; allowed: whole ones",
                hint="join the pieces with llama.cpp's gguf-split, or take another file",
            )
        return fitting[0]
    names = sorted(f.path for f in fitting or ggufs)
    shown = ", ".join(f"`{name}`" for name in names[:12]) + (" ..." if len(names) > 12 else "")
    what = f"has {len(fitting)} files for {wanted!r}" if fitting else f"has no GGUF file {wanted!r}"
    raise UsageError(
        f"`{reference}` {what}; found: {shown or 'none'}",
        hint="name one, as in `owner/name:q4_k_m`",
        code="model_not_found",
    )


def refuse_code(config: Mapping[str, Any], where: str) -> None:
    """Refuse a config.json that asks for code of its own to be run.

    Raises:
        ModelError: ``remote_code``.
    """
    for given in (config, config.get("text_config")):
        if not isinstance(given, Mapping):
            continue
        named = given.get("auto_map")
        if given.get("model_type") == "qwen" and isinstance(named, Mapping):
            named = None if all(isinstance(v, str) and v in OWN_CODE for v in named.values()) else named
        if named is not None or given.get("custom_pipelines") is not None:
            raise ModelError(
                f"`config.json` of `{where}` has `auto_map` or `custom_pipelines`; allowed: none, for code that comes "
                "with a model is never run",
                hint="use a checkpoint of an architecture that the kit builds itself",
                code="remote_code",
            )
