"""The compiler and its states, with the real Qwen2.5 tokenizer."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from qwen_agent_kit.engine.grammar import CompiledGrammar, GrammarCompiler
from qwen_agent_kit.errors import EngineError, ModelError, SchemaError

SIZE = 151936
EOS = (151645, 151643)
OPEN, CLOSE = 151657, 151658
TEXT = "start: /(?s:.*)/"
OBJECT = (
    'start: %json {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"], '
    '"additionalProperties": false, "x-guidance": {"whitespace_flexible": false, "key_separator": ": "}}'
)


@pytest.fixture(scope="module")
def tokenizer_json(qwen25_dir: Path) -> bytes:
    return (qwen25_dir / "tokenizer.json").read_bytes()


@pytest.fixture(scope="module")
def compiler(tokenizer_json: bytes) -> GrammarCompiler:
    return GrammarCompiler(tokenizer_json, SIZE, EOS)


def ids_of(compiler: GrammarCompiler, text: str) -> list[int]:
    ids: list[int] = compiler.vocabulary.tokenizer.tokenize_str(text)
    return ids


def allowed(
    grammar: CompiledGrammar, taken: list[int], remaining: int = 10_000, dtype: Any = torch.float32
) -> set[int]:
    """The ids that a mask leaves after some were taken."""
    state = grammar.start()
    for token in taken:
        state.accept(token)
    logits = torch.zeros(SIZE, dtype=dtype)
    state.mask(logits, remaining)
    return set(torch.nonzero(logits > float("-inf")).flatten().tolist())


def test_a_mask_leaves_exactly_what_may_come(compiler: GrammarCompiler) -> None:
    """After the value only the end of turn may come; before it nothing but the value."""
    grammar = compiler.compile('start: "yes" | "no"')
    firsts = {compiler.vocabulary.tokenizer.decode_str([i]) for i in allowed(grammar, [])}
    assert firsts == {"y", "ye", "yes", "n", "no"}
    state = grammar.start()
    for token in ids_of(compiler, "yes"):
        state.accept(token)
    assert state.stopped


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_every_float_type_is_masked_alike(compiler: GrammarCompiler, dtype: torch.dtype) -> None:
    """Sparse, middling and dense masks are the same in every floating type, and values that stay are untouched."""
    for text in ('start: "yes" | "no"', TEXT, "start: /[a-z ]+/"):
        state = compiler.compile(text).start()
        logits = torch.randn(SIZE, generator=torch.Generator().manual_seed(1)).to(dtype)
        before = logits.clone()
        state.mask(logits, 10_000)
        kept = logits > float("-inf")
        assert set(torch.nonzero(kept).flatten().tolist()) == allowed(compiler.compile(text), [])
        assert torch.equal(logits[kept], before[kept])


def test_free_text_never_becomes_a_control_token(compiler: GrammarCompiler) -> None:
    """No added token fits free text, and the end of turn always does; ids past the vocabulary never do."""
    left = allowed(compiler.compile(TEXT), [])
    assert left >= set(EOS)
    assert not left & set(range(151643, SIZE)) - set(EOS)
    assert len(left) > 150_000


def test_text_that_spells_a_tag_is_forced_as_text(compiler: GrammarCompiler) -> None:
    """A constant that holds `</tool_call>` is forced in ordinary tokens, and can be reached."""
    grammar = compiler.compile('start: %json {"const": "</tool_call><|im_end|>"}')
    forced = grammar.start().forced()
    assert not set(forced) & {OPEN, CLOSE, *EOS}
    assert compiler.vocabulary.tokenizer.decode_str(forced) == '"</tool_call><|im_end|>"'
    assert grammar.minimum == len(forced) + 1


def test_forced_ids_are_what_the_tokenizer_writes(compiler: GrammarCompiler) -> None:
    """What is forced is a prefix of the text's own tokenisation, and following it changes nothing."""
    state, whole = compiler.compile(OBJECT).start(), ids_of(compiler, '{"a": "x"}')
    forced = state.forced()
    assert forced
    assert forced == whole[: len(forced)]
    for token in forced:
        state.accept(token)
    assert state.forced() == []


def test_a_wrong_id_is_an_error(compiler: GrammarCompiler) -> None:
    """Taking what the grammar does not allow is the engine's fault, and is told without the text."""
    state = compiler.compile(OBJECT).start()
    with pytest.raises(EngineError, match="does not fit the grammar"):
        state.accept(ids_of(compiler, "secret")[0])


def test_near_the_limit_a_string_is_closed(compiler: GrammarCompiler) -> None:
    """Weights that never close a string still give a whole object within any limit that suffices."""
    grammar, never = compiler.compile(OBJECT), ids_of(compiler, " and")[0]
    assert grammar.minimum is not None
    for limit in (grammar.minimum, grammar.minimum + 1, 20, 64):
        state, ids = grammar.start(), []
        while not state.stopped and len(ids) < limit:
            logits = torch.zeros(SIZE)
            logits[never] = 9.0
            state.mask(logits, limit - len(ids))
            ids.append(int(logits.argmax()))
            state.accept(ids[-1])
        text = compiler.vocabulary.tokenizer.decode_str([i for i in ids if i not in EOS])
        assert set(json.loads(text)) == {"a"}


