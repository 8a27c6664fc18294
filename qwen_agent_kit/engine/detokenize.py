"""Ids become text as they come: never half a character, never a character of a stop string.

Byte-level vocabularies (GPT-2's byte alphabet: Qwen, SmolLM2) are read from a table of each token's bytes; others
(SentencePiece's ``▁``, byte fallback) through the tokenizer's own decoder over a short window of ids.
"""

from __future__ import annotations

import codecs
import json
import re
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from qwen_agent_kit.backends import Piece

if TYPE_CHECKING:
    from tokenizers import Tokenizer

__all__ = ["Detokenizer", "TokenTable"]

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
MAX_CHARACTER = 4
"""Bytes of the longest character in UTF-8."""

_FALLBACK = re.compile("<0x([0-9A-Fa-f]{2})>")


class TokenTable:
    """What the ids of one tokenizer stand for, looked up once each. Share one between the requests of an engine.

    Args:
        tokenizer: Its vocabulary and decoder; both are only read.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        steps = _decoder_steps(tokenizer)
        self.byte_level = steps == ["ByteLevel"]
        self._has_fallback = "ByteFallback" in steps
        self._alphabet = _byte_alphabet()
        self._bytes: dict[int, bytes] = {}
        self._texts: dict[int, str] = {}

    def text(self, token: int) -> str:
        """A token's own text, as the vocabulary writes it; "" for an id beyond the vocabulary."""
        text = self._texts.get(token)
        if text is None:
            text = self._texts[token] = self.tokenizer.id_to_token(token) or ""
        return text

    def bytes_of(self, token: int) -> bytes:
        """A token's bytes in a byte-level vocabulary; what is not written in the byte alphabet stands for itself."""
        found = self._bytes.get(token)
        if found is None:
            text = self.text(token)
            try:
                found = bytes(map(self._alphabet.__getitem__, text))
            except KeyError:
                found = text.encode()
            self._bytes[token] = found
        return found

    def fallback_byte(self, token: int) -> bytes | None:
        """The byte that a token like ``<0x0A>`` stands for, where the decoder reads such tokens so."""
        match = _FALLBACK.fullmatch(self.text(token)) if self._has_fallback else None
        return bytes.fromhex(match.group(1)) if match is not None else None


class Detokenizer:
    """Decodes one request's ids.

    The texts of all pieces joined are what ``tokenizer.decode(ids, skip_special_tokens=False)`` gives for the ids that
    are not hidden, up to the stop string. (Where a vocabulary falls back to bytes, ``decode`` gives up a whole run of
    them as soon as one is wrong; here only the wrong ones become U+FFFD.)

    Args:
        tokenizer: Or the ``TokenTable`` that an engine keeps for it.
        stop: Strings at which the text ends. They are looked for in all of the text, reasoning and tags included;
            of several that end at the same character the one that began first counts.
        control_ids: Ids whose text is a piece of its own, marked as control.
        hidden_ids: Ids that have no text (the end of the turn).

    Attributes:
        stopped: Whether a stop string was met; then nothing comes any more.
        matched: The stop string that was met.
    """

    def __init__(
        self,
        tokenizer: Tokenizer | TokenTable,
        *,
        stop: Sequence[str] = (),
        control_ids: frozenset[int] = frozenset(),
        hidden_ids: frozenset[int] = frozenset(),
    ) -> None:
        table = tokenizer if isinstance(tokenizer, TokenTable) else TokenTable(tokenizer)
        self._table = table
        self._control = control_ids
        self._hidden = hidden_ids
        self._decoder: _Bytes | _Window = _Bytes(table) if table.byte_level else _Window(table)
        self._stops = _Stops(stop) if stop else None

    @property
    def stopped(self) -> bool:
        return self.matched is not None

    @property
    def matched(self) -> str | None:
        return self._stops.matched if self._stops is not None else None

    def feed(self, token: int) -> list[Piece]:
        """The pieces that became certain with this id."""
        if token in self._hidden:
            return []
        if token in self._control:
            before, text = self._decoder.control(token)
            pieces = [Piece(before)] if before else []
            if text:
                pieces.append(Piece(text, True))
        else:
            text = self._decoder.feed(token)
            pieces = [Piece(text)] if text else []
        return pieces if self._stops is None else self._stops.feed(pieces)

    def flush(self) -> list[Piece]:
        """The rest, now that no more ids come; bytes that never became a character are U+FFFD."""
        text = self._decoder.flush()
        pieces = [Piece(text)] if text else []
        return pieces if self._stops is None else self._stops.feed(pieces) + self._stops.flush()


class _Bytes:
    """Byte-level: the bytes of the ids, joined, are UTF-8."""

    def __init__(self, table: TokenTable) -> None:
        self._bytes_of = table.bytes_of
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def feed(self, token: int) -> str:
        return self._utf8.decode(self._bytes_of(token))

    def control(self, token: int) -> tuple[str, str]:
        return self.flush(), self._bytes_of(token).decode("utf-8", "replace")

    def flush(self) -> str:
        text = self._utf8.decode(b"", final=True)
        self._utf8.reset()
        return text


