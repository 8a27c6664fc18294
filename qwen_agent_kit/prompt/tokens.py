"""The tokenizer as prompts need it: the ids of control tokens, and plain text that can never become one."""

from __future__ import annotations

import functools
import hashlib
from typing import Any

from qwen_agent_kit.errors import ModelError, PromptError, SecurityError

__all__ = ["PlainTokenizer"]


class PlainTokenizer:
    """A tokenizer without its added tokens.

    Args:
        tokenizer_json: The content of a ``tokenizer.json`` (Hugging Face tokenizers).

    Attributes:
        control: The text of each added token and its id. Added tokens of white space only are text, and not in it.
        fingerprint: Of the tokenizer; equal for equal files.

    Raises:
        ModelError: Where the content is no tokenizer.
    """

    def __init__(self, tokenizer_json: str | bytes) -> None:
        from tokenizers import Tokenizer

        data = tokenizer_json.encode("utf-8") if isinstance(tokenizer_json, str) else tokenizer_json
        try:
            full = Tokenizer.from_buffer(data)
        except Exception as error:  # tokenizers raises a bare Exception for every fault of a file
            raise ModelError(f"tokenizer.json cannot be read: {str(error)[:200]}") from error
        self.fingerprint = hashlib.sha256(data).hexdigest()[:32]
        added: dict[int, Any] = full.get_added_tokens_decoder()
        self.control: dict[str, int] = {t.content: i for i, t in sorted(added.items()) if t.content.strip()}
        self._forbidden = frozenset(self.control.values())
        # The copy shares the vocabulary; it lacks the added tokens, the template and the truncation.
        plain = Tokenizer(full.model)
        if full.normalizer is not None:
            plain.normalizer = full.normalizer
        if full.pre_tokenizer is not None:
            plain.pre_tokenizer = full.pre_tokenizer
        self._plain = plain

    def least(self, text: str) -> int:
        """No fewer ids than this come out of the text, told without encoding it; 0 where that cannot be known."""
        normalizer = type(self._plain.normalizer).__name__
        if self._longest == 0 or normalizer not in ("NoneType", "NFC"):
            return 0
        shrinks = 1 if normalizer == "NoneType" or text.isascii() else 4  # NFC makes one character of at most four
        return len(text) // (self._longest * shrinks)

    @functools.cached_property
    def _longest(self) -> int:
        """The most characters that one id stands for; 0 where an unknown word of any length may be one."""
        model = self._plain.model
        if type(model).__name__ != "BPE" or model.unk_token is not None:
            return 0
        return max(map(len, self._plain.get_vocab(with_added_tokens=False)), default=0)

    def encode(self, text: str) -> list[int]:
        """The ids of plain text, taken whole; none of them is a control token.

        Raises:
            PromptError: For text that is not valid Unicode.
            SecurityError: Where the vocabulary itself makes a control token out of plain text.
        """
        try:
            ids: list[int] = self._plain.encode(text, add_special_tokens=False).ids
        except TypeError as error:  # what tokenizers says to text that UTF-8 cannot hold
            raise PromptError(
                "a message holds half of a surrogate pair, which is no text", hint="decode it as UTF-8 first"
            ) from error
        if not self._forbidden.isdisjoint(ids):
            raise SecurityError("the tokenizer makes a control token out of plain text")
        return ids
