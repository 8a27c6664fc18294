"""A function's parameters, read without pydantic: what can be refused at once is refused at once."""

from __future__ import annotations

import functools
import inspect
import re
import sys
import typing
from collections.abc import Callable, Mapping
from types import FrameType, SimpleNamespace
from typing import TYPE_CHECKING, Any

from qwen_agent_kit.errors import SchemaError
from qwen_agent_kit.tools.annotations import members
from qwen_agent_kit.tools.context import ToolContext

if TYPE_CHECKING:
    from qwen_agent_kit.tools.contract import SignatureContract

__all__ = ["Signature", "plain_function"]

_CONTEXT_TEXT = re.compile(r"\bToolContext\b")


class Signature:
    """The parameters of a tool.

    Args:
        function: The function, bound method, partial or callable object.
        tool: The tool's name, for messages.

    Attributes:
        parameters: Those that the model fills in, in order.
        everything: These and the ``ToolContext``.
        context: The name of the ``ToolContext`` parameter, or None.
        unbound: Whether the function is a method that still lacks its object.

    Raises:
        SchemaError: For parameters without a type or without a fixed shape, and for generators.
    """

    def __init__(self, function: Callable[..., Any], tool: str) -> None:
        self.tool = tool
        self._target = plain_function(function)
        if inspect.isgeneratorfunction(self._target) or inspect.isasyncgenfunction(self._target):
            raise SchemaError(f"tool `{tool}` is a generator", hint="return a list")
        try:
            found = list(inspect.signature(function).parameters.values())
        except (TypeError, ValueError) as error:
            raise SchemaError(
                f"tool `{tool}`: {function!r} has no signature to read", hint="wrap it in a `def`"
            ) from error
        self.unbound = bool(found) and found[0].name in ("self", "cls") and found[0].annotation is found[0].empty
        if self.unbound:
            found = found[1:]
        for parameter in found:
            self._check(parameter)
        self._locals = _enclosing_locals(self._target)
        self._hints: dict[str, Any] = {}
        for parameter in found:
            try:
                self._hints[parameter.name] = self._resolve(parameter)
            except (NameError, AttributeError, TypeError, SyntaxError):
                continue  # defined further down in the module, or a mistake: `hints` says so once it is needed
        self.everything = tuple(found)
        self.context = self._context_of(found)
        self.parameters = tuple(parameter for parameter in found if parameter.name != self.context)
        if len(self._hints) == len(found):
            self._locals = {}

    @functools.cached_property
    def contract(self) -> SignatureContract:
        """What the parameters' types and the docstring state; shared by all tools of this signature."""
        from qwen_agent_kit.tools.contract import SignatureContract

        return SignatureContract(self)

    @property
    def doc(self) -> str | None:
        """The docstring, indented as it is in the source."""
        return self._target.__doc__ if hasattr(self._target, "__globals__") else None

    def hints(self) -> Mapping[str, Any]:
        """Name to annotation, with nothing left as a string.

        Raises:
            SchemaError: Where an annotation names something that does not exist.
        """
        for parameter in self.parameters:
            if parameter.name in self._hints:
                continue
            try:
                self._hints[parameter.name] = self._resolve(parameter)
            except (NameError, AttributeError, TypeError, SyntaxError) as error:
                raise SchemaError(
                    f"tool `{self.tool}`: the type {parameter.annotation!r} of parameter `{parameter.name}` cannot be "
                    f"resolved ({error})",
                    pointer=f"/properties/{parameter.name}",
                    hint="import the type outside `if TYPE_CHECKING`, or define it at module level",
                ) from error
        return self._hints

    def _resolve(self, parameter: inspect.Parameter) -> Any:
        holder = SimpleNamespace(__annotations__={parameter.name: parameter.annotation})
        scope = getattr(self._target, "__globals__", {})
        return typing.get_type_hints(holder, scope, self._locals or None, include_extras=True)[parameter.name]

    def _check(self, parameter: inspect.Parameter) -> None:
        name, kind = parameter.name, parameter.kind
        if kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            stars, shape = ("*", "list") if kind == parameter.VAR_POSITIONAL else ("**", "dict")
            raise SchemaError(
                f"tool `{self.tool}`: parameter `{stars}{name}` has no fixed shape",
                pointer=f"/properties/{name}",
                hint=f"take one {shape}, such as `{name}: {'list[str]' if shape == 'list' else 'dict[str, str]'}`",
            )
        if parameter.annotation is parameter.empty:
            raise SchemaError(
                f"tool `{self.tool}`: parameter `{name}` has no type",
                pointer=f"/properties/{name}",
                hint=f"annotate it, for example `{name}: str`",
            )

    def _context_of(self, found: list[inspect.Parameter]) -> str | None:
        names = [p.name for p in found if _is_context(self._hints.get(p.name, p.annotation))]
        if len(names) > 1:
            raise SchemaError(f"tool `{self.tool}` takes ToolContext twice: {', '.join(names)}", hint="take it once")
        return names[0] if names else None


def _is_context(hint: Any) -> bool:
    if isinstance(hint, str):
        return _CONTEXT_TEXT.search(hint) is not None
    return any(isinstance(member, type) and issubclass(member, ToolContext) for member in members(hint))


def plain_function(function: Any) -> Any:
    """The function that holds the code, the annotations and the docstring."""
    while True:
        if isinstance(function, functools.partial):
            function = function.func
        elif inspect.ismethod(function):
            function = function.__func__
        elif hasattr(function, "__wrapped__"):
            function = function.__wrapped__
        elif not inspect.isroutine(function) and not isinstance(function, type) and callable(function):
            function = type(function).__call__
        else:
            return function


def _enclosing_locals(function: Any) -> dict[str, Any]:
    """The local names of the function that ``function`` was defined in, where that is still running."""
    outer, nested, _ = getattr(function, "__qualname__", "").rpartition(".<locals>.")
    if not nested:
        return {}
    file = function.__code__.co_filename if hasattr(function, "__code__") else None
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_qualname == outer and frame.f_code.co_filename == file:
            return dict(frame.f_locals)
        frame = frame.f_back
    return {}
