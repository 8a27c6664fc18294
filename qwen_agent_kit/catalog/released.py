"""The models that Qwen and others released, read from the data files beside this module on first use.

One file per generation. ``shapes`` holds each published configuration once with its source, ``groups`` hold the models
that have one: what a group's models share is under ``common``. A shape without a public source is not verified, and
shown as such.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache
from importlib.resources import files
from typing import Any

from qwen_agent_kit.catalog import RELEASES, ModelEntry, family_of

__all__ = ["find", "released"]


@cache
def released() -> tuple[ModelEntry, ...]:
    """Every model of the data files, in the order of their generations."""
    folder = files("qwen_agent_kit.catalog") / "data"
    places = sorted((place for place in folder.iterdir() if place.name.endswith(".json")), key=lambda place: place.name)
    found = [entry for place in places for entry in _read(json.loads(place.read_text(encoding="utf-8")))]
    return tuple(sorted(found, key=lambda entry: entry.generation))


def find(name: str) -> tuple[ModelEntry, str] | None:
    """The model that ``name`` means, and which release of it ("" for the original weights); None for no released one.

    Args:
        name: A hub id, of a quantised release too, with or without its owner. Case does not matter.
    """
    wanted = name.casefold()
    for entry in released():
        if entry.answers_to(name):
            return entry, ""
        if any(wanted.startswith(own.casefold()) for own in (entry.name, *entry.aliases)):
            for release in entry.releases:
                if any(wanted == f"{own}-{release}".casefold() for own in (entry.name, *entry.aliases)):
                    return entry, release
    return None


def _read(data: dict[str, Any]) -> Iterator[ModelEntry]:
    for group in data["groups"]:
        for model in group["models"]:
            given = {**group["common"], **model}
            yield _entry(given, data["shapes"][given["shape"]])


def _entry(given: dict[str, Any], shape: dict[str, Any]) -> ModelEntry:
    config = shape["config"]
    family = family_of(config["model_type"])
    assert family is not None, "a test holds that every shape has a family"
    assert set(given.get("releases", ())) <= set(RELEASES), "a test holds that every release has a scheme"
    text = config.get("text_config", config)
    source = given.get("source", shape["source"])
    return ModelEntry(
        name=given["name"],
        family=family.name,
        dialect=given["dialect"],
        kinds=frozenset(given["kinds"]),
        context=given.get("context", text["max_position_embeddings"]),
        licence=given["licence"],
        source=source,
        verified=bool(source),
        sampling=given.get("sampling", {}),
        thinking=given["thinking"],
        aliases=(given["name"].partition("/")[2],),
        parameters=shape["parameters"],
        active=shape["active"],
        config=config,
        extended=given.get("extended", 0),
        rope=given.get("rope"),
        languages=tuple(given["languages"]),
        tasks=tuple(given["tasks"]),
        releases=tuple(given.get("releases", ())),
        generation=float(given["generation"]),
        note=given.get("note", ""),
        hint=f"qak run -m {given['name']}",
    )
