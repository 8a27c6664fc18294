"""The detokenizer against the tokenizers' own decoder, and its stop strings against a search in the whole text."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from qwen_agent_kit.backends import Piece
from qwen_agent_kit.engine.detokenize import Detokenizer, TokenTable

CHECKOUT = Path(__file__).resolve().parents[2]
BAD = "\N{REPLACEMENT CHARACTER}"
TEXTS = st.text(
    alphabet=st.one_of(st.characters(exclude_categories=["Cs"]), st.sampled_from("aeb 你🧑‍🚀é\n")), max_size=40
)
NOTHING: frozenset[int] = frozenset()


@functools.cache
def qwen(name: str) -> Tokenizer:
    return Tokenizer.from_file(str(CHECKOUT / ".cache" / "tokenizers" / name / "tokenizer.json"))


@functools.cache
def controls(name: str) -> frozenset[int]:
    return frozenset(qwen(name).get_added_tokens_decoder())


@functools.cache
def metaspace() -> Tokenizer:
    """A small vocabulary in the manner of Llama 2: ``▁`` for space, byte fallback, the first space dropped."""
    words = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *"abcdehlorw你", "▁he", "llo", "▁wor", "ld"]
    model = models.BPE(
        vocab={word: at for at, word in enumerate(words)}, merges=[], unk_token="<unk>", byte_fallback=True
    )
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_tokens([AddedToken("<tool_call>", normalized=False)])
    return tokenizer


def run(detokenizer: Detokenizer, ids: list[int]) -> list[Piece]:
    pieces = [piece for token in ids for piece in detokenizer.feed(token)] + detokenizer.flush()
    assert all(piece.text for piece in pieces), "an empty piece says nothing"
    return pieces


def joined(pieces: list[Piece]) -> str:
    return "".join(piece.text for piece in pieces)


@pytest.mark.parametrize("name", ["qwen2_5", "qwen3"])
@given(
    ids=st.lists(st.one_of(st.integers(0, 151_935), st.integers(0, 300), st.integers(151_640, 151_670)), max_size=40)
)
@settings(max_examples=150, deadline=None)
def test_random_ids_decode_as_the_tokenizer_does(name: str, ids: list[int]) -> None:
    """Any ids, those of half characters, of tags and beyond the vocabulary included, give the text of ``decode``."""
    tokenizer = qwen(name)
    pieces = run(Detokenizer(tokenizer, control_ids=controls(name)), ids)
    assert joined(pieces) == tokenizer.decode(ids, skip_special_tokens=False)
    tags = [tokenizer.id_to_token(token) for token in ids if token in controls(name)]
    assert [piece.text for piece in pieces if piece.control] == tags


@given(text=TEXTS)
@settings(max_examples=200, deadline=None)
def test_f42_no_character_is_split(text: str) -> None:
    """The ids of any text give that text (in the tokenizer's normal form) without one U+FFFD that was not in it."""
    tokenizer = qwen("qwen2_5")
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    pieces = run(Detokenizer(tokenizer, control_ids=controls("qwen2_5")), ids)
    assert joined(pieces) == tokenizer.decode(ids, skip_special_tokens=False)
    assert joined(pieces).count(BAD) == text.count(BAD)


def test_hidden_ids_have_no_text() -> None:
    """The end of the turn is not shown."""
    tokenizer = qwen("qwen3")
    end = tokenizer.token_to_id("<|im_end|>")
    ids = [*tokenizer.encode("Hi").ids, end]
    assert joined(run(Detokenizer(tokenizer, hidden_ids=frozenset({end})), ids)) == "Hi"


def test_a_character_comes_with_its_last_byte() -> None:
    """Nothing is shown of half a character; bytes that cannot become one are U+FFFD at once, or at the end."""
    tokenizer = qwen("qwen2_5")
    table = TokenTable(tokenizer)
    byte = {table.bytes_of(token): token for token in range(256)}
    detokenizer = Detokenizer(table)
    assert [detokenizer.feed(byte[bytes([b])]) for b in "🌟".encode()] == [[], [], [], [Piece("🌟")]]
    assert detokenizer.feed(byte[b"\xe4"]) == []
    assert detokenizer.feed(byte[b"a"]) == [Piece(BAD + "a")]
    assert detokenizer.feed(byte[b"\xff"]) == [Piece(BAD)]
    assert detokenizer.feed(byte[b"\xe4"]) == []
    assert detokenizer.flush() == [Piece(BAD)]


def test_a_control_token_is_a_piece_of_its_own() -> None:
    """Its text is marked, also where half a character stood before it."""
    tokenizer = qwen("qwen3")
    table = TokenTable(tokenizer)
    half = next(token for token in range(256) if table.bytes_of(token) == b"\xe4")
    call = tokenizer.token_to_id("<tool_call>")
    detokenizer = Detokenizer(table, control_ids=frozenset({call}))
    assert detokenizer.feed(half) == []
    assert detokenizer.feed(call) == [Piece(BAD), Piece("<tool_call>", True)]
    quoted = run(detokenizer, tokenizer.encode("<tool_", add_special_tokens=False).ids)
    assert joined(quoted) == "<tool_"
    assert not any(piece.control for piece in quoted)


@given(text=TEXTS, tail=TEXTS)
@settings(max_examples=200, deadline=None)
def test_other_decoders_give_the_same_text(text: str, tail: str) -> None:
    """SentencePiece-like vocabularies: spaces, fallback bytes and a tag between come out as ``decode`` gives them."""
    tokenizer = metaspace()
    call = tokenizer.token_to_id("<tool_call>")
    ids = [*tokenizer.encode(text).ids, call, *tokenizer.encode(tail).ids]
    pieces = run(Detokenizer(tokenizer, control_ids=frozenset({call})), ids)
    assert joined(pieces) == tokenizer.decode(ids, skip_special_tokens=False)
    assert [piece.text for piece in pieces if piece.control] == ["<tool_call>"]
    assert joined(pieces).count(BAD) == (text + tail).count(BAD)


@given(ids=st.lists(st.integers(257, 274), max_size=30))
@settings(max_examples=100, deadline=None)
def test_other_decoders_give_the_same_text_for_random_ids(ids: list[int]) -> None:
    """Any ids but fallback bytes."""
    assert joined(run(Detokenizer(metaspace()), ids)) == metaspace().decode(ids, skip_special_tokens=False)


def test_other_decoders_wait_for_whole_characters() -> None:
    """A character of four fallback bytes comes with the last; bytes that are none spoil no character beside them."""
    tokenizer = metaspace()
    detokenizer = Detokenizer(tokenizer)
    texts = [joined(detokenizer.feed(1 + byte)) for byte in b"a" + "🌟".encode()]
    assert texts == ["a", "", "", "", "🌟"]
    texts = [joined(detokenizer.feed(1 + byte)) for byte in b"\xff" + "é".encode() + b"\xe4"]
    assert texts == [BAD, "", "é", ""]
    assert joined(detokenizer.feed(tokenizer.token_to_id("▁wor"))) == BAD + " wor"


# --- stop strings -------------------------------------------------------------------------------------------------


def first_stop(text: str, stops: list[str]) -> tuple[str, str | None]:
    """The text up to the stop string that ends first (of those, the one that begins first), by searching it all."""
    ends = [(text.find(stop) + len(stop), -len(stop), stop) for stop in stops if stop in text]
    if not ends:
        return text, None
    end, _, stop = min(ends)
    return text[: end - len(stop)], stop


PIECES = st.lists(
    st.sampled_from(["a", "b", "ab", "aab", " é", "你", "好", "🌟", "<tool_call>", "</think>", "\n"]), max_size=24
)
STOPS = st.lists(
    st.one_of(
        st.text(alphabet="ab你🌟", min_size=1, max_size=5), st.sampled_from(["<tool_call>", "ink>a", "b<tool", "\n"])
    ),
    min_size=1,
    max_size=3,
)


@given(parts=PIECES, stops=STOPS)
@settings(max_examples=300, deadline=None)
def test_f41_stop_strings_cut_exactly(parts: list[str], stops: list[str]) -> None:
    """Over token boundaries, inside characters and over tags, the text ends where the stop string begins."""
    check_stops(parts, stops)


@pytest.mark.full
@given(parts=PIECES, stops=STOPS)
@settings(max_examples=20_000, deadline=None)
def test_f41_stop_strings_cut_exactly_many(parts: list[str], stops: list[str]) -> None:
    """The same, many times."""
    check_stops(parts, stops)


def check_stops(parts: list[str], stops: list[str]) -> None:
    tokenizer = qwen("qwen3")
    ids = [token for part in parts for token in tokenizer.encode(part).ids]
    detokenizer = Detokenizer(tokenizer, stop=stops, control_ids=controls("qwen3"))
    expected, stop = first_stop("".join(parts), stops)
    shown = ""
    for token in ids:
        shown += joined(detokenizer.feed(token))
        assert expected.startswith(shown), "nothing of the stop string is shown before"
        if detokenizer.stopped:
            assert shown == expected
    shown += joined(detokenizer.flush())
    assert (shown, detokenizer.matched) == (expected, stop)


def test_f41_nothing_is_held_longer_than_needed() -> None:
    """Only what may be the beginning of a stop string waits."""
    tokenizer = qwen("qwen3")
    detokenizer = Detokenizer(tokenizer, stop=["aab"])
    one = tokenizer.token_to_id
    assert [joined(detokenizer.feed(one(letter))) for letter in "xaaac"] == ["x", "", "", "a", "aac"]
    assert [joined(detokenizer.feed(one(letter))) for letter in "aab"] == ["", "", ""]
    assert detokenizer.stopped
    assert (detokenizer.feed(one("x")), detokenizer.flush()) == ([], [])


def test_f41_a_tag_that_may_be_cut_waits_whole() -> None:
    """A control token is shown whole and marked, or, where a stop string begins inside it, not as a control token."""
    tokenizer = qwen("qwen3")
    call = tokenizer.token_to_id("<tool_call>")
    for tail, expected in (("x", [Piece("<tool_call>", True), Piece("x")]), ("y", [Piece("<tool_")])):
        detokenizer = Detokenizer(tokenizer, stop=["call>y"], control_ids=frozenset({call}))
        assert detokenizer.feed(call) == []
        assert detokenizer.feed(tokenizer.token_to_id(tail)) == expected
