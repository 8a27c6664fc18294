"""Backends that cover different media of one family drive its models together."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qwen_agent_kit import Audio, Host, Image, Video, hookimpl
from qwen_agent_kit.backends import Backend, Embeddings, MediaBudget, MediaSpan, ModelFacts, Run, Share, Slice
from qwen_agent_kit.errors import MediaError, ModelError, PluginError, UsageError
from qwen_agent_kit.host.joint import drivers_of, joint
from qwen_agent_kit.host.media import LocalMedia, media_of
from qwen_agent_kit.host.plugin_code import code_of
from qwen_agent_kit.placement import Wishes
from qwen_agent_kit.testing import tiny_model_dir

FACTS, BUDGET = ModelFacts({}), MediaBudget()
SOUND = Audio(b"sound")


class Tower:
    """Gives n rows, numbered, and remembers what it was asked for."""

    def __init__(self, name: str) -> None:
        self.asked: list[Any] = []
        self.name = name

    def encode(self, items: Any) -> list[Embeddings]:
        self.asked.append(list(items))
        return [Embeddings(_Rows(range(10))) for _ in items]


class _Rows(list[int]):
    def clone(self) -> _Rows:
        return self

    def __getitem__(self, at: Any) -> Any:
        return _Rows(super().__getitem__(at))


def backend(name: str, *kinds: str, families: tuple[str, ...] = ("both",), **more: Any) -> Backend:
    def widen(part: Any, facts: Any, budget: Any) -> Any:
        if part.kind == "video":
            length = part.options["heard"]
            return [
                Run(3, "v-0", Slice("video", 0, 3), token="<v>"),
                Share(SOUND, 0, length, token="<a>"),
                Run(2, "v-3", Slice("video", 3, 5), token="<v>"),
                Share(SOUND, length, None, after=("<end>",), token="<a>"),
            ]
        return 4, f"{name}-digest", f"{name}-item"

    tower = Tower(name)
    made: dict[str, Any] = {"widen": widen, "encoder": lambda *given: tower, "footprint": lambda *given: 7}
    return Backend(name, frozenset({"text", *kinds}), families, **made | more)


def test_each_kind_goes_to_its_own() -> None:
    """Items come back to the tower of the backend that made them, each with its results in its place."""
    sees, hears = backend("sees", "image", "video"), backend("hears", "audio")
    (one,) = drivers_of("both", [sees, hears])
    assert (one.name, one.accepts) == ("hears+sees", {"text", "image", "video", "audio"})
    assert one.footprint is not None
    assert one.footprint(FACTS, BUDGET) == 14
    assert one.widen is not None
    assert one.encoder is not None
    items = [one.widen(part, FACTS, BUDGET)[2] for part in (Image(b"x"), Audio(b"y"), Image(b"z"))]  # type: ignore[index]
    assert len(one.encoder(FACTS, {}, "cpu").encode(items)) == 3
    asked = [b.encoder().asked for b in (sees, hears)]  # type: ignore[misc,union-attr]
    assert asked == [[["sees-item", "sees-item"]], [["hears-item"]]]
    with pytest.raises(MediaError, match="kind 'series'"):
        one.widen(type("P", (), {"kind": "series"})(), FACTS, BUDGET)


def test_a_share_is_of_what_the_other_makes() -> None:
    """Cut to what there is; where none is left, what was to follow it follows the run before."""
    one = joint("both", [backend("sees", "image", "video"), backend("hears", "audio")])
    assert one.widen is not None
    runs: Any = one.widen(Video(b"v", options={"heard": 3}), FACTS, BUDGET)
    assert [(run.length, run.token, run.after) for run in runs] == [
        (3, "<v>", ()),
        (3, "<a>", ()),
        (2, "<v>", ()),
        (1, "<a>", ("<end>",)),
    ]
    assert len({run.digest for run in runs}) == 4
    assert one.encoder is not None
    made = one.encoder(FACTS, {}, "cpu").encode([run.item for run in runs])
    assert [embeddings.hidden for embeddings in made] == [[0, 1, 2], [0, 1, 2], [3, 4], [3]]
    short: Any = one.widen(Video(b"v", options={"heard": 4}), FACTS, BUDGET)
    assert [(run.length, run.after) for run in short] == [(3, ()), (4, ()), (2, ("<end>",))]


def test_positions_are_asked_of_the_one_that_has_them() -> None:
    """It gets the items as their makers made them."""
    seen: list[Any] = []

    def positions(ids: Any, spans: Any) -> Any:
        seen.extend(span.item for span in spans)
        return np.zeros((3, len(ids))), 1

    one = joint("both", [backend("hears", "audio"), backend("sees", "image", positions=positions)])
    assert one.widen is not None
    assert one.positions is not None
    made: Any = [one.widen(part, FACTS, BUDGET) for part in (Image(b"x"), Audio(b"y"))]
    one.positions([0] * 9, [MediaSpan(4 * i, 4, digest, item) for i, (_, digest, item) in enumerate(made)])
    assert seen == ["sees-item", "hears-item"]


def test_backends_of_the_same_media_stay_apart() -> None:
    """Two that see quarrel as before; a family that one drives alone is driven by it; text alone is nobody's part."""
    one, two, text = backend("one", "image"), backend("two", "image"), backend("text")
    assert drivers_of("both", [two, one, text]) == (text, one, two)
    assert drivers_of("both", [one]) == (one,)
    assert drivers_of("other", [one, two]) == ()
    hears = backend("hears", "audio")
    assert [b.name for b in drivers_of("both", [one, two, hears])] == ["hears+one", "two"]


