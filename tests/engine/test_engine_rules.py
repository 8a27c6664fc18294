"""What decides the next id and the end: stop strings, span budgets, grammars, logprobs, repetition, control pieces."""

from __future__ import annotations

import math
import time
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_decoder import CLOSE, EOS, OPEN, VOCAB, small_loaded

from qwen_agent_kit.backends import Piece, Sampling, SpanBudget
from qwen_agent_kit.engine import Engine
from qwen_agent_kit.errors import EngineError, SchemaError, UsageError


class Script:
    """A model that says what it is told: the ids after a prompt of one id, whatever was forced between."""

    def __init__(self, loaded: Any, said: list[int], *, prompt: int = 1) -> None:
        self.said, self.prompt = said, prompt
        loaded.model.forward = self.forward
        self.forwards: list[int] = []

    def forward(self, ids: torch.Tensor, positions: Any, kv: Any, *, start: int, logits_from: int, **_: Any) -> Any:
        n = len(ids)
        self.forwards.append(n)
        nothing = torch.zeros(n, 2, 8)
        for layer in range(2):
            kv.write(layer, nothing, nothing, start)
        logits = torch.zeros(n, VOCAB)
        for row in range(n):
            at = start + row + 1 - self.prompt
            if 0 <= at < len(self.said):
                logits[row, self.said[at]] = 10.0
        return logits[logits_from:]


@pytest.fixture
def loaded() -> Any:
    return small_loaded()


def text_of(pieces: list[Piece]) -> str:
    return "".join(piece.text for piece in pieces)


# --- text --------------------------------------------------------------------------------------------------------


def test_f41_a_stop_string_ends_text_and_ids(loaded: Any) -> None:
    """The text ends before a stop string that several tokens make up; ids end with the token that completed it."""
    said = list(b"one two three four")
    Script(loaded, said)
    with Engine(loaded) as engine:
        for stop in ("two t", " three", "o"):
            generation = engine.submit([0], Sampling(max_tokens=50, stop=(stop, "never")))
            whole = bytes(said).decode()
            assert text_of(list(generation.pieces())) == whole[: whole.index(stop)]
            assert bytes(generation.ids).decode() == whole[: whole.index(stop) + len(stop)]
            assert generation.finish_reason == "stop"


@settings(max_examples=25, deadline=None)
@given(st.text(alphabet="ab é€😀", min_size=1, max_size=30), st.text(alphabet="ab é€😀", min_size=1, max_size=4))
def test_f41_stop_strings_inside_characters_of_several_tokens(said: str, stop: str) -> None:
    """Whatever bytes the characters take, text ends exactly before the stop string, for ids and text readers alike."""
    loaded = small_loaded()
    ids = list(said.encode())
    Script(loaded, [*ids, EOS])
    expected = said[: said.index(stop)] if stop in said else said
    with Engine(loaded) as engine:
        sampling = Sampling(max_tokens=200, stop=(stop,))
        generation = engine.submit([0], sampling)
        assert text_of(list(generation.pieces())) == expected
        by_ids = list(engine.submit([0], sampling))
        end = len((expected + stop).encode()) if stop in said else len(ids) + 1
        assert by_ids == generation.ids == [*ids, EOS][:end]
        assert generation.finish_reason == "stop"


def test_control_ids_are_pieces_of_their_own(loaded: Any) -> None:
    """Added tokens come marked as control; the same characters as text do not; the end of turn has no text."""
    Script(loaded, [OPEN, *b"hm", CLOSE, *b"<think>", EOS])
    with Engine(loaded) as engine:
        pieces = list(engine.submit([0], Sampling(max_tokens=50)).pieces())
    assert pieces[0] == Piece("<think>", True)
    assert [p for p in pieces if p.control] == [Piece("<think>", True), Piece("</think>", True)]
    assert text_of(pieces) == "<think>hm</think><think>"


def test_half_a_character_at_the_end_comes_last(loaded: Any) -> None:
    """Bytes that never became a character are one U+FFFD at the end, not before."""
    Script(loaded, list("a😀".encode()))
    with Engine(loaded) as engine:
        assert text_of(list(engine.submit([0], Sampling(max_tokens=5)).pieces())) == "a😀"
        assert text_of(list(engine.submit([0], Sampling(max_tokens=3)).pieces())) == "a\ufffd"


