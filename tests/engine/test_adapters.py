"""Requests with different LoRA adapters in one engine: one batch, one copy of the weights, nothing mixed up."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from adapters import merge, write_adapter
from oracle import random_prompts, their_greedy, their_model

from qwen_agent_kit import Agent, Host, Limits, Sampling
from qwen_agent_kit.engine import Engine
from qwen_agent_kit.errors import ModelError, UsageError
from qwen_agent_kit.models import LoadedModel, load_model
from qwen_agent_kit.models.lora import read_adapter
from qwen_agent_kit.testing import ScriptedModel
from qwen_agent_kit.testing.models import tiny_model_dir

GREEDY = Sampling(max_tokens=24, temperature=0.0)


@pytest.fixture
def folders(tmp_path: Path) -> dict[str, Path]:
    """A tiny model and adapters ``a`` and ``b`` for it."""
    folder = tiny_model_dir(tmp_path / "model", "qwen3")
    theirs = their_model(folder)
    made = {name: write_adapter(tmp_path / name, theirs, seed=seed) for seed, name in enumerate("ab", 1)}
    return {"model": folder, **made}


def engine_of(folders: dict[str, Path], loaded: LoadedModel | None = None, **fields: Any) -> Engine:
    adapters = {name: folders[name] for name in "ab"}
    endless = replace(loaded or load_model(folders["model"]), eos=())
    return Engine(endless, adapters=adapters, stop_repetition=False, **fields)


def test_f36_each_request_says_what_its_merged_model_says(folders: dict[str, Path]) -> None:
    """Twelve requests at once, in chunks and over little room, so that some give way and come again: greedy ids equal
    transformers' with that adapter merged, or none."""
    wanted, prompts = [], random_prompts(12, 500)
    models = {None: their_model(folders["model"])}
    for name in "ab":
        models[name] = merge(their_model(folders["model"]), folders[name], 2.0)
    names = [(None, "a", "b")[i % 3] for i in range(12)]
    with engine_of(folders, chunk=16, context=96, kv_bytes=2**17) as engine:
        generations = [engine.submit(p, GREEDY, adapter=n) for p, n in zip(prompts, names, strict=True)]
        for prompt, name, generation in zip(prompts, names, generations, strict=True):
            wanted.append(their_greedy(models[name], prompt, 24))
            assert list(generation) == wanted[-1]
    assert len({tuple(ids) for ids in wanted}) > 6


def test_adapters_share_a_forward(folders: dict[str, Path]) -> None:
    """Requests with different adapters are rows of one forward, not one after the other."""
    loaded = load_model(folders["model"])
    with engine_of(folders, loaded, drafts=False) as engine:
        prompts = random_prompts(6, 500, low=8, high=9)
        generations = [engine.submit(p, GREEDY, adapter="ab"[i % 2]) for i, p in enumerate(prompts)]
        assert sum(len(list(g)) for g in generations) == 6 * 24
        assert engine.counters.forwards <= 24 + 6 + 2


@pytest.mark.parametrize("quant", ["fp32", "int8"])
def test_keys_and_values_belong_to_their_adapter(folders: dict[str, Path], quant: str) -> None:
    """The same prompt under another adapter, or none, is computed whole; under the same one it is found. The others'
    requests do not change what one without an adapter says."""
    loaded = load_model(folders["model"], quant=quant)
    prompt = random_prompts(1, 500, low=200, high=201)[0]

    def run(engine: Engine, adapter: str | None) -> tuple[list[int], int]:
        generation = engine.submit(prompt, GREEDY, adapter=adapter)
        ids = list(generation)
        return ids, generation.usage.cached_tokens or 0

    with engine_of(folders, loaded) as engine:
        plain, cached = run(engine, None)
    assert cached == 0
    with engine_of(folders, loaded) as engine:
        first = [run(engine, name) for name in ("a", None, "b")]
        again = [run(engine, name) for name in ("a", None, "b")]
    assert [cached for _, cached in first] == [0, 0, 0]
    assert all(cached > 150 for _, cached in again)
    assert first[1][0] == again[1][0] == plain
    if quant == "fp32":
        assert [ids for ids, _ in again] == [ids for ids, _ in first]
    assert first[0][0] != plain != first[2][0]


