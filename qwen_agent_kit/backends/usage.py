"""What a step costs."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any

__all__ = ["Usage"]


@dataclass(frozen=True, slots=True)
class Usage:
    """What a step, or the sum of several, cost. None is "this engine cannot know", never 0.

    Args:
        prompt_tokens: Positions in the prompt.
        cached_tokens: Of those, positions whose KV was already there.
        computed_tokens: Positions that went through the layers, prompt and generated together.
        generated_tokens: Ids appended after the prompt, forced ones included.
        forced_tokens: Of those, ids that the grammar left no choice about.
        first_token_ms: From submission to the first id.
        prefill_ms: In the layers, for the prompt.
        decode_ms: From the first drawn id to the last; ids forced before it need no prefill.
        tool_ms: Wall time of the tools of the step.
        prefix_break: Why and where reuse of the prefix ended, None where it did not break.
        drafted_tokens: Ids that were computed on trial; the rejected ones are not in ``computed_tokens``.
        accepted_tokens: Of those, ids that came true.
        ahead_tokens: Of ``cached_tokens``, positions that were computed before the request came, while nobody asked.
    """

    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    computed_tokens: int | None = None
    generated_tokens: int | None = None
    forced_tokens: int | None = None
    first_token_ms: float | None = None
    prefill_ms: float | None = None
    decode_ms: float | None = None
    tool_ms: float | None = None
    prefix_break: str | None = None
    drafted_tokens: int | None = None
    accepted_tokens: int | None = None
    ahead_tokens: int | None = None

    def __add__(self, other: Usage) -> Usage:
        def add(name: str) -> Any:
            a, b = getattr(self, name), getattr(other, name)
            if name == "prefix_break":
                return b if b is not None else a
            if name == "first_token_ms":
                return a if a is not None else b
            return b if a is None else a if b is None else a + b

        return Usage(**{f.name: add(f.name) for f in fields(self)})

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)