class _Window:
    """Any decoder: what an id adds is the difference it makes to the text of the ids just before it.

    The window begins with the ids that gave the last text, so that what the decoder does only at the beginning
    (dropping the first space) does not happen again. Fallback bytes are joined here, because one bad byte would make
    the tokenizer's decoder drop the good characters beside it.
    """

    def __init__(self, table: TokenTable) -> None:
        self._table = table
        self._ids: list[int] = []
        self._shown = 0  # how many ids of the window have given their text
        self._length = 0  # the length of that text
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def feed(self, token: int) -> str:
        byte = self._table.fallback_byte(token)
        if byte is not None:
            before = self._rest()
            self._restart([token])
            return before + self._utf8.decode(byte)
        if not self._table.text(token):
            return ""
        before = self._bytes_end()
        self._ids.append(token)
        text = self._decode()
        if text.endswith(REPLACEMENT) and len(self._ids) - self._shown < MAX_CHARACTER:
            return before  # the next id may complete a character
        return before + self._show(text)

    def control(self, token: int) -> tuple[str, str]:
        before = self.flush()
        self._restart([token])
        return before, self._table.text(token)

    def flush(self) -> str:
        return self._bytes_end() + self._rest()

    def _bytes_end(self) -> str:
        text = self._utf8.decode(b"", final=True)
        self._utf8.reset()
        return text

    def _rest(self) -> str:
        return self._show(self._decode()) if len(self._ids) > self._shown else ""

    def _decode(self) -> str:
        return self._table.tokenizer.decode(self._ids, skip_special_tokens=False)

    def _show(self, text: str) -> str:
        new = text[self._length :]
        if new:
            self._restart(self._ids[self._shown :])
        else:
            self._shown = len(self._ids)
        return new

    def _restart(self, ids: list[int]) -> None:
        self._ids = ids
        self._shown = len(ids)
        self._length = len(self._decode())


class _Stops:
    """Looks for the stop strings in a stream of pieces (Knuth-Morris-Pratt, one state per string)."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = [(stop, _borders(stop)) for stop in stops]
        self._states = [0] * len(self._stops)
        self._queue: deque[Piece] = deque()  # pieces that may hold the beginning of a stop string
        self._queued = 0  # characters in it
        self.matched: str | None = None

    def feed(self, pieces: list[Piece]) -> list[Piece]:
        out: list[Piece] = []
        if self.matched is not None:
            return out
        for piece in pieces:
            before = self._queued
            self._queue.append(piece)
            self._queued += len(piece.text)
            found = self._search(piece.text)
            if found is not None:
                end, self.matched = found
                return out + self._cut(before + end - len(self.matched))
            out += self._release(max(self._states))
        return out

    def flush(self) -> list[Piece]:
        return [] if self.matched is not None else self._release(0)

    def _search(self, text: str) -> tuple[int, str] | None:
        """Advance every state over ``text``; the first stop string that ends in it, and where it ends."""
        ends: list[tuple[int, int, str]] = []
        for i, (stop, borders) in enumerate(self._stops):
            state = self._states[i]
            if not state and stop[0] not in text:
                continue
            for at, letter in enumerate(text):
                while state and stop[state] != letter:
                    state = borders[state - 1]
                state += stop[state] == letter
                if state == len(stop):
                    ends.append((at + 1, -len(stop), stop))
                    break
            self._states[i] = state
        if not ends:
            return None
        end, _, stop = min(ends)
        return end, stop

    def _release(self, keep: int) -> list[Piece]:
        """The pieces that lie wholly before the last ``keep`` characters, and the text before them."""
        out: list[Piece] = []
        while self._queue and self._queued > keep:
            piece = self._queue.popleft()
            spare = self._queued - keep
            if len(piece.text) > spare:
                if piece.control:  # never in halves
                    self._queue.appendleft(piece)
                    break
                self._queue.appendleft(Piece(piece.text[spare:]))
                piece = Piece(piece.text[:spare])
            self._queued -= len(piece.text)
            out.append(piece)
        return out

    def _cut(self, keep: int) -> list[Piece]:
        """The first ``keep`` characters; the rest is dropped."""
        out: list[Piece] = []
        for piece in self._queue:
            if keep <= 0:
                break
            whole = len(piece.text) <= keep
            out.append(piece if whole else Piece(piece.text[:keep]))
            keep -= len(piece.text)
        self._queue.clear()
        return out


def _borders(text: str) -> list[int]:
    """For every beginning of ``text``: the length of its longest proper beginning that is also its end."""
    borders = [0] * len(text)
    length = 0
    for at in range(1, len(text)):
        while length and text[at] != text[length]:
            length = borders[length - 1]
        length += text[at] == text[length]
        borders[at] = length
    return borders


def _decoder_steps(tokenizer: Tokenizer) -> list[str]:
    """The names of the decoder's steps."""
    decoder: Any = tokenizer.decoder
    if decoder is None:
        return []
    state = json.loads(decoder.__getstate__())
    return [str(step.get("type")) for step in state.get("decoders", [state])]


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's letter for each byte (openai/gpt-2, ``encoder.py``): itself where it prints, else one from U+0100 on."""
    shown = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in shown]
    return {chr(byte): byte for byte in shown} | {chr(0x100 + n): byte for n, byte in enumerate(hidden)}
