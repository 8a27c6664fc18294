"""What a token costs on its way from the engine to the caller: detokenize, parse, events; no model in it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field

from qwen_agent_kit import dialects
from qwen_agent_kit.agent import Agent
from qwen_agent_kit.backends import Capabilities, ChatRequest, Delta, Finish
from qwen_agent_kit.bench.rows import Row
from qwen_agent_kit.engine.detokenize import Detokenizer, TokenTable
from qwen_agent_kit.parse import StreamParser

__all__ = ["token_cost"]

TEXT = "The quick brown fox jumps over the lazy dog, and then\nit rests. "


@dataclass
class _Replay:
    """A ``ChatModel`` that decodes and parses ids that it was given."""

    table: TokenTable
    ids: list[int]
    name: str = "replay"
    caps: Capabilities = field(default_factory=Capabilities)

    def stream(self, request: ChatRequest) -> Iterator[Delta]:
        del request
        detokenizer = Detokenizer(self.table, stop=("<|never|>",))
        parser = StreamParser(dialects.get("hermes"), new_id=lambda: "call")
        for token in self.ids:
            for piece in detokenizer.feed(token):
                yield from parser.feed(piece)
        for piece in detokenizer.flush():
            yield from parser.feed(piece)
        deltas, _ = parser.finish("stop")
        yield from deltas
        yield Finish("stop")

    def check(self, request: ChatRequest) -> None:
        """There are no schemas."""

    def close(self) -> None:
        """Nothing is held."""


def token_cost(count: int = 5_000, repeats: int = 5) -> list[Row]:
    """Microseconds per one-token piece, from the id to the caller's event; the best of ``repeats``."""
    table, ids = _byte_tokens(count)
    agent = Agent(_Replay(table, ids))
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        said = "".join(getattr(event, "text", "") for event in agent.stream("go"))
        best = min(best, time.perf_counter() - start)
        assert len(said.encode()) == count, "every id came out as its byte"
    return [Row(f"a token of {count}, detokenize + parse + events", best / count * 1e6, "us/token", 10.0)]


def _byte_tokens(count: int) -> tuple[TokenTable, list[int]]:
    """A byte-level vocabulary of the 256 bytes, and ``count`` ids of plain text in it."""
    import tokenizers

    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    model = tokenizers.models.BPE({char: i for i, char in enumerate(alphabet)}, [])
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    text = (TEXT * (count // len(TEXT) + 1))[:count]
    return TokenTable(tokenizer), tokenizer.encode(text).ids
