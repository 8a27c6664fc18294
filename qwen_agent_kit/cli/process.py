"""Whether this process is a command's own, rather than a program that calls one."""

from __future__ import annotations

__all__ = ["begin", "begun"]

_BEGUN: list[bool] = []


def begin() -> None:
    """To be called where ``qak`` begins."""
    _BEGUN.append(True)


def begun() -> bool:
    """Whether it began there."""
    return bool(_BEGUN)
