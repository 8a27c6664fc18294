"""Generated tool schemas under random weights: every call that is sampled is valid, or was refused before."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch

from qwen_agent_kit import dialects
from qwen_agent_kit.engine.grammar import CompiledGrammar, GrammarCompiler
from qwen_agent_kit.errors import SchemaError

QWEN = {"<tool_call>": 151657, "</tool_call>": 151658}
SIZE = 151936
EOS = (151645, 151643)
LIMIT = 256
PATTERNS = [r"^[a-z]+$", r"^\d{3}-\d{4}$", r"^[A-Z]{2}\d+$", r"^(red|green|blue)$", r"[0-9a-f]{8}", r"^\S+@\S+\.\w+$"]
WORDS = ["Oslo", "red", "", "a b", 'quo"te', "line\nbreak", "Zürich", "北京", "</tool_call>", "{}"]


class Weights:
    """Random logits: slices of one seeded table, so that a step costs no new draw."""

    def __init__(self, seed: int) -> None:
        self.table = torch.randn(2 * SIZE, generator=torch.Generator().manual_seed(seed))
        self.offset = random.Random(seed)

    def __call__(self) -> torch.Tensor:
        start = self.offset.randrange(SIZE)
        return self.table[start : start + SIZE].clone()


def sampled(grammar: CompiledGrammar, seed: int, limit: int = LIMIT, *, force: bool = False) -> list[int]:
    """The ids that random weights give under a grammar that ends within the limit, without the end of turn."""
    weights, state, ids = Weights(seed), grammar.start(), []
    while len(ids) < limit and not state.stopped:
        forced = state.forced() if force else []
        if not forced:
            logits = weights()
            state.mask(logits, limit - len(ids))
            forced = [int(logits.argmax())]
        for token in forced:
            state.accept(token)
            ids.append(token)
    assert state.stopped, f"seed {seed}: the turn did not end within {limit} tokens"
    return ids[:-1] if ids[-1] in EOS else ids


def schema(draw: random.Random, depth: int = 0) -> dict[str, Any]:
    """A random schema; deeper ones are simpler."""
    leaf: list[Any] = [string, number, boolean, choice]
    make = draw.choice(leaf if depth > 2 else [*leaf, array, union, record, table])
    return make(draw) if make in leaf else make(draw, depth + 1)


def boolean(draw: random.Random) -> dict[str, Any]:
    return {"type": "boolean"}


def string(draw: random.Random) -> dict[str, Any]:
    kind = draw.randrange(5)
    if kind == 0:
        return {"type": "string", "pattern": draw.choice(PATTERNS)}
    if kind == 1:
        return {"type": "string", "minLength": draw.randrange(30), "maxLength": 30 + draw.randrange(50)}
    if kind == 2:
        return {"type": "string", "format": draw.choice(["date", "uuid", "date-time", "ipv4", "email"])}
    return {"type": "string"}


def number(draw: random.Random) -> dict[str, Any]:
    kind = draw.choice(["integer", "number"])
    if draw.random() < 0.5:
        low = draw.randrange(-1000, 1000)
        return {"type": kind, "minimum": low, "maximum": low + draw.randrange(5000)}
    return {"type": kind}


def choice(draw: random.Random) -> dict[str, Any]:
    return {"enum": draw.sample([*WORDS, 1, 2.5, True, None, {"a": [1]}], draw.randrange(1, 5))}


def array(draw: random.Random, depth: int) -> dict[str, Any]:
    made: dict[str, Any] = {"type": "array", "items": schema(draw, depth)}
    if draw.random() < 0.4:
        made["minItems"] = draw.randrange(3)
    if draw.random() < 0.3:
        made["maxItems"] = 3 + draw.randrange(5)
    return made


def union(draw: random.Random, depth: int) -> dict[str, Any]:
    return {"anyOf": [schema(draw, depth) for _ in range(draw.randrange(1, 4))] + [{"type": "null"}]}


def table(draw: random.Random, depth: int) -> dict[str, Any]:
    return {"type": "object", "additionalProperties": schema(draw, depth)}


def record(draw: random.Random, depth: int = 0, most: int = 5) -> dict[str, Any]:
    names = draw.sample(["a", "city", "long_parameter_name", "x-y", "日", "a b", "n", "unit"], draw.randrange(most + 1))
    properties = {name: schema(draw, depth) for name in names}
    required = [name for name in names if draw.random() < 0.6]
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


def definition(draw: random.Random, name: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "description": "d", "parameters": record(draw)}}


@pytest.fixture(scope="module")
def compiler(qwen25_dir: Path) -> GrammarCompiler:
    return GrammarCompiler((qwen25_dir / "tokenizer.json").read_bytes(), SIZE, EOS)


def calls_of(compiler: GrammarCompiler, ids: list[int]) -> list[dict[str, Any]]:
    """The calls between control ids, read with the standard library alone."""
    text, calls = compiler.vocabulary.tokenizer, []
    while QWEN["<tool_call>"] in ids:
        begin, end = ids.index(QWEN["<tool_call>"]), ids.index(QWEN["</tool_call>"])
        body = text.decode_bytes(ids[begin + 1 : end]).decode("utf-8")
        assert body.startswith("\n")
        assert body.endswith("\n")
        calls.append(json.loads(body))
        ids = ids[end + 1 :]
    return calls


def refused(error: SchemaError) -> None:
    """A refusal says where in the schema the fault lies, or that it is the whole of it."""
    assert error.pointer == "" or error.pointer.startswith("/")
    assert error.message


def served(compiler: GrammarCompiler, tools: list[Any], output: Any = None) -> CompiledGrammar | None:
    """The compiled grammar, or None where the check refused it with a pointer."""
    hermes = dialects.get("hermes")
    try:
        dialects.check(hermes, tools, output, compile=compiler.compile, control=QWEN, max_tokens=LIMIT)
    except SchemaError as error:
        return refused(error)
    choice = "auto" if output else "required"
    text = hermes.grammar(tools, tool_choice=choice, output_schema=output, control=QWEN)
    assert text is not None
    return compiler.compile(text)


def counted(compiler: GrammarCompiler, numbers: range) -> int:
    count = 0
    for seed in numbers:
        draw = random.Random(seed)
        tools = [definition(draw, f"tool_{i}") for i in range(1 + seed % 3)]
        grammar = served(compiler, tools)
        if grammar is None:
            count += 1
            continue
        by_name = {tool["function"]["name"]: tool["function"]["parameters"] for tool in tools}
        calls = calls_of(compiler, sampled(grammar, seed, force=seed % 2 == 1))
        assert calls, f"seed {seed}: no call"
        for call in calls:
            assert list(call) == ["name", "arguments"]
            jsonschema.validate(call["arguments"], by_name[call["name"]], jsonschema.Draft202012Validator)
    return count


def test_generated_tools_under_random_weights_give_valid_calls(compiler: GrammarCompiler) -> None:
    """40 generated schemas: each call fulfils its schema within 256 tokens; at most a tenth is refused before."""
    assert counted(compiler, range(40)) <= 4


@pytest.mark.full
def test_two_hundred_generated_tools_give_valid_calls(compiler: GrammarCompiler) -> None:
    """The same of 200."""
    assert counted(compiler, range(200)) <= 20


def both(compiler: GrammarCompiler, numbers: range) -> tuple[int, int, int]:
    """Tools and output schema together: how many were refused, gave calls, gave the output."""
    count = called = answered = 0
    for seed in numbers:
        draw = random.Random(10_000 + seed)
        tools, output = [definition(draw, "tool")], record(draw)
        grammar = served(compiler, tools, output)
        if grammar is None:
            count += 1
            continue
        ids = sampled(grammar, seed)
        calls = calls_of(compiler, list(ids))
        for call in calls:
            jsonschema.validate(call["arguments"], tools[0]["function"]["parameters"], jsonschema.Draft202012Validator)
        if calls:
            called += 1
        else:
            text = compiler.vocabulary.tokenizer.decode_bytes(ids).decode("utf-8")
            jsonschema.validate(json.loads(text), output, jsonschema.Draft202012Validator)
            answered += 1
    return count, called, answered


def test_output_schema_and_tools_together(compiler: GrammarCompiler) -> None:
    """With both, 40 turns are valid calls or the valid output, and both happen."""
    count, called, answered = both(compiler, range(40))
    assert count <= 4
    assert called > 3
    assert answered > 3


@pytest.mark.full
def test_two_hundred_output_schemas_and_tools_together(compiler: GrammarCompiler) -> None:
    """The same of 200."""
    assert both(compiler, range(200))[0] <= 20


def parameters(text: str) -> dict[str, str]:
    """The raw parameters of one function in the XML form."""
    found = re.fullmatch(r"\n<function=\w+>\n(.*)</function>\n", text, re.DOTALL)
    assert found, text
    pairs = re.findall(r"<parameter=([^>]+)>\n(.*?)\n</parameter>\n", found[1], re.DOTALL)
    assert "".join(f"<parameter={key}>\n{value}\n</parameter>\n" for key, value in pairs) == found[1]
    return dict(pairs)


def test_generated_tools_in_xml_give_valid_calls(compiler: GrammarCompiler) -> None:
    """30 generated schemas in the XML form: required parameters are there, strings are raw, the rest is valid JSON."""
    assert in_xml(compiler, range(30)) <= 3


@pytest.mark.full
def test_two_hundred_generated_tools_in_xml_give_valid_calls(compiler: GrammarCompiler) -> None:
    """The same of 200."""
    assert in_xml(compiler, range(200)) <= 20


def in_xml(compiler: GrammarCompiler, numbers: range) -> int:
    """How many were refused, beside those whose constants hold a tag; each call that is sampled is checked."""
    xml, count = dialects.get("xml"), 0
    for seed in numbers:
        draw = random.Random(20_000 + seed)
        tools = [definition(draw, "tool")]
        try:
            dialects.check(xml, tools, compile=compiler.compile, control=QWEN, max_tokens=LIMIT)
        except SchemaError as error:
            refused(error)
            count += "holds a tag" not in error.message  # raw text cannot carry `</tool_call>`, and says so
            continue
        text = xml.grammar(tools, tool_choice="tool", parallel=False, control=QWEN)
        assert text is not None
        ids = sampled(compiler.compile(text), seed)
        body = compiler.vocabulary.tokenizer.decode_bytes(ids[1 : ids.index(QWEN["</tool_call>"])]).decode("utf-8")
        raw, expected = parameters(body), tools[0]["function"]["parameters"]
        assert set(expected["required"]) <= set(raw) <= set(expected["properties"])
        for key, value in raw.items():
            part = expected["properties"][key]
            if part.get("type") == "string":
                jsonschema.validate(value, {k: v for k, v in part.items() if k != "format"})
            elif "type" in part:
                jsonschema.validate(json.loads(value), part, jsonschema.Draft202012Validator)
    return count
