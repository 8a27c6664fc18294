"""``Tool``, the decorator that makes one, and the set of tools that a run is armed with."""

from __future__ import annotations

import functools
import inspect
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import MethodType
from typing import TYPE_CHECKING, Any, overload

from qwen_agent_kit.errors import SchemaError, UsageError
from qwen_agent_kit.tools.context import ToolContext
from qwen_agent_kit.tools.signature import Signature
from qwen_agent_kit.tools.validation import ArgumentsError, Problem, shorten

if TYPE_CHECKING:
    from qwen_agent_kit.tools.contract import GivenContract, SignatureContract

__all__ = ["Tool", "ToolSet", "as_tool", "tool"]

_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")


class Tool:
    """A function that a model may call. Immutable.

    The parts that need pydantic or the docstring parser (``description``, ``parameters``, ``validate``) are made on
    first use and kept.

    Args:
        name: 1 to 64 letters, digits, ``_``, ``.`` and ``-``.
        description: What it does, for the model; None takes the docstring's.
        parameters: A JSON schema of an object (draft 2020-12); None takes the function's type hints and docstring.
        function: What is called, with keyword arguments. Sync or async.
        side_effects: Whether it changes something outside, so that a run asks before it calls.
        timeout: Seconds, above 0; None for no limit of its own.
        isolate: Whether it runs in a process of its own, which can be killed (POSIX).
        memory: Bytes of address space for that process, None for no limit.

    Raises:
        SchemaError: For a name, signature or schema that is refused.
        UsageError: For any other field.
    """

    name: str
    function: Callable[..., Any]
    side_effects: bool
    timeout: float | None
    isolate: bool
    memory: int | None
    is_async: bool
    context_parameter: str | None
    signature: Signature | None

    def __init__(
        self,
        name: str,
        description: str | None = None,
        parameters: Mapping[str, Any] | None = None,
        function: Callable[..., Any] | None = None,
        *,
        side_effects: bool = False,
        timeout: float | None = None,
        isolate: bool = False,
        memory: int | None = None,
    ) -> None:
        _check_name(name)
        _check_settings(name, description, timeout, isolate, memory)
        if not callable(function):
            raise UsageError(f"tool `{name}`: `function` is {shorten(repr(function), 80)}; allowed: something callable")
        signature = Signature(function, name) if parameters is None else None
        given = None if parameters is None else _given(name, parameters)
        own = self.__dict__
        own.update(
            name=name, function=function, side_effects=bool(side_effects), timeout=timeout, isolate=bool(isolate)
        )
        own.update(memory=memory, signature=signature, _description=description, _given=given)
        own["is_async"] = _is_async(function)
        own["context_parameter"] = signature.context if signature is not None else _context_of(function, name)
        own["_positional"] = _positional_only(signature)
        if isolate:
            _check_isolated(self)

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"a Tool is immutable; `{name}` cannot be set (see `Tool.replace`)")

    def __repr__(self) -> str:
        return f"Tool({self.name!r})"

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the function as if it were not a tool."""
        return self.function(*args, **kwargs)

    def __get__(self, instance: Any, owner: Any = None) -> Tool:
        """A decorated method of an object is a tool whose function is bound to it; the schema is shared."""
        if instance is None:
            return self
        bound = object.__new__(Tool)
        bound.__dict__.update(self.__dict__, function=MethodType(self.function, instance), _bound=True)
        return bound

    @property
    def __wrapped__(self) -> Callable[..., Any]:
        return self.function

    @property
    def unbound(self) -> bool:
        """Whether it is a method that still lacks its object."""
        return self.signature is not None and self.signature.unbound and "_bound" not in self.__dict__

    @property
    def _contract(self) -> GivenContract | SignatureContract:
        given: GivenContract | None = self.__dict__["_given"]
        if given is not None:
            return given
        assert self.signature is not None, "a tool without given parameters has a signature"
        return self.signature.contract

    @property
    def description(self) -> str:
        """What it does; empty where nobody said."""
        given: str | None = self.__dict__["_description"]
        return given if given is not None else self._contract.documented.description

    @property
    def documented(self) -> Mapping[str, str]:
        """The parameters that the docstring describes, those that do not exist included."""
        return dict(self._contract.documented.parameters)

    @property
    def parameters(self) -> Mapping[str, Any]:
        """The JSON schema of the arguments: an object, closed where it comes from a signature."""
        return self._contract.parameters

    def definition(self) -> dict[str, Any]:
        """The tool in OpenAI's form."""
        function = {"name": self.name, "description": self.description, "parameters": self.parameters}
        return {"type": "function", "function": function}

    def validate(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments of a call as the function takes them.

        Raises:
            ArgumentsError: Where they do not fit; its ``feedback`` is for the model.
        """
        if not isinstance(arguments, Mapping):
            raise ArgumentsError(self.name, [Problem("", "an object with the arguments by name", arguments)])
        return self._contract.validate(arguments)

    def invoke(self, values: Mapping[str, Any], context: ToolContext | None = None) -> Any:
        """Call the function with validated values; a coroutine where it is async."""
        if self.context_parameter is not None:
            values = {**values, self.context_parameter: context or ToolContext()}
        positional = self.__dict__["_positional"]
        if not positional:
            return self.function(**values)
        named = dict(values)
        first = [named.pop(name) if name in named else default for name, default in positional]
        return self.function(*first, **named)

    def replace(self, **changes: Any) -> Tool:
        """The same tool with other fields."""
        own = self.__dict__
        fields: dict[str, Any] = {
            "name": self.name,
            "description": own["_description"],
            "parameters": self.parameters if self.signature is None else None,
            "function": self.function,
            "side_effects": self.side_effects,
            "timeout": self.timeout,
            "isolate": self.isolate,
            "memory": self.memory,
        }
        return Tool(**{**fields, **changes})


@overload
def tool(function: Callable[..., Any], /) -> Tool: ...


@overload
def tool(
    *,
    name: str | None = None,
    description: str | None = None,
    side_effects: bool = False,
    timeout: float | None = None,
    isolate: bool = False,
    memory: int | None = None,
) -> Callable[[Callable[..., Any]], Tool]: ...


def tool(
    function: Callable[..., Any] | None = None,
    /,
    *,
    name: str | None = None,
    description: str | None = None,
    side_effects: bool = False,
    timeout: float | None = None,
    isolate: bool = False,
    memory: int | None = None,
) -> Tool | Callable[[Callable[..., Any]], Tool]:
    """Make a tool of a function: ``@tool`` or ``@tool(side_effects=True, ...)``. The arguments are those of ``Tool``.

    Raises:
        SchemaError: For a signature that is refused: parameters without a type, ``*args``, ``**kwargs``, generators.
        UsageError: For settings that are refused.
    """

    def make(function: Callable[..., Any]) -> Tool:
        own_name = name if name is not None else _name_of(function)
        return Tool(
            own_name,
            description,
            None,
            function,
            side_effects=side_effects,
            timeout=timeout,
            isolate=isolate,
            memory=memory,
        )

    return make if function is None else make(function)


def as_tool(value: Any) -> Tool:
    """A tool as it is, or one made of a plain function.

    Raises:
        UsageError: For anything else, and for a method that lacks its object.
    """
    if isinstance(value, MethodType) and isinstance(value.__func__, Tool):
        value = value.__func__.__get__(value.__self__)
    made = value if isinstance(value, Tool) else None
    if made is None:
        if not callable(value) or isinstance(value, type):
            raise UsageError(
                f"a tool is {shorten(repr(value), 80)}; allowed: a function or a Tool",
                hint="decorate a function with @tool, or pass it as it is",
            )
        made = tool(value)
    if made.unbound:
        raise UsageError(f"tool `{made.name}` is a method without its object", hint=f"pass `obj.{made.name}`")
    return made


class ToolSet(Mapping[str, Tool]):
    """Tools by name, in the order they were given.

    Args:
        tools: Tools and plain functions.

    Raises:
        UsageError: Where two share a name; it names both.
    """

    def __init__(self, tools: Iterable[Any] = ()) -> None:
        self._tools: dict[str, Tool] = {}
        for value in tools:
            made = as_tool(value)
            known = self._tools.get(made.name)
            if known is not None:
                raise UsageError(
                    f"two tools are named {made.name!r}: {_place(known)} and {_place(made)}",
                    hint='give one another name: `@tool(name="...")`',
                )
            self._tools[made.name] = made

    def __getitem__(self, name: str) -> Tool:
        return self._tools[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tools)

    def __len__(self) -> int:
        return len(self._tools)

    def __repr__(self) -> str:
        return f"ToolSet({', '.join(self._tools)})"

    @functools.cached_property
    def _definitions(self) -> str:
        return json.dumps([tool.definition() for tool in self._tools.values()])

    def definitions(self) -> list[dict[str, Any]]:
        """The tools in OpenAI's form, a copy of the caller's own."""
        copy: list[dict[str, Any]] = json.loads(self._definitions)
        return copy

    def unknown(self, name: str) -> str:
        """What to tell a model that called ``name``, which is not here."""
        import difflib

        shown = shorten(repr(name[:200]), 80)
        if not self._tools:
            return f"there is no tool {shown}; there are no tools"
        close = difflib.get_close_matches(name[:64], self._tools, n=1)
        names = shorten(", ".join(self._tools), 500)
        guess = f"; did you mean `{close[0]}`?" if close else ""
        return f"there is no tool {shown}; tools: {names}{guess}"


# --- what is refused ----------------------------------------------------------------------------------------------


def _check_name(name: Any) -> None:
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise SchemaError(
            f"a tool is named {shorten(repr(name), 80)}; allowed: 1 to 64 letters, digits, `_`, `.` and `-`",
            hint='give it a name: `@tool(name="...")`',
            code="invalid_name",
        )


def _check_settings(name: str, description: Any, timeout: Any, isolate: bool, memory: Any) -> None:
    if description is not None and not isinstance(description, str):
        raise UsageError(f"tool `{name}`: `description` is {shorten(repr(description), 80)}; allowed: a string")
    if timeout is not None and (isinstance(timeout, bool) or not isinstance(timeout, int | float) or not timeout > 0):
        raise UsageError(f"tool `{name}`: `timeout` is {timeout!r}; allowed: seconds, above 0, or None")
    if memory is None:
        return
    if isinstance(memory, bool) or not isinstance(memory, int) or memory < 1 << 20:
        raise UsageError(f"tool `{name}`: `memory` is {memory!r}; allowed: bytes, from 1048576 on, or None")
    if not isolate:
        raise UsageError(f"tool `{name}`: `memory` bounds a process of its own", hint="add `isolate=True`")


def _check_isolated(made: Tool) -> None:
    from qwen_agent_kit.tools.isolation import address_of

    if made.context_parameter is not None:
        raise UsageError(
            f"tool `{made.name}` takes a ToolContext, which does not reach into a process of its own",
            hint="drop `isolate=True` or the ToolContext parameter",
        )
    if made.signature is None:
        raise UsageError(f"tool `{made.name}`: `isolate=True` needs a function whose type hints give the schema")
    address_of(made)


def _given(name: str, parameters: Mapping[str, Any]) -> GivenContract:
    from qwen_agent_kit.tools.contract import GivenContract

    return GivenContract(name, parameters)


def _is_async(function: Any) -> bool:
    while isinstance(function, functools.partial):
        function = function.func
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(getattr(function, "__call__", None))  # noqa: B004  # an object may have an async __call__


def _context_of(function: Callable[..., Any], name: str) -> str | None:
    """The ``ToolContext`` parameter of a function whose schema was given by hand; its other parameters are its own."""
    try:
        return Signature(function, name).context
    except SchemaError:
        return None  # it takes **kwargs or the like, which is fine where the schema does not come from it


def _positional_only(signature: Signature | None) -> tuple[tuple[str, Any], ...]:
    if signature is None:
        return ()
    found = [p for p in signature.everything if p.kind is p.POSITIONAL_ONLY]
    return tuple((p.name, p.default) for p in found)


def _name_of(function: Any) -> Any:
    while isinstance(function, functools.partial):
        function = function.func
    return getattr(function, "__name__", type(function).__name__)


def _place(made: Tool) -> str:
    function = inspect.unwrap(made.function)
    module, name = getattr(function, "__module__", "?"), getattr(function, "__qualname__", type(function).__name__)
    code = getattr(function, "__code__", None)
    return f"`{module}.{name}`" + (f" ({code.co_filename}:{code.co_firstlineno})" if code is not None else "")
