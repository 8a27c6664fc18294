"""JSON schema through our schema-to-grammar path: what the token mask accepts of whole documents.

Compiler refusals are honest answers and are counted; accepting what is invalid never is.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cases import load

from qwen_agent_kit.dialects.prepare import prepared
from qwen_agent_kit.dialects.schema import checked
from qwen_agent_kit.engine.grammar import CompiledGrammar, GrammarCompiler
from qwen_agent_kit.errors import SchemaError

Accepts = Callable[[str], bool]


@pytest.fixture(scope="module")
def compiler(qwen25_dir: Path) -> GrammarCompiler:
    return GrammarCompiler((qwen25_dir / "tokenizer.json").read_bytes(), 151936, [151645, 151643])


def accepts(compiler: GrammarCompiler, grammar: CompiledGrammar, text: str) -> bool:
    """Whether the tokens of the whole text pass the mask one after the other and may end there."""
    state = grammar.start()
    ids = compiler.vocabulary.tokenizer.tokenize_str(text)
    return state.matcher.try_consume_tokens(ids) == len(ids) and state.accepting


def compiled(compiler: GrammarCompiler, schema: Any, **options: Any) -> CompiledGrammar:
    checked(schema, where="the schema")
    return compiler.compile(f"start: %json {json.dumps(prepared(schema, **options))}")


def written(data: Any) -> list[str]:
    """The ways in which ``json.dumps`` writes a document."""
    return list(dict.fromkeys([json.dumps(data, ensure_ascii=False), json.dumps(data)]))


def test_the_official_suite(compiler: GrammarCompiler, record_property: Callable[[str, object], None]) -> None:
    """04a: instances that a production decoder passes are decided rightly; no invalid one is ever accepted."""
    seen: Counter[str] = Counter()
    wrong = []
    for case in load("04a_json_schema_test_suite.jsonl"):
        try:
            grammar = compiled(compiler, case["schema"], digits=None)
        except SchemaError as error:
            seen["schemas refused"] += 1
            wrong += [(case["id"], error.message) for test in case["tests"] if test["llguidance"] == "pass"]
            continue
        seen["schemas compiled"] += 1
        for test in case["tests"]:
            taken = any(accepts(compiler, grammar, text) for text in written(test["data"]))
            seen[f"{'valid' if test['valid'] else 'invalid'} {'accepted' if taken else 'rejected'}"] += 1
            if (taken and not test["valid"]) or (test["llguidance"] == "pass" and taken != test["valid"]):
                wrong.append((case["id"], test["description"]))
    record_property("04a", dict(seen))
    assert wrong == []
    assert seen["valid accepted"] > 50
    assert seen["invalid rejected"] > 50


def test_schemas_of_the_real_world(compiler: GrammarCompiler, record_property: Callable[[str, object], None]) -> None:
    """04b: every compiled schema accepts its valid instances and none of the invalid; at most a fifth is refused."""
    seen: Counter[str] = Counter()
    wrong = []
    for case in load("04b_maskbench_sample.jsonl"):
        try:
            grammar = compiled(compiler, case["schema"], digits=None)
        except SchemaError:
            seen["refused"] += 1
            continue
        seen["compiled"] += 1
        for test in case["tests"]:
            taken = any(accepts(compiler, grammar, text) for text in written(test["data"]))
            seen[f"{'valid' if test['valid'] else 'invalid'} {'accepted' if taken else 'rejected'}"] += 1
            if taken != test["valid"] and test["python_jsonschema_agrees"]:
                wrong.append((case["id"], test["description"]))
    record_property("04b", dict(seen))
    assert wrong == []
    assert seen["refused"] * 5 <= seen["refused"] + seen["compiled"]


def test_exact_strings(compiler: GrammarCompiler, record_property: Callable[[str, object], None]) -> None:
    """04c: exactly the strings of llama.cpp's tests pass, integers having at most its 16 digits.

    The kit takes no GBNF; those cases go through llguidance's own converter, as a check of masks and compiler.
    """
    from llguidance.gbnf_to_lark import gbnf_to_lark

    seen: Counter[str] = Counter()
    wrong = []
    for case in load("04c_constrained_strings.jsonl"):
        if case["kind"] == "json_schema":
            grammar = compiled(compiler, case["schema"], digits=16, spaced=True)
        else:
            grammar = compiler.compile(gbnf_to_lark(case["grammar"]))
        seen[case["kind"]] += 1
        for text, wanted in [(t, True) for t in case["accept"]] + [(t, False) for t in case["reject"]]:
            seen["strings"] += 1
            if accepts(compiler, grammar, text) != wanted:
                wrong.append((case["name"], text))
    record_property("04c", dict(seen))
    assert wrong == []
    assert seen["json_schema"] > 0
    assert seen["strings"] > 100
