"""Text to ids as the chat template and the tokenizer make them, for the rows of both trainings."""

from __future__ import annotations

import random

from tokenizers import Tokenizer

from training.tokenizer import SYSTEM

IGNORED = -100  # the label of a place that is no answer


class Writer:
    """Encodes as the chat template does: the text between two control tokens is one piece."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self._known: dict[str, list[int]] = {}

    def ids(self, text: str) -> list[int]:
        if text not in self._known:
            if len(self._known) > 10_000:
                self._known.clear()
            self._known[text] = self.tokenizer.encode(text, add_special_tokens=False).ids
        return self._known[text]

    @property
    def plain(self) -> list[int]:
        """The template's own system message, and the start of the user's."""
        return self.ids(f"<|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>user\n")

    def prefix(self, rng: random.Random) -> list[int]:
        """The same, or now and then with another system message."""
        if rng.random() < 0.9:
            return self.plain
        other = rng.choice(("Answer in one word.", "You see pictures.", "Be brief."))
        return self.ids(f"<|im_start|>system\n{other}<|im_end|>\n<|im_start|>user\n")
