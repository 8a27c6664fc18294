"""Every error that the kit raises on purpose.

::

    QakError                     base; ``code`` for machines, ``hint`` with the cure
    ├── UsageError               the caller asked for something that cannot be (also a ValueError; exit code 2)
    │   ├── SchemaError          a JSON schema or tool signature that is refused; ``pointer`` says where
    │   ├── MediaError           an image, clip or document that is refused
    │   └── PromptError          messages that the model's template cannot carry
    ├── SecurityError            a template, file or address that tried to leave its bounds
    ├── PluginError              a plugin that is missing, broken or in conflict
    ├── ModelError               a model that is missing or whose files are refused
    ├── PlanError                no placement fits this machine
    ├── EngineError              the engine failed while it worked (the caller did nothing wrong)
    ├── FetchError               a transfer failed
    ├── StoreError               the conversation store cannot read or write
    └── OutputError              the model did not produce the output that was asked for

A mistake of the model is no error: it goes back to the model as a tool result.
"""

from __future__ import annotations

from typing import Any

__all__ = [
    "EngineError",
    "FetchError",
    "MediaError",
    "ModelError",
    "OutputError",
    "PlanError",
    "PluginError",
    "PromptError",
    "QakError",
    "SchemaError",
    "SecurityError",
    "StoreError",
    "UsageError",
]


class QakError(Exception):
    """Base of all errors of the kit.

    Args:
        message: What was asked, what was found (``!r``) and what is allowed.
        hint: The cure, one line, without the word "hint".
        code: A stable machine-readable name; the class's own when left out.
    """

    code = "error"

    def __init__(self, message: str, *, hint: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        if code is not None:
            self.code = code

    def __str__(self) -> str:
        return f"{self.message}\nhint: {self.hint}" if self.hint else self.message


class UsageError(QakError, ValueError):
    """The caller asked for something that cannot be."""

    code = "invalid_request"


class SchemaError(UsageError):
    """A JSON schema, or the signature it came from, is refused; ``pointer`` is a JSON pointer (RFC 6901) into it."""

    code = "invalid_schema"

    def __init__(self, message: str, *, pointer: str = "", hint: str | None = None, code: str | None = None) -> None:
        super().__init__(message, hint=hint, code=code)
        self.pointer = pointer


class MediaError(UsageError):
    """An image, clip or document is refused."""

    code = "invalid_media"


class PromptError(UsageError):
    """The messages cannot be rendered for this model."""

    code = "invalid_prompt"


class SecurityError(QakError):
    """A template, file or address tried to leave its bounds."""

    code = "security"


class PluginError(QakError):
    """A plugin is missing, broken or in conflict with another."""

    code = "plugin"


class ModelError(QakError):
    """A model is missing, or its files are refused."""

    code = "model"


class PlanError(QakError):
    """No placement fits this machine."""

    code = "plan"


class EngineError(QakError):
    """The engine failed while it worked."""

    code = "engine"


class FetchError(QakError):
    """A transfer failed."""

    code = "fetch"


class StoreError(QakError):
    """The conversation store cannot read or write."""

    code = "store"


class OutputError(QakError):
    """The model did not produce the output that was asked for; ``result`` is the ``RunResult`` of the run so far."""

    code = "output"
    result: Any = None
