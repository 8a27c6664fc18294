"""How much work one rendering of a chat template may be.

A template is foreign code. The sandbox stops it from reaching Python; the budget stops it from running for ever or
filling the memory. Every loop turn, call, filter and operator ticks a budget, and what could blow up inside one C call
(``'a' * 10**9``, ``|center(10**9)``, a list of itself a few dozen times) is weighed before it runs. So nothing needs a
signal, a thread or a process, and a bound holds in whichever thread the template is rendered.
"""

from __future__ import annotations

import re
import time
from types import GeneratorType
from typing import Any, NamedTuple

from qwen_agent_kit.errors import SecurityError

__all__ = ["Budget", "MAX_NODES", "MAX_TEXT", "MAX_WORK", "Weight"]

MAX_TEXT = 2**24  # characters of any one string, and of the rendered prompt: about 4 million tokens
MAX_WORK = 2**27  # characters made, plus turns taken, over the whole rendering
MAX_NODES = 2**20  # values in a container, counted as often as they are met on the way down
MAX_BITS = 2**16  # of a whole number that takes part in arithmetic
MAX_SLOW_TEXT = 2**16  # characters given to filters that loop in Python
MAX_COUNT = 10_000  # a width, a length or a precision

_CONTAINERS: tuple[type, ...] = (
    list,
    tuple,
    dict,
    set,
    frozenset,
    type({}.keys()),
    type({}.values()),
    type({}.items()),
)
_WIDE_FORMAT = re.compile(r"\d{5}|\*|\{[^{}]*:[^{}]*\{")
_SLOW = frozenset({"pprint", "striptags", "title", "urlencode", "urlize", "wordcount", "wordwrap", "xmlattr"})
_SPLITTING = frozenset({"batch", "groupby", "list", "slice", "sort", "unique"})
_ANY_NUMBER = frozenset({"d", "default", "int", "float", "map", "reject", "rejectattr", "select", "selectattr", "sum"})


class Weight(NamedTuple):
    """A value unfolded: how many values, characters and levels."""

    nodes: int
    chars: int
    depth: int

    @property
    def printed(self) -> int:
        """At most this many characters as ``str`` or JSON without indentation (an escaped character takes 10)."""
        return 10 * self.chars + 32 * self.nodes