def test_what_a_backend_states_is_planned_for(tmp_path: Path) -> None:
    """The plan of a plugin's own model counts its towers as the plugin states them, for the budget that was wished."""
    tiny_model_dir(tmp_path, "qwen2")
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "own", "text_config": config}))
    asked: list[tuple[Any, Any]] = []

    def footprint(facts: ModelFacts, budget: MediaBudget) -> int:
        asked.append((facts.model_type, budget.max_pixels))
        return 10**6 + (budget.max_pixels or 0)

    def planned(given: Any, **wishes: Any) -> Any:
        class Own:
            @hookimpl
            def register_backends(self) -> list[Backend]:
                return [backend("own", "image", families=("own",), footprint=given)]

        with Host(plugins=[Own()]) as host:
            return host.plans([str(tmp_path)], Wishes(quant="fp32", **wishes))[0]

    plain = planned(None)
    assert (plain.tower_bytes, planned(footprint).tower_bytes) == (0, 10**6)
    stated = planned(footprint, max_pixels=500)
    assert stated.weight_bytes == plain.weight_bytes + 10**6 + 500
    assert stated.total_bytes == plain.total_bytes + 10**6 + 500
    assert set(asked) == {("own", None), ("own", 500)}
    with pytest.raises(PluginError, match="footprint of backend 'own' is -1; allowed: bytes, from 0 on"):
        planned(lambda *_: -1)


def own(tmp_path: Path, **made: Any) -> tuple[LocalMedia, type]:
    """How a model of a plugin's own takes pictures, and the plugin; ``made`` are functions of its backend."""
    tiny_model_dir(tmp_path, "qwen2")
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "own", "text_config": config}))
    offered = backend("own", "image", families=("own",), **made)

    class Own:
        @hookimpl
        def register_backends(self) -> list[Backend]:
            return [offered]

    media = media_of(tmp_path, [offered])
    assert media is not None
    return media, Own


def fails(*given: Any) -> Any:
    raise ValueError("no such thing")


def refuses(*given: Any) -> Any:
    raise MediaError("the picture is empty")