# --- budget ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [0, 1, 5, 9])
def test_a_budget_closes_a_span_that_the_prompt_opened(loaded: Any, limit: int) -> None:
    """After ``limit`` ids in the span the closing ids are there, nothing sampled between."""
    script = Script(loaded, list(b"0123456789" * 3))
    closing = (ord("."), CLOSE, ord("\n"))
    with Engine(loaded, drafts=False) as engine:
        generation = engine.submit([0], Sampling(max_tokens=20), budget=SpanBudget(CLOSE, limit, closing))
        ids = list(generation)
    assert ids[:limit] == list(b"0123456789"[:limit])
    assert tuple(ids[limit : limit + 3]) == closing
    assert ids.count(CLOSE) == 1
    assert len(ids) == 20
    assert generation.usage.forced_tokens == 3
    assert len(script.forwards) == 20 - 3 if limit else 20 - 3 + 1


def test_a_budget_waits_for_its_span_and_leaves_a_closed_one_alone(loaded: Any) -> None:
    """Ids before the span do not count, a span that closes in time is not touched, a second one counts from zero."""
    said = [*b"abcdefgh", OPEN, *b"12", CLOSE, *b"ijklmnop", OPEN, *b"3456789"]
    Script(loaded, said)
    with Engine(loaded) as engine:
        generation = engine.submit([0], Sampling(max_tokens=30), budget=SpanBudget(CLOSE, 4, (CLOSE,), open=OPEN))
        ids = list(generation)
    assert ids[: said.index(ord("7"))] == said[: said.index(ord("7"))]
    assert ids[said.index(ord("7"))] == CLOSE
    assert ids.count(CLOSE) == 2


def test_a_budget_closes_under_a_grammar(loaded: Any) -> None:
    """The grammar takes the forced closing ids as well, and goes on behind them."""
    Script(loaded, list(b"thinking on and on and on"))
    grammar = f'start: /[a-z ]*/ <[{CLOSE}]> "<" /[0-9]{{3}}/ ">"'
    with Engine(loaded) as engine:
        generation = engine.submit([0], Sampling(max_tokens=40), grammar=grammar, budget=SpanBudget(CLOSE, 6, (CLOSE,)))
        text = text_of(list(generation.pieces()))
    assert text.startswith("thinki</think><")
    assert generation.finish_reason == "stop"
    assert text.endswith(">")


def test_closing_never_passes_max_tokens(loaded: Any) -> None:
    """Forced ids count against ``max_tokens`` like any."""
    Script(loaded, list(b"0123456789"))
    with Engine(loaded) as engine:
        generation = engine.submit([0], Sampling(max_tokens=6), budget=SpanBudget(CLOSE, 5, (65, 66, CLOSE)))
        assert list(generation) == [*b"01234", 65]
        assert generation.finish_reason == "length"


# --- grammar -----------------------------------------------------------------------------------------------------


def test_a_grammar_is_followed_and_forced_ids_share_a_forward(loaded: Any) -> None:
    """What the grammar leaves no choice about is appended unsampled and computed together with its neighbour."""
    grammar = 'start: "abcdef" /[0-9]/ "ghijkl" /[0-9]/ "end"'
    counted: list[int] = []
    loaded.model.before = lambda ids, positions, start: counted.append(len(ids))
    with Engine(loaded) as engine:
        generation = engine.submit([0, 1, 2], Sampling(max_tokens=50), grammar=grammar)
        text = text_of(list(generation.pieces()))
    usage = generation.usage
    assert text[:6] + text[7:13] + text[14:] == "abcdefghijklend"
    assert text[6].isdigit()
    assert text[13].isdigit()
    assert generation.finish_reason == "stop"
    assert usage.forced_tokens >= 13
    assert usage.computed_tokens == sum(counted) <= 3 + usage.generated_tokens
    assert len(counted) <= usage.generated_tokens - usage.forced_tokens + 1


