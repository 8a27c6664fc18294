"""The error tree is what its docstring draws, and errors carry their cure."""

from __future__ import annotations

import re

from qwen_agent_kit import errors


def test_the_docstring_draws_the_tree() -> None:
    """Each class stands in the docstring at its depth, and nothing else does."""
    drawn = re.findall(r"^\s*([│├└─ ]*)(\w+(?:Error))\s{2,}", errors.__doc__ or "", re.MULTILINE)
    depth = {name: len(lead) // 4 for lead, name in drawn}
    for name in errors.__all__:
        cls = getattr(errors, name)
        mro = [c.__name__ for c in cls.__mro__ if c.__name__ in errors.__all__]
        assert depth[name] == len(mro) - 1, name
    assert set(depth) == set(errors.__all__)


def test_an_error_shows_its_hint_apart() -> None:
    """The text is the message, then the hint on a line of its own."""
    error = errors.UsageError("`x` is 3; allowed: 1 or 2", hint="pass 1", code="c")
    assert str(error) == "`x` is 3; allowed: 1 or 2\nhint: pass 1"
    assert (error.code, error.hint, isinstance(error, ValueError)) == ("c", "pass 1", True)
    assert errors.SchemaError("no", pointer="/a").pointer == "/a"
