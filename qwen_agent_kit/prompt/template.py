"""A model's chat template: compiled once in the sandbox, rendered inside a budget of time and text.

Control tokens are told apart by origin. Every added-token string in the *literals* of the template becomes a mark, a
random nonce and one character that says which token, before the template is compiled. Nothing that a user, a tool or a
file says can hold the nonce (the renderer checks), so whatever way content is split, joined or wrapped by the template,
a mark in the rendered text is the template's and everything else is plain text. Content itself is not touched.
"""

from __future__ import annotations

import random
import re
import time
from collections.abc import Mapping, Sequence
from typing import Any

from qwen_agent_kit.errors import ModelError, PromptError, QakError, SecurityError
from qwen_agent_kit.prompt.budget import MAX_TEXT, Budget

__all__ = ["ChatTemplate", "Marks"]

SECONDS = 2.0
MAX_SOURCE = 2**17  # characters; half of what compiles within 2 to 3 s, several times the largest official one
_PRIVATE = 0xE000  # the private use area of the basic plane, U+E000 to U+F8FF: no case, no space, no normal form
_PRIVATE_SIZE = 6400
_NONCE = 4  # characters: 1 in 10**15 to guess


class Marks:
    """What stands for each control token in a template's literals and in what it renders.

    Args:
        control: The text of each control token and its id.

    Raises:
        ModelError: For more control tokens than there are marks.
    """

    def __init__(self, control: Mapping[str, int]) -> None:
        if len(control) > _PRIVATE_SIZE:
            raise ModelError(f"the tokenizer has {len(control)} added tokens; allowed: {_PRIVATE_SIZE}")
        drawn = random.SystemRandom().sample(range(_PRIVATE, _PRIVATE + _PRIVATE_SIZE), _NONCE)
        # All different, so that no text before a nonce can shift where it is found.
        self.nonce = "".join(map(chr, drawn))
        self._tokens = list(control)
        self._ids = list(control.values())
        self._index = {token: chr(_PRIVATE + i) for i, token in enumerate(self._tokens)}
        longest_first = sorted(self._tokens, key=len, reverse=True)
        self._literal = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")
        self.pattern = re.compile(f"{self.nonce}(.)", re.DOTALL)

    def of(self, token: str) -> str:
        """The mark of a control token."""
        return self.nonce + self._index[token]

    def put(self, literal: str) -> str:
        """A literal of the template with its control tokens as marks."""
        return self._literal.sub(lambda found: self.of(found[0]), literal)

    def id(self, found: re.Match[str]) -> int:
        """The id of the control token that ``pattern`` found."""
        return self._ids[ord(found[1]) - _PRIVATE]

    def token(self, found: re.Match[str]) -> str:
        """The text of the control token that ``pattern`` found."""
        return self._tokens[ord(found[1]) - _PRIVATE]

    def take(self, text: str) -> str:
        """Rendered text with its marks as the tokens' own text."""
        return self.pattern.sub(self.token, text)

    def spelled(self, text: str) -> str | None:
        """A control token that rendered text spells out without a mark."""
        found = self._literal.search(text)
        return found[0] if found else None


class ChatTemplate:
    """A compiled template.

    Args:
        source: Jinja2, as ``chat_template`` of a tokenizer holds it.
        marks: Put into its literals.
        special: ``bos_token`` and the like, visible to the template as transformers passes them; texts only.

    Raises:
        ModelError: Where the source does not compile.
        SecurityError: Where it is too large or too deep to compile.
    """

    def __init__(self, source: str, marks: Marks, special: Mapping[str, Any] | None = None) -> None:
        from qwen_agent_kit.prompt.sandbox import Sandbox

        if len(source) > MAX_SOURCE:
            raise SecurityError(f"the model's chat template has {len(source)} characters; allowed: {MAX_SOURCE}")
        self._special = {name: marks.put(value) for name, value in (special or {}).items() if isinstance(value, str)}
        self._sandbox = Sandbox(marks.put)
        try:
            self._template = self._sandbox.from_string(source)
        except (RecursionError, MemoryError) as error:
            raise SecurityError(f"the model's chat template is nested too deeply to compile ({error})") from None
        except Exception as error:  # foreign source: jinja2 and Python each have their own errors
            raise ModelError(
                f"the model's chat template does not compile: {type(error).__name__}: {str(error)[:200]}",
                hint="use another copy of the model's tokenizer_config.json",
            ) from error

    def render(
        self, messages: Sequence[Mapping[str, Any]], *, budget: Budget | None = None, **variables: Any
    ) -> tuple[str, float]:
        """The text with marks, and how many milliseconds the template took.

        Args:
            messages: In the form that templates of transformers take. Plain JSON data only.
            budget: What it may spend; a fresh one of 2 s when left out.
            variables: ``tools``, ``add_generation_prompt``, ``enable_thinking`` and the like.

        Raises:
            PromptError: What the template says against the messages, or where it cannot carry them.
            SecurityError: Where it tries to leave the sandbox, or spends its budget.
        """
        start = time.perf_counter()
        given = {"tools": None, "documents": None, "add_generation_prompt": False, **self._special, **variables}
        try:
            with self._sandbox.spending(budget or Budget(SECONDS)):
                text = self._collect(self._template.generate(messages=messages, **given))
        except QakError:
            raise
        except (RecursionError, MemoryError, OverflowError) as error:
            raise SecurityError(
                f"the model's chat template went out of bounds ({type(error).__name__})", code="template_limit"
            ) from None
        except Exception as error:  # foreign code may raise anything; each becomes a typed error
            raise _explained(error) from error
        return text, (time.perf_counter() - start) * 1e3

    def _collect(self, parts: Any) -> str:
        budget, found, length = self._sandbox.budget, [], 0
        for part in parts:
            budget.tick()
            found.append(part)
            length += len(part)
            if length > MAX_TEXT:
                raise SecurityError(
                    f"the model's chat template wrote more than {MAX_TEXT} characters", code="template_limit"
                )
        return "".join(found)


def _explained(error: Exception) -> QakError:
    """The typed error for what a template raised; no content of messages is in its text."""
    from jinja2 import exceptions

    if isinstance(error, exceptions.SecurityError):
        return SecurityError(f"the model's chat template tried to leave its sandbox: {str(error)[:200]}")
    told = isinstance(error, exceptions.UndefinedError | TypeError)
    detail = f"{type(error).__name__}: {str(error)[:200]}" if told else type(error).__name__
    return PromptError(
        f"the model's chat template cannot carry these messages ({detail})",
        hint="check the roles and their order, or use a model whose template has what the messages hold",
    )