def test_the_prefill_is_no_part_of_decoding_where_ids_are_forced_at_once(
    loaded: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a clock that only forwards move: the first takes 1,000 s, each other one second, and decoding took the others,
    although the first ids were there before any."""
    now = [0.0]
    clock = SimpleNamespace(perf_counter=lambda: now[0], monotonic=time.monotonic)
    monkeypatch.setattr("qwen_agent_kit.engine.request.time", clock)

    def before(ids: Any, positions: Any, start: int) -> None:
        now[0] += 1.0 if now[0] else 1000.0

    loaded.model.before = before
    with Engine(loaded, drafts=False) as engine:
        generation = engine.submit([0, 1, 2], Sampling(max_tokens=50), grammar='start: "abcdef" /[0-9]{4}/ "end"')
        list(generation)
    assert generation.usage.decode_ms == 1000 * (now[0] - 1000.0) > 0


def test_forcing_changes_no_later_id(loaded: Any) -> None:
    """Keys and values of forced ids are those of ids computed one by one: greedy goes on the same behind them."""
    with Engine(loaded) as engine:
        generation = engine.submit([5, 6], Sampling(max_tokens=200), grammar='start: "abcdefgh" /[a-z]{4}/')
        ids = list(generation)
    logits_ids = [5, 6, *b"abcdefgh"]
    for token in ids[8:12]:
        logits = all_logits(loaded.model, logits_ids)
        letters = torch.full((VOCAB,), -math.inf)
        letters[97:123] = logits[97:123]
        assert token == int(letters.argmax())
        logits_ids.append(token)


def all_logits(model: Any, ids: list[int]) -> torch.Tensor:
    from small_decoder import PlainKV

    return model.forward(torch.tensor(ids), torch.arange(len(ids)), PlainKV(), start=0)[-1]


def test_the_grammar_closes_near_the_limit(loaded: Any) -> None:
    """However little is allowed, what comes out follows the grammar to its end."""
    grammar = 'start: "[" /[a-z]/* "]"'
    with Engine(loaded) as engine:
        for most in (3, 4, 9):
            generation = engine.submit([0], Sampling(max_tokens=most), grammar=grammar)
            text = text_of(list(generation.pieces()))
            assert text[0] + text[-1] == "[]"
            assert generation.finish_reason == "stop"


@pytest.mark.parametrize("grammar", ["start: (", "start: /(/", "nothing", ""])
def test_a_grammar_that_does_not_compile_is_refused_at_once(loaded: Any, grammar: str) -> None:
    """Refusals are raised where the request is made, before anything runs."""
    with Engine(loaded) as engine:
        with pytest.raises(SchemaError):
            engine.submit([0], Sampling(), grammar=grammar)
        with pytest.raises(SchemaError):
            engine.compile(grammar)
        assert engine.counters.forwards == 0


def test_a_budget_that_the_grammar_forbids_is_an_error_of_its_request(loaded: Any) -> None:
    """Closing ids that the grammar does not take end the request with an error, not with text outside the grammar."""
    with Engine(loaded) as engine:
        generation = engine.submit(
            [0], Sampling(max_tokens=30), grammar="start: /[a-z]{20}/", budget=SpanBudget(CLOSE, 3, (CLOSE,))
        )
        with pytest.raises(EngineError):
            list(generation)
        assert len(generation.ids) == 3
        assert list(engine.submit([0], Sampling(max_tokens=2)))


# --- sampling fields through the engine ----------------------------------------------------------------------------


def test_logprobs_one_per_id(loaded: Any) -> None:
    """Each generated id has its logprob and alternatives, equal to the log-softmax of the whole sequence recomputed."""
    prompt = [1, 2, 3]
    with Engine(loaded) as engine:
        generation = engine.submit(prompt, Sampling(max_tokens=6, logprobs=3))
        ids = list(generation)
        assert engine.submit(prompt, Sampling(max_tokens=1)).logprobs is None
    assert [entry[0] for entry in generation.logprobs] == ids
    for at, (token, logprob, alternatives) in enumerate(generation.logprobs):
        expected = all_logits(loaded.model, prompt + ids[:at]).log_softmax(0)
        assert logprob == pytest.approx(float(expected[token]), abs=1e-4)
        assert [i for i, _ in alternatives] == expected.topk(3).indices.tolist()


def test_forced_ids_have_no_logprob(loaded: Any) -> None:
    """An id that was not sampled is reported without a logprob rather than with an invented one."""
    with Engine(loaded) as engine:
        generation = engine.submit([0], Sampling(max_tokens=9, logprobs=1), grammar='start: "abc" /[0-9]/')
        list(generation)
    assert [entry[1] is None for entry in generation.logprobs][:4] == [True, True, True, False]


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, b"aaaaaa"),
        ({"presence_penalty": 0.5}, b"abcdea"),
        ({"frequency_penalty": 0.35}, b"abcade"),
        ({"repetition_penalty": 1.05}, b"bcdeaa"),
    ],
)
def test_penalties_see_what_was_generated(loaded: Any, fields: dict[str, float], expected: bytes) -> None:
    """Each penalty counts generated ids; only the repetition penalty counts the prompt, here an ``a``, as well."""
    steady = torch.zeros(VOCAB)
    steady[97:102] = torch.tensor([10.0, 9.8, 9.7, 9.6, 9.55])
    loaded.model.forward = lambda ids, *_, logits_from, **__: steady.repeat(len(ids) - logits_from, 1)
    with Engine(loaded) as engine:
        ids = list(engine.submit(list(b"a"), Sampling(max_tokens=6, **fields)))
    assert bytes(ids) == expected


def test_penalties_count_forced_ids(loaded: Any) -> None:
    """An id that the grammar forced counts as generated."""
    steady = torch.zeros(VOCAB)
    steady[97:99] = torch.tensor([10.0, 9.8])
    loaded.model.forward = lambda ids, *_, logits_from, **__: steady.repeat(len(ids) - logits_from, 1)
    with Engine(loaded) as engine:
        sampling = Sampling(max_tokens=100, presence_penalty=1.0)
        generation = engine.submit([0], sampling, grammar='start: "a" /[ab]/ "x"')
        assert bytes(generation.ids if list(generation) else b"")[:3] == b"abx"


def test_a_bias_that_the_vocabulary_lacks_is_refused_at_once(loaded: Any) -> None:
    """Settings that cannot be are refused where the request is made."""
    with Engine(loaded) as engine, pytest.raises(UsageError, match="logit_bias"):
        engine.submit([0], Sampling(logit_bias={VOCAB: 1.0}))


# --- loops -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "most"),
    [(list(b"again and ") * 300, 700), (list(b"once") + list(b" \n\t ") * 300, 300)],
)
def test_f40_a_loop_ends_with_repetition(loaded: Any, said: list[int], most: int) -> None:
    """A generation that only repeats itself, or is nothing but blanks, ends early with the reason ``repetition``."""
    Script(loaded, said)
    with Engine(loaded) as engine:
        generation = engine.submit([0], Sampling(max_tokens=2000))
        ids = list(generation)
        assert generation.finish_reason == "repetition"
        assert ids == said[: len(ids)]
        assert len(ids) < most


def test_f40_may_be_switched_off(loaded: Any) -> None:
    """An engine made with ``stop_repetition=False`` lets a loop run."""
    Script(loaded, list(b"ab") * 600)
    with Engine(loaded, stop_repetition=False) as engine:
        generation = engine.submit([0], Sampling(max_tokens=1100))
        assert len(list(generation)) == 1100
        assert generation.finish_reason == "length"


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"deadline": "soon"}, "deadline"),
        ({"deadline": float("nan")}, "deadline"),
        ({"deadline": True}, "deadline"),
        ({"grammar": 5}, "grammar"),
        ({"budget": 5}, "budget"),
        ({"sampling": {"max_tokens": 2}}, "sampling"),
    ],
)
def test_a_wrong_type_is_refused_at_submission(options: dict, name: str) -> None:
    """It never reaches the engine's thread, where it could end other requests."""
    with Engine(small_loaded()) as engine:
        with pytest.raises(UsageError, match=f"`{name}`"):
            engine.submit([1, 2, 3], **options)
        assert len(list(engine.submit([1, 2, 3], Sampling(max_tokens=2)))) == 2
