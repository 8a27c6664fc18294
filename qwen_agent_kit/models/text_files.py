"""What a model's files say about text: tokenizer, chat template, ends of a turn, sampling defaults."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from qwen_agent_kit.backends import Sampling
from qwen_agent_kit.errors import ModelError, UsageError
from qwen_agent_kit.models.fields import parse_json, read_json, read_text
from qwen_agent_kit.models.tiktoken_file import QWEN_TEMPLATE, tokenizer_from_tiktoken

__all__ = ["TextFiles", "eos_from_gguf", "read_text_files"]

MAX_TEMPLATE = 2**20
MAX_EOS = 64

_SPECIAL = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_SAMPLING = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")


@dataclass(frozen=True)
class TextFiles:
    """See ``LoadedModel``."""

    tokenizer_json: str
    template: str | None = None
    special: Mapping[str, str] = field(default_factory=dict)
    eos: tuple[int, ...] = ()
    sampling: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """JSON data; ``from_dict`` reads it back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> TextFiles:
        """Read what ``to_dict`` wrote."""
        return cls(**{**data, "eos": tuple(data["eos"])})


def read_text_files(folder: Path, config: Mapping[str, Any], vocab_size: int) -> TextFiles:
    """Read the text files of a model directory.

    Args:
        folder: Holds tokenizer.json, and may hold tokenizer_config.json, chat_template.jinja, chat_template.json (as
            processors kept it), generation_config.json.
        config: What config.json holds, for its ``eos_token_id``.
        vocab_size: Ids are below it.

    Raises:
        ModelError: Names the file and the field.
    """
    tokenizer_json = _tokenizer_text(folder)
    tokenizer = _tokenizer(tokenizer_json)
    settings = _optional(folder / "tokenizer_config.json")
    own = config.get("model_type") == "qwen"  # its repositories name their own tokenizer's code, which is not needed
    if settings.get("auto_map") is not None and not own:
        raise ModelError(
            "`auto_map` in `tokenizer_config.json` names code; allowed: nothing, since it is never run",
            hint="use another checkpoint",
            code="invalid_config",
        )
    generation = _optional(folder / "generation_config.json")
    special = {name: text for name in _SPECIAL if (text := _content(settings.get(name))) is not None}
    template = _template(folder, settings) or (QWEN_TEMPLATE if own else None)
    eos = _ids(generation, "eos_token_id", "generation_config.json", vocab_size)
    eos += _ids(config, "eos_token_id", "config.json", vocab_size) if not eos else ()
    known = {str(t["content"]): int(t["id"]) for t in tokenizer.get("added_tokens") or ()}
    eos += tuple(known[name] for name in _turn_ends(template, special.get("eos_token")) if name in known)
    return TextFiles(
        tokenizer_json=tokenizer_json,
        template=template,
        special=special,
        eos=tuple(dict.fromkeys(eos)),
        sampling=_sampling(generation),
    )


def _tokenizer_text(folder: Path) -> str:
    path, ranks = folder / "tokenizer.json", folder / "qwen.tiktoken"
    if not path.is_file() and ranks.is_file():
        return tokenizer_from_tiktoken(ranks)
    return read_text(path)


def _tokenizer(text: str) -> dict[str, Any]:
    tokenizer = parse_json(text.encode(), "tokenizer.json")
    added = tokenizer.get("added_tokens") or []
    good = isinstance(added, list) and all(
        isinstance(t, dict) and isinstance(t.get("content"), str) and isinstance(t.get("id"), int) for t in added
    )
    if not isinstance(tokenizer.get("model"), dict) or not good:
        raise ModelError("`tokenizer.json` is no tokenizer: its `model` or `added_tokens` is of the wrong shape")
    return tokenizer


def _optional(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}


def _content(value: Any) -> str | None:
    if isinstance(value, Mapping):
        value = value.get("content")
    return value if isinstance(value, str) else None


def _template(folder: Path, settings: Mapping[str, Any]) -> str | None:
    path = folder / "chat_template.jinja"
    if path.is_file():
        if path.stat().st_size > MAX_TEMPLATE:
            raise ModelError(f"`{path.name}` has {path.stat().st_size} bytes; allowed: at most {MAX_TEMPLATE}")
        return path.read_text(encoding="utf-8", errors="replace")
    value = _optional(folder / "chat_template.json").get("chat_template") or settings.get("chat_template")
    if isinstance(value, list):  # several by name; "default" is the one for conversations
        named = {t.get("name"): t.get("template") for t in value if isinstance(t, Mapping)}
        value = named.get("default")
    if isinstance(value, str) and len(value) > MAX_TEMPLATE:
        raise ModelError(f"`chat_template` has {len(value)} characters; allowed: at most {MAX_TEMPLATE}")
    return value if isinstance(value, str) else None


def _ids(data: Mapping[str, Any], name: str, where: str, vocab_size: int) -> tuple[int, ...]:
    value = data.get(name)
    ids = [] if value is None else value if isinstance(value, list) else [value]
    if len(ids) > MAX_EOS or any(isinstance(i, bool) or not isinstance(i, int) or not 0 <= i < vocab_size for i in ids):
        raise ModelError(
            f"`{name}` in `{where}` is {str(value)[:80]}; allowed: ids below {vocab_size}, at most {MAX_EOS}"
        )
    return tuple(ids)


def _turn_ends(template: str | None, named: str | None) -> list[str]:
    """Tokens that end a turn, by name: the tokenizer's own, and ChatML's where the template writes it."""
    ends = [named] if named else []
    return [*ends, "<|im_end|>"] if "<|im_end|>" in (template or "") else ends


def _sampling(generation: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of ``Sampling`` out of generation_config.json; a model that does not sample is greedy."""
    found = {name: generation[name] for name in _SAMPLING if generation.get(name) is not None}
    if generation.get("do_sample") is False:
        found = {name: value for name, value in found.items() if name == "repetition_penalty"} | {"temperature": 0.0}
    elif generation.get("do_sample") is True:
        found.setdefault("temperature", 1.0)
    try:
        return Sampling(**found).to_dict()
    except UsageError as error:
        raise ModelError(f"`generation_config.json`: {error.message}", code="invalid_config") from error


def eos_from_gguf(metadata: Mapping[str, Any]) -> tuple[int, ...]:
    """The ids that end a turn: those that the file names, and ChatML's where its template writes it."""
    tokens = metadata.get("tokenizer.ggml.tokens") or []
    named = [metadata.get(f"tokenizer.ggml.{kind}_token_id") for kind in ("eos", "eot")]
    ids = [i for i in named if isinstance(i, int) and 0 <= i < len(tokens)]
    if "<|im_end|>" in str(metadata.get("tokenizer.chat_template")):
        ids += [tokens.index(name) for name in ("<|im_end|>",) if name in tokens]
    return tuple(dict.fromkeys(ids))
