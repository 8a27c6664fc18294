"""What the engine knows of text: the tokenizer's table, its control ids, the grammar compiler; made on first use."""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING

from qwen_agent_kit.engine.detokenize import Detokenizer, TokenTable

if TYPE_CHECKING:
    from qwen_agent_kit.engine.grammar import CompiledGrammar, GrammarCompiler
    from qwen_agent_kit.models import LoadedModel

__all__ = ["Texts"]


class Texts:
    """Shared by the requests of one engine; thread-safe.

    Args:
        loaded: Whose tokenizer is read, when it is first needed.
    """

    def __init__(self, loaded: LoadedModel) -> None:
        self._loaded = loaded
        self._lock = threading.Lock()
        self._known: tuple[TokenTable, frozenset[int]] | None = None
        self._compiler: GrammarCompiler | None = None
        self._blanks: dict[int, bool] = {}

    def detokenizer(self, stop: Sequence[str] = ()) -> Detokenizer:
        """A fresh one: added tokens are control pieces, the ends of turn have no text."""
        table, control = self._table()
        return Detokenizer(table, stop=stop, control_ids=control, hidden_ids=frozenset(self._loaded.eos))

    def prepare(self) -> None:
        """Read the tokenizer now, in the caller's time rather than between two steps of others."""
        self._table()

    def blank(self, token: int) -> bool:
        """Whether an id is nothing but white space."""
        found = self._blanks.get(token)
        if found is None:
            table, control = self._table()
            found = self._blanks[token] = token not in control and table.tokenizer.decode([token]).isspace()
        return found

    def grammar(self, text: str) -> CompiledGrammar:
        """A grammar text, compiled.

        Raises:
            SchemaError: Where it is refused.
        """
        from qwen_agent_kit.engine.grammar import GrammarCompiler

        with self._lock:
            if self._compiler is None:
                loaded = self._loaded
                self._compiler = GrammarCompiler(loaded.tokenizer_json, loaded.config.vocab_size, loaded.eos)
        return self._compiler.compile(text)

    def _table(self) -> tuple[TokenTable, frozenset[int]]:
        with self._lock:
            if self._known is None:
                from tokenizers import Tokenizer

                table = TokenTable(Tokenizer.from_str(self._loaded.tokenizer_json))
                added = json.loads(self._loaded.tokenizer_json).get("added_tokens", ())
                self._known = table, frozenset(int(token["id"]) for token in added)
            return self._known