def test_a_backend_that_fails_is_named(tmp_path: Path) -> None:
    """With its function and the error, which is the cause; an error of the kit's travels unchanged."""
    media, plugin = own(tmp_path, widen=fails, footprint=fails)
    with pytest.raises(PluginError, match=r"`widen` of the backend 'own' failed: ValueError: no such thing") as caught:
        media.widen(Image(b"x"))
    assert isinstance(caught.value.__cause__, ValueError)
    with Host(plugins=[plugin()]) as host, pytest.raises(PluginError, match=r"`footprint` of the backend 'own' failed"):
        host.plan(str(tmp_path))
    media, plugin = own(tmp_path, widen=refuses, footprint=refuses)
    with pytest.raises(MediaError, match=r"^the picture is empty$"):
        media.widen(Image(b"x"))
    with Host(plugins=[plugin()]) as host, pytest.raises(MediaError, match=r"^the picture is empty$"):
        host.plan(str(tmp_path))
    both = joint("both", [backend("sees", "image", widen=fails), backend("hears", "audio")])
    assert both.widen is not None
    with pytest.raises(PluginError, match="`widen` of the backend 'sees'"):
        both.widen(Image(b"x"), FACTS, BUDGET)


@pytest.mark.parametrize("digest", [None, "", b"bytes", 3])
def test_a_digest_is_a_text(tmp_path: Path, digest: Any) -> None:
    """Parts of one digest share keys and values, so None would mix them."""
    for made in ((2, digest, "item"), [Run(2, digest, "item")]):
        media, _ = own(tmp_path, widen=lambda *given, made=made: made)
        with pytest.raises(PluginError, match=r"gave the digest .*; allowed: a text"):
            media.widen(Image(b"x"))


def test_a_tower_has_the_version_of_its_plugin(tmp_path: Path) -> None:
    """So that the engine tells keys and values on disk apart by the plugin's code, before the tower is made."""
    media, _ = own(tmp_path, encoder=fails)
    assert getattr(media.encoder(), "version", "") == code_of(media.backend) != ""


def test_a_tensor_that_is_not_there_is_named(tmp_path: Path) -> None:
    """The tensors are a mapping: `in` and `get` work, and the error is one of the kit's and a KeyError."""
    seen: list[Any] = []
    media, _ = own(tmp_path, encoder=lambda facts, tensors, device: seen.append(tensors) or Tower("own"))
    media.encoder().encode([1])
    assert "model.embed_tokens.weight" in seen[0]
    assert seen[0].get("tower.weight") is None
    for kind in (ModelError, KeyError):
        with pytest.raises(kind, match=r"^the checkpoint has no tensor 'tower.weight'"):
            seen[0]["tower.weight"]


def test_a_quarrel_over_a_backend_is_why_a_kind_is_refused(tmp_path: Path) -> None:
    """Neither of two backends of one name is used, and whoever sends such a part is told."""
    _, plugin = own(tmp_path)
    other = type("Other", (plugin,), {})
    with Host(plugins=[plugin(), other()], quant="fp32", cache=False, prefixes=False) as host:
        with pytest.raises(UsageError, match="part of kind 'image'") as caught:
            host.open(str(tmp_path), kinds=frozenset({"text", "image"}))
        assert "'Own' and 'Other'" in (caught.value.hint or "")


def test_the_plan_of_a_models_own_type_goes_by_its_decoder(tmp_path: Path) -> None:
    """The type inside says what runs it, with the same numbers; without one there, transformers would."""
    _, plugin = own(tmp_path)
    with Host(plugins=[plugin()]) as host:
        plan = host.plan(str(tmp_path))
        assert not any("transformers" in reason for reason in plan.reasons)
        assert plan.parameters == host.plan(str(tiny_model_dir(tmp_path / "plain", "qwen2"))).parameters
        config = json.loads((tmp_path / "config.json").read_text())
        del config["text_config"]["model_type"]
        (tmp_path / "config.json").write_text(json.dumps(config))
        assert any("own runs through transformers" in reason for reason in host.plan(str(tmp_path)).reasons)
