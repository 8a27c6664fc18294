"""Model families and models as data.

A *family* says what one kind of checkpoint needs; an *entry* names one model that can be opened, wherever its files
come from. Plugins add entries with ``register_models``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["FAMILIES", "Family", "ModelEntry", "dialect_of", "family_of"]


@dataclass(frozen=True)
class Family:
    """One kind of checkpoint.

    Args:
        name: As ``Backend.families`` names it.
        model_types: ``model_type`` in config.json.
        gguf: ``general.architecture`` in GGUF metadata.
        kinds: The part kinds it can see.
        source: Where the facts were read.
    """

    name: str
    model_types: tuple[str, ...]
    gguf: tuple[str, ...] = ()
    kinds: frozenset[str] = frozenset({"text"})
    source: str = ""


FAMILIES: tuple[Family, ...] = (
    Family("llama", ("llama",), ("llama",), source="transformers models/llama; llama.cpp gguf-py constants"),
    Family("qwen", ("qwen",), ("qwen",), source="QwenLM/Qwen config.json; llama.cpp gguf-py constants"),
    Family("qwen2", ("qwen2",), ("qwen2",), source="transformers models/qwen2"),
    Family("qwen2_moe", ("qwen2_moe",), ("qwen2moe",), source="transformers models/qwen2_moe"),
    Family("qwen3", ("qwen3",), ("qwen3",), source="transformers models/qwen3"),
    Family("qwen3_moe", ("qwen3_moe",), ("qwen3moe",), source="transformers models/qwen3_moe"),
)


def family_of(model_type: str) -> Family | None:
    """The family of a ``model_type`` or GGUF architecture, None where the kit knows none."""
    return next((f for f in FAMILIES if model_type in f.model_types or model_type in f.gguf), None)


def dialect_of(template: str | None) -> str:
    """The tool-call dialect that a chat template was written for.

    Qwen3-Coder and later write ``<function=name>`` inside ``<tool_call>``, Qwen2.5 and Qwen3 write JSON there; a
    template that mentions neither has no tools, and gets the generic dialect.
    """
    text = template or ""
    if "<function=" in text:
        return "xml"
    return "hermes" if "<tool_call>" in text else "generic"


@dataclass(frozen=True)
class ModelEntry:
    """One model that can be opened by name.

    Args:
        name: What users write; unique among the installed plugins.
        family: A ``Family.name``.
        dialect: How it writes tool calls (``hermes``, ``xml``, ``generic``), or "" to read it off its template.
        kinds: The part kinds it accepts.
        context: Positions it was trained for.
        licence: SPDX identifier.
        source: Where the facts and the weights come from.
        verified: Whether the facts were checked against that source.
        locate: Gives the model's file or directory, None where it is not on this machine.
        fetch: Brings it here; gets a function that reports progress in lines, returns the path.
        hint: How to get it, one line.
        sampling: Defaults, the fields of ``Sampling``.
        thinking: ``no``, ``optional`` or ``always``.
        aliases: Further names.
        parameters: How many, embeddings included.
        default_for: The part kinds for which it answers when no model is named.
    """

    name: str
    family: str
    dialect: str = ""
    kinds: frozenset[str] = frozenset({"text"})
    context: int = 0
    licence: str = ""
    source: str = ""
    verified: bool = False
    locate: Callable[[], Path | None] | None = None
    fetch: Callable[[Callable[[str], None]], Path] | None = None
    hint: str = ""
    sampling: Mapping[str, Any] = field(default_factory=dict)
    thinking: str = "no"
    aliases: tuple[str, ...] = ()
    parameters: int | None = None
    default_for: frozenset[str] = frozenset()

    def answers_to(self, name: str) -> bool:
        """Whether ``name`` means this model (case does not matter)."""
        return name.casefold() in {self.name.casefold(), *(alias.casefold() for alias in self.aliases)}

    def to_dict(self) -> dict[str, Any]:
        """JSON data for ``qak models``."""
        path = self.locate() if self.locate else None
        return {
            "name": self.name,
            "aliases": list(self.aliases),
            "family": self.family,
            "kinds": sorted(self.kinds),
            "context": self.context,
            "parameters": self.parameters,
            "licence": self.licence,
            "source": self.source,
            "verified": self.verified,
            "thinking": self.thinking,
            "here": path is not None,
            "hint": "" if path is not None else self.hint,
        }