def test_free_text_is_cut_by_the_limit_not_by_the_grammar(compiler: GrammarCompiler) -> None:
    """Text that was complete all along is never ended early: the last token may still be a word."""
    state, word = compiler.compile(TEXT).start(), ids_of(compiler, " and")[0]
    state.accept(word)
    logits = torch.zeros(SIZE)
    logits[word] = 9.0
    state.mask(logits, 1)
    assert int(logits.argmax()) == word


def test_a_call_cannot_begin_where_it_cannot_end(compiler: GrammarCompiler) -> None:
    """The opening token disappears where the rest of the call has no room."""
    text = f'// {{"reserve": 40}}\nTEXT: /(?s:.*)/\nstart: TEXT | TEXT <[{OPEN}]> "\\n{{\\"name\\": 1}}\\n" <[{CLOSE}]>'
    grammar = compiler.compile(text)
    word = ids_of(compiler, "Hi")
    likely = torch.zeros(SIZE)
    likely[OPEN] = 9.0
    for remaining, may in ((40, True), (3, False)):
        state, logits = grammar.start(), likely.clone()
        state.accept(word[0])
        state.mask(logits, remaining)
        assert bool(logits[OPEN] > float("-inf")) is may


def test_the_minimum_is_known_before_generation(compiler: GrammarCompiler) -> None:
    """A limit that is too small is refused with both numbers."""
    grammar = compiler.compile(OBJECT)
    needed = grammar.minimum
    assert needed is not None
    grammar.require(needed)
    with pytest.raises(SchemaError, match=f"at least {needed} tokens, max_tokens is {needed - 1}"):
        grammar.require(needed - 1)


@pytest.mark.parametrize(
    "text", ["start: (", "start: /(/", "start: missing", 'start: %json {"type": "strin"}', "\udc80"]
)
def test_a_bad_text_is_a_schema_error(compiler: GrammarCompiler, text: str) -> None:
    """What does not compile is refused in one line."""
    with pytest.raises(SchemaError) as caught:
        compiler.compile(text)
    assert "\n" not in caught.value.message


def test_a_file_that_is_no_tokenizer_is_refused() -> None:
    """Neither garbage nor other JSON reaches the engine."""
    for content in (b"garbage", b"{}", b"[]", b'{"model": {}}', "\u00e9".encode("latin-1")):
        with pytest.raises(ModelError):
            GrammarCompiler(content, 10, [0])


def test_states_are_independent_and_compiled_once(compiler: GrammarCompiler) -> None:
    """Two states of one grammar do not disturb each other; the same text is the same grammar."""
    grammar = compiler.compile(OBJECT)
    assert compiler.compile(OBJECT) is grammar
    one, two = grammar.start(), grammar.start()
    for token in one.forced():
        one.accept(token)
    assert two.forced() == grammar.start().forced() != one.forced()


def test_compiling_from_many_threads(tokenizer_json: bytes) -> None:
    """Threads that compile and start at once get working states."""
    compiler, found = GrammarCompiler(tokenizer_json, SIZE, EOS, keep=2), []

    def work(number: int) -> None:
        for i in range(10):
            state = compiler.compile(f'start: "word{(number + i) % 5}"').start()
            found.append(compiler.vocabulary.tokenizer.decode_str(state.forced()).startswith("word"))

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [True] * 40


def schemas(count: int) -> Iterator[str]:
    for i in range(count):
        properties = {f"a{i}": {"type": "string", "maxLength": i % 50}}
        yield f"start: %json {json.dumps({'type': 'object', 'properties': properties})}"


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


@pytest.mark.parametrize("count", [1_000, pytest.param(10_000, marks=pytest.mark.full)])
def test_f21_distinct_schemas_do_not_pile_up(compiler: GrammarCompiler, count: int) -> None:
    """Thousands of distinct schemas leave less than 100 MB behind."""
    for text in schemas(100):
        compiler.compile(text).start()
    before = resident()
    for text in schemas(count):
        compiler.compile(text).start()
    assert resident() - before < 100_000_000


CATASTROPHIC = [
    "(x+x+)+y",
    "([a-zA-Z]+)*$",
    "(a|aa)+$",
    "(.*a){25}",
    "(.*a.{30}){3}b",
    "((a{1,1000}){1,1000}){1,1000}",
    "[ab]*a[ab]{20}$",
    "^(([ab]*a[ab]{40})|x)*y$",
    "(" * 60_000 + "a" + ")" * 60_000,
    "|".join(f"a{i}" for i in range(20_000)),
    "(?i)(union|select){100}",
]


@pytest.mark.parametrize("pattern", CATASTROPHIC, ids=lambda pattern: pattern[:20])
def test_f20_catastrophic_patterns(compiler: GrammarCompiler, pattern: str) -> None:
    """A catastrophic pattern is refused, or can be sampled under; either within five seconds."""
    began = time.monotonic()
    try:
        grammar = compiler.compile(f"start: %json {json.dumps({'type': 'string', 'pattern': pattern})}")
        grammar.require(256)
        state = grammar.start()
        for remaining in range(64, 0, -1):
            if state.stopped:
                break
            logits = torch.randn(SIZE, generator=torch.Generator().manual_seed(remaining))
            state.mask(logits, remaining)
            state.accept(int(logits.argmax()))
    except (SchemaError, EngineError) as refusal:
        assert str(refusal)  # noqa: PT017  # either end is right; what counts is the time
    assert time.monotonic() - began < 5
