"""Model families and models as data.

A *family* says what one kind of checkpoint needs; an *entry* names one model that can be opened, wherever its files
come from. Plugins add entries with ``register_models``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["FAMILIES", "Family", "ModelEntry", "RELEASES", "dialect_of", "family_of"]


@dataclass(frozen=True)
class Family:
    """One kind of checkpoint.

    Args:
        name: As ``Backend.families`` names it.
        model_types: ``model_type`` in config.json.
        gguf: ``general.architecture`` in GGUF metadata.
        kinds: The part kinds it can see.
        source: Where the facts were read.
        runs: Whether an engine of the kit runs it today; the others are catalogued, and planned for.
        through: ``transformers`` where it runs only by that library's modules over our cache, slower; text only.
    """

    name: str
    model_types: tuple[str, ...]
    gguf: tuple[str, ...] = ()
    kinds: frozenset[str] = frozenset({"text"})
    source: str = ""
    runs: bool = True
    through: str = ""


_SEES = frozenset({"text", "image", "video"})
_HEARS = frozenset({"text", "audio"})

FAMILIES: tuple[Family, ...] = (
    Family("llama", ("llama",), ("llama",), source="transformers models/llama; llama.cpp gguf-py constants"),
    Family("qwen", ("qwen",), ("qwen",), source="QwenLM/Qwen config.json; llama.cpp gguf-py constants"),
    Family("qwen2", ("qwen2",), ("qwen2",), source="transformers models/qwen2"),
    Family("qwen2_moe", ("qwen2_moe",), ("qwen2moe",), source="transformers models/qwen2_moe"),
    Family("qwen3", ("qwen3",), ("qwen3",), source="transformers models/qwen3"),
    Family("qwen3_moe", ("qwen3_moe",), ("qwen3moe",), source="transformers models/qwen3_moe"),
    Family("qwen2_vl", ("qwen2_vl",), (), _SEES, "transformers models/qwen2_vl"),
    Family("qwen2_audio", ("qwen2_audio",), (), _HEARS, "transformers models/qwen2_audio"),
    Family("qwen2_5_vl", ("qwen2_5_vl",), (), _SEES, "transformers models/qwen2_5_vl"),
    Family(
        "qwen2_5_omni",
        ("qwen2_5_omni", "qwen2_5_omni_thinker"),
        (),
        _SEES | _HEARS,
        "transformers models/qwen2_5_omni",
    ),
    Family("qwen3_vl", ("qwen3_vl",), (), _SEES, "transformers models/qwen3_vl"),
    Family("qwen3_vl_moe", ("qwen3_vl_moe",), (), _SEES, "transformers models/qwen3_vl_moe", runs=False),
    Family(
        "qwen3_omni_moe",
        ("qwen3_omni_moe", "qwen3_omni_moe_thinker"),
        (),
        _SEES | _HEARS,
        "transformers models/qwen3_omni_moe",
        runs=False,
    ),
    Family(
        "qwen3_next", ("qwen3_next",), ("qwen3next",), source="transformers models/qwen3_next", through="transformers"
    ),
    Family("qwen3_5", ("qwen3_5",), ("qwen35",), _SEES, "transformers models/qwen3_5", through="transformers"),
    Family(
        "qwen3_5_moe",
        ("qwen3_5_moe",),
        ("qwen35moe",),
        _SEES,
        "transformers models/qwen3_5_moe",
        through="transformers",
    ),
)

RELEASES: dict[str, str] = {
    "AWQ": "awq",
    "GPTQ-Int4": "gptq4",
    "GPTQ-Int8": "gptq8",
    "FP8": "fp8",
    "GGUF": "",
}
"""What is appended to a model's name for its quantised release, and the scheme its files hold ("" for several)."""


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
        active: Parameters that a token goes through; ``parameters`` for a dense model.
        config: The published config.json, as far as sizes go.
        extended: Positions that it reaches with ``rope``, 0 where it has no such extension.
        rope: The ``rope_parameters`` that the extension needs.
        languages: ISO 639 codes.
        tasks: What it is good at, the best first: ``chat``, ``code``, ``math``, ``vision``, ``audio``, ``agents``.
        releases: Quantised releases under its own name, keys of ``RELEASES``.
        generation: Later ones are better at the same size, as a rule.
        note: What else a user must know.
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
    active: int | None = None
    config: Mapping[str, Any] | None = None
    extended: int = 0
    rope: Mapping[str, Any] | None = None
    languages: tuple[str, ...] = ()
    tasks: tuple[str, ...] = ()
    releases: tuple[str, ...] = ()
    generation: float = 0.0
    note: str = ""

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
            "active": self.active,
            "extended": self.extended,
            "rope": dict(self.rope) if self.rope else None,
            "dialect": self.dialect,
            "languages": list(self.languages),
            "tasks": list(self.tasks),
            "releases": list(self.releases),
            "note": self.note,
            "here": path is not None,
            "hint": "" if path is not None else self.hint,
        }