@pytest.mark.parametrize("name", ["c", "", 3, Path("a")])
def test_an_unknown_adapter_is_named(folders: dict[str, Path], name: Any) -> None:
    """At submission, with those that are known."""
    with engine_of(folders) as engine, pytest.raises(UsageError, match="allowed: a, b") as error:
        engine.submit([1, 2, 3], adapter=name)
    assert error.value.code == "adapter_not_found"


@pytest.mark.parametrize("given", [{"": "x"}, {"a\n": "x"}, {"a" * 200: "x"}, {"a": 3}, {3: "x"}])
def test_names_and_places_are_checked(folders: dict[str, Path], given: Any) -> None:
    """When the engine is made."""
    with pytest.raises(UsageError, match="adapters"):
        Engine(load_model(folders["model"]), adapters=given)


def test_one_that_is_refused_hurts_nobody(folders: dict[str, Path]) -> None:
    """It is read when it is first named; the error is that request's, and the next one runs."""
    (folders["b"] / "adapter_model.safetensors").write_bytes(b"\xff" * 64)
    with engine_of(folders) as engine:
        with pytest.raises(ModelError, match=r"adapter_model\.safetensors"):
            engine.submit([1, 2, 3], adapter="b")
        assert len(list(engine.submit([1, 2, 3], GREEDY, adapter="a"))) == 24


def test_an_agent_names_one_of_its_hosts(folders: dict[str, Path]) -> None:
    """Its runs and the turns of its chats answer with it, beside an agent without one on the same engine."""
    names = {name: folders[name] for name in "ab"}
    with Host(quant="fp32", cache=False, prefixes=False, adapters=names) as host:
        spec, limits = str(folders["model"]), Limits(steps=1)
        agents = [Agent(spec, host=host, adapter=a, sampling=GREEDY, limits=limits) for a in (None, "a", "b")]
        said = [agent.run("Tell me of rivers.").output for agent in agents]
        assert len(set(said)) == 3
        assert agents[1].chat().run("Tell me of rivers.").output == said[1]
        with pytest.raises(UsageError, match="allowed: a, b"):
            Agent(spec, host=host, adapter="c").run("Hello")


def test_the_plan_leaves_room_for_all_the_host_knows(folders: dict[str, Path]) -> None:
    """To the byte that they take once read, each folder once; one that cannot be read counts nothing."""
    names = {"a": folders["a"], "b": folders["b"], "again": folders["a"], "gone": folders["a"] / "x"}
    spec, config = str(folders["model"]), load_model(folders["model"]).config
    for quant, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        plain = Host(quant=quant, cache=False, prefixes=False).plan(spec)
        with Host(quant=quant, cache=False, prefixes=False, adapters=names) as host:
            planned = host.plan(spec)
            host.open(spec)
            measured = host.plan(spec).measured
        held = sum(read_adapter(folders[name], config, dtype).nbytes for name in "ab")
        assert (plain.adapter_bytes, planned.adapter_bytes) == (0, held)
        assert planned.total_bytes == plain.total_bytes + held
        assert planned.weight_bytes == plain.weight_bytes + held
        assert measured["weight_bytes"] == load_model(folders["model"], quant=quant).model.weight_bytes + held
        assert "of them adapters" in str(planned)


def test_where_there_are_none_it_is_said() -> None:
    """A model that serves no adapters does not answer as if it had; a value that is no name is refused at once."""
    with pytest.raises(UsageError, match="serves no adapters"):
        Agent(ScriptedModel(["hello"]), adapter="a").run("Hello")
    with pytest.raises(UsageError, match="`adapter` is a int"):
        Agent(ScriptedModel(["hello"]), adapter=3)  # type: ignore[arg-type]  # refused