class Budget:
    """The rest of the work that one rendering may do.

    Args:
        seconds: Wall time from now on.
        work: Characters made plus turns taken.

    Raises:
        SecurityError: From any method, once the budget is spent or a single step would be too large.
    """

    __slots__ = ("_deadline", "_left", "_seconds")

    def __init__(self, seconds: float, work: int = MAX_WORK) -> None:
        self._seconds = seconds
        self._deadline = time.monotonic() + seconds
        self._left = work

    def tick(self, cost: int = 1) -> None:
        """Take ``cost`` off, and look at the clock."""
        self._left -= cost
        if self._left < 0:
            raise _refused(f"made more than {MAX_WORK} characters")
        if time.monotonic() > self._deadline:
            raise _refused(f"ran for more than {self._seconds:g} s")

    def text(self, length: int) -> None:
        """A string of ``length`` characters is about to be made."""
        if length > MAX_TEXT:
            raise _refused(f"made a text of {length} characters; allowed: {MAX_TEXT}")

    def weigh(self, *values: Any) -> Weight:
        """Unfold values, level by level, as printing or comparing them would."""
        nodes = chars = depth = 0
        level: list[Any] = list(values)
        while level:
            depth += 1
            nodes += len(level)
            if nodes > MAX_NODES:
                raise _refused(f"built a value of more than {MAX_NODES} parts")
            below: list[Any] = []
            for value in level:
                if isinstance(value, str):
                    chars += len(value)
                elif isinstance(value, dict):
                    below += [*value, *value.values()]
                elif isinstance(value, _CONTAINERS):
                    members: Any = value
                    below.extend(members)
                    if len(below) > MAX_NODES:
                        raise _refused(f"built a value of more than {MAX_NODES} parts")
                elif depth > 1 and isinstance(value, GeneratorType):
                    raise _refused("kept a generator inside a container")
            level = below
        self.text(chars)
        self.tick(nodes)
        return Weight(nodes, chars, depth)

    def made(self, value: Any) -> Any:
        """Account for a value that an operator, a call or a filter gave, and pass it on."""
        if isinstance(value, str):
            self.text(len(value))
            self.tick(len(value))
        elif isinstance(value, _CONTAINERS):
            self.weigh(value)
        return value

    def printed(self, value: Any) -> int:
        """At most how many characters ``str(value)`` has."""
        if isinstance(value, str):
            return len(value)
        return self.weigh(value).printed if isinstance(value, _CONTAINERS) else 64

    # --- what may blow up inside one step ------------------------------------------------------------------------

    def operator(self, sign: str, left: Any, right: Any) -> None:
        """``left sign right`` is about to be computed."""
        if isinstance(left, str) and isinstance(right, str) and sign == "+":
            self.text(len(left) + len(right))
        elif isinstance(left, int) and isinstance(right, int):
            self._arithmetic(sign, left, right)
        elif sign == "*":
            for sequence, times in ((left, right), (right, left)):
                if isinstance(sequence, str | list | tuple | bytes) and isinstance(times, int):
                    self.text(len(sequence) * max(times, 0) * (1 if isinstance(sequence, str) else 16))
        elif sign == "%" and isinstance(left, str | bytes):
            self.format(str(left), right, "%")

    def _arithmetic(self, sign: str, left: int, right: int) -> None:
        bits = max(left.bit_length(), right.bit_length())
        if sign == "**" and abs(left) > 1:
            bits = left.bit_length() * abs(right)
        if bits > MAX_BITS:
            raise _refused(f"computed a number of more than {MAX_BITS} bits")

    def format(self, pattern: str, values: Any, sign: str) -> None:
        """A ``%`` or ``str.format`` pattern is about to be filled; each ``sign`` may print all of the values."""
        if _WIDE_FORMAT.search(pattern):
            raise _refused("used a format of unbounded width")
        self.text(len(pattern) + pattern.count(sign) * (MAX_COUNT + self.printed([values])))

    def method(self, name: str, owner: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
        """The method ``name`` of a string is about to be called; returns the arguments to call it with."""
        options = (*args, *kwargs.values())
        numbers = [x for x in options if isinstance(x, int)]
        if name in ("center", "ljust", "rjust", "zfill"):
            self.text(max(numbers, default=0))
        elif name == "expandtabs":
            self.text(len(owner) * (1 + max(numbers, default=8)))
        elif name == "replace":
            self.replacing(owner, options)
        elif name in ("split", "rsplit", "splitlines"):
            between = next((x for x in options if isinstance(x, str)), "")
            self._parts(owner.count(between) if between else len(owner) // 2)
        elif name == "join" and args:
            return (self.joining(owner, args[0]), *args[1:])
        return args

    def replacing(self, text: str, options: tuple[Any, ...]) -> None:
        """``text.replace(*options)`` is about to run; options given by name may come in any order."""
        longest = max(map(self.printed, options), default=0)
        times = max((text.count(x) for x in options if isinstance(x, str)), default=0)
        if len(text) + times * longest > MAX_TEXT and len(options) > 1:  # the coarse bound; now the true one
            old, new = str(options[0]), str(options[1])
            self.text(len(text) + max(text.count(old) * len(new), text.count(new) * len(old)))

    def joining(self, between: str, items: Any) -> list[Any]:
        """``items`` are about to be joined; returns them as a list."""
        read: list[Any] = []
        total = 0
        for item in items:
            self.tick()
            read.append(item)
            total += len(between) + self.printed(item)
            self.text(total)
        return read

    def _parts(self, count: int) -> None:
        if count > MAX_NODES:
            raise _refused(f"split a text into more than {MAX_NODES} parts")

    def filter(self, name: str, value: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The filter ``name`` is about to run; returns the value to run it on."""
        options = (*args, *kwargs.values())
        if name not in _ANY_NUMBER and any(isinstance(x, int | float) and abs(x) > MAX_COUNT for x in options):
            raise _refused(f"used the filter `{name}` with a number above {MAX_COUNT}")
        if name in _SLOW:
            self._slow(name, value, options)
        elif name in _SPLITTING and isinstance(value, str):
            self._parts(len(value))
        elif name == "join":
            return self.joining(max((x for x in options if isinstance(x, str)), key=len, default=""), value)
        elif name == "replace":
            self.replacing(value if isinstance(value, str) else str(value), options)
        elif name == "indent":
            step = max((len(x) if isinstance(x, str) else int(x) for x in options), default=4)
            self.text(len(str(value)) + (str(value).count("\n") + 1) * step)
        elif name == "format":
            self.format(str(value), options, "%")
        elif name == "sum" and any(isinstance(x, _CONTAINERS) for x in options):
            raise _refused("used the filter `sum` on sequences")
        elif name == "tojson":
            self._json(value, options)
        return value

    def _slow(self, name: str, value: Any, options: tuple[Any, ...]) -> None:
        if self.printed(value) > MAX_SLOW_TEXT or any(isinstance(x, str) and len(x) > 64 for x in options):
            raise _refused(f"used the filter `{name}` on more than {MAX_SLOW_TEXT} characters")

    def _json(self, value: Any, options: tuple[Any, ...]) -> None:
        plain = [x for x in options if x is not None and not isinstance(x, bool)]
        if plain:
            weight = self.weigh(value)
            widest = max(x if isinstance(x, int) else self.weigh(x).chars for x in plain)
            self.text(weight.chars + weight.nodes * weight.depth * max(widest, 1))


def _refused(what: str) -> SecurityError:
    return SecurityError(
        f"the model's chat template {what}",
        hint="shorten the messages, or use a model whose template you trust",
        code="template_limit",
    )
