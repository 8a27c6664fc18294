"""The workload of ``qak bench agent``: what every side is given is of the stated size, and the same every time."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from qwen_agent_kit.bench.compare import named, turns
from qwen_agent_kit.bench.prefix import system_prompt
from qwen_agent_kit.bench.streams import _loop, _script
from qwen_agent_kit.bench.turns import BEGINNING, RESULT, Workload, make_workload
from qwen_agent_kit.errors import UsageError


@pytest.fixture(scope="module")
def qwen(qwen25_dir: Path) -> Any:
    """As much of a loaded model as the workload needs."""
    config = json.loads((qwen25_dir / "tokenizer_config.json").read_text())
    return SimpleNamespace(
        tokenizer_json=(qwen25_dir / "tokenizer.json").read_text(), template=config["chat_template"], special={}
    )


@pytest.fixture(scope="module")
def work(qwen: Any) -> Workload:
    """The workload of eight steps."""
    return make_workload(qwen, 8)


def test_the_workload_has_the_stated_size(qwen: Any, work: Workload) -> None:
    """1,500 ids of system prompt, 14 tools and a question, 150 of a result per step, each result another; equal for
    every call."""
    from tokenizers import Tokenizer

    assert BEGINNING <= len(work.beginning) <= BEGINNING + 10
    assert [len(result) for result in work.results] == [RESULT] * 8
    assert len(set(map(tuple, work.results))) == 8
    text = Tokenizer.from_str(qwen.tokenizer_json).decode(work.beginning, skip_special_tokens=False)
    assert text.count('"type": "function"') == 14
    again = make_workload(qwen, 2)
    assert (again.beginning, again.results, again.grammar) == (work.beginning, work.results[:2], work.grammar)


def test_the_grammar_asks_for_a_call(qwen: Any, work: Workload) -> None:
    """Its shortest text is a call with all three arguments: neither nothing nor prose."""
    from qwen_agent_kit.engine.grammar import GrammarCompiler

    compiler = GrammarCompiler(qwen.tokenizer_json, 151_936, [151_645])
    grammar = compiler.compile(work.grammar)
    minimum = grammar.minimum
    assert minimum is not None
    assert 15 < minimum < 80


class _Side:
    """Notes what it is asked."""

    def __init__(self, name: str) -> None:
        self.name, self.asked = name, []

    def run(self, prompt: Any, new: int, script: Any = None, *, fresh: bool = False) -> Any:
        self.asked.append((list(prompt), new, script, fresh))
        return SimpleNamespace(ids=tuple(range(new)), total=1.0)


def test_every_side_is_given_the_same(work: Workload) -> None:
    """Both get the same prompts, each the last one with what was said and the result, the first of a loop fresh; the
    sides take turns, and the turn before the first does not count."""
    work = replace(work, results=work.results[:3])
    sides = [_Side("a"), _Side("b")]
    script = _script(sides, work)
    assert [len(said) for said in script] == [40] * 3
    for side in sides:
        side.asked.clear()
    times = turns(sides, 2, lambda s: _loop(s, work, script), warm=lambda s: _loop(s, work, script[:1]))
    assert times == {"a": [[1.0] * 3] * 2, "b": [[1.0] * 3] * 2}
    assert sides[0].asked == sides[1].asked
    assert len(sides[0].asked) == 1 + 2 * 3
    prompts = [asked[0] for asked in sides[0].asked[1:4]]
    for before, after, said, result in zip(prompts, prompts[1:], script, work.results, strict=False):
        assert after == [*before, *said, *result]
    assert [asked[3] for asked in sides[0].asked[1:4]] == [True, False, False]
    assert [asked[2] for asked in sides[0].asked[1:4]] == script


def test_sides_are_named() -> None:
    """A short name stands for its sides in the class of the weights, a side's own for itself; others are refused."""
    assert named("transformers, llama.cpp", "int8") == ["transformers", "transformers-carried", "llama.cpp-q8_0"]
    assert named("llama.cpp", "int4") == ["llama.cpp-q4_0"]
    assert named("llama.cpp,llama.cpp-q8_0,,llama.cpp", "int8") == ["llama.cpp-q8_0"]
    assert named("transformers-carried", "int8") == ["transformers-carried"]
    with pytest.raises(UsageError, match="vllm"):
        named("vllm", "int8")


def test_the_long_system_prompt_is_long(qwen: Any) -> None:
    """About the ids that were asked for, give or take a fifth."""
    from tokenizers import Tokenizer

    count = len(Tokenizer.from_str(qwen.tokenizer_json).encode(system_prompt(1500)).ids)
    assert 1200 <= count <= 1800, count
