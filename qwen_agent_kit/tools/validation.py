"""A mistake in a call's arguments, said shortly to the model: which argument, what was found, what is allowed.

The exception's own text names no value, so that arguments never reach a log through it; ``feedback`` does, for the
model that wrote them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from qwen_agent_kit.errors import QakError

__all__ = ["ArgumentsError", "Problem", "kind_of", "problems_of_pydantic", "shorten"]

MAX_PROBLEMS = 4
MAX_ALLOWED = 200
MAX_FOUND = 60


@dataclass(frozen=True, slots=True)
class Problem:
    """One mistake: ``path`` such as ``items[2].name``, what was ``found`` there, what is ``allowed``, and the ``kind``.

    ``kind`` is ``wrong``, ``missing`` or ``extra``.
    """

    path: str
    allowed: str
    found: Any = None
    kind: str = "wrong"

    def line(self, *, reveal: bool) -> str:
        """One line; with ``reveal`` it shows the value that was found, else only its type."""
        where = f"`{self.path}`" if self.path else "the value"
        if self.kind == "missing":
            return f"{where}: missing"
        if self.kind == "extra":
            return f"{where}: not a known name; allowed: {self.allowed}"
        found = found_text(self.found) if reveal else kind_of(self.found)
        return f"{where}: found {found}; allowed: {self.allowed}"


class ArgumentsError(QakError):
    """The arguments of a call do not fit the tool. It is the model's mistake: ``feedback`` is for the model to read."""

    code = "invalid_arguments"

    def __init__(self, tool: str, problems: Sequence[Problem]) -> None:
        count = len(problems)
        super().__init__(f"{count} mistake{'s' if count != 1 else ''} in the arguments for tool `{tool}`")
        self.tool = tool
        self.problems = tuple(problems)

    @property
    def feedback(self) -> str:
        """A few lines for the model."""
        return listing(f"invalid arguments for `{self.tool}`", self.problems, reveal=True)


def listing(head: str, problems: Sequence[Problem], *, reveal: bool) -> str:
    """``head`` and one line for each of the first problems."""
    lines = [f"- {problem.line(reveal=reveal)}" for problem in problems[:MAX_PROBLEMS]]
    if len(problems) > MAX_PROBLEMS:
        lines.append(f"- and {len(problems) - MAX_PROBLEMS} more")
    return "\n".join([f"{head}:", *lines])


def shorten(text: str, limit: int) -> str:
    """``text`` on one line, at most ``limit`` characters."""
    text = " ".join(text[: 4 * limit].split())
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def kind_of(value: Any) -> str:
    """The JSON type of a value, with its article."""
    if value is None:
        return "null"
    for kinds, name in _KINDS:
        if isinstance(value, kinds):
            return name
    return "something else"


_KINDS: tuple[tuple[Any, str], ...] = (
    (bool, "a boolean"),
    (int, "an integer"),
    (float, "a number"),
    (str, "a string"),
    (Mapping, "an object"),
    (list | tuple, "an array"),
)


def found_text(value: Any) -> str:
    """A value from JSON, shown in few characters."""
    if isinstance(value, str):
        return shorten(json.dumps(value[:MAX_FOUND], ensure_ascii=False), MAX_FOUND) + ("…" * (len(value) > MAX_FOUND))
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, int) and value.bit_length() > 200:
        return f"an integer of {value.bit_length()} bits"
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, Mapping):
        keys = ", ".join(shorten(str(key), 20) for key in islice(value, 5))
        return f"an object with {keys}{', …' * (len(value) > 5)}" if value else "an empty object"
    if isinstance(value, list | tuple):
        return f"an array of {len(value)}"
    return kind_of(value)


def merged(problems: Iterable[Problem]) -> list[Problem]:
    """One problem per place: a union fails once for each member, and the model wants them on one line."""
    places: dict[tuple[str, str], Problem] = {}
    for problem in problems:
        known = places.get((problem.path, problem.kind))
        if known is None:
            places[problem.path, problem.kind] = problem
        elif problem.allowed not in known.allowed.split(" or "):
            allowed = shorten(f"{known.allowed} or {problem.allowed}", MAX_ALLOWED)
            places[problem.path, problem.kind] = Problem(known.path, allowed, known.found, known.kind)
    return list(places.values())


# --- from pydantic ------------------------------------------------------------------------------------------------


_PLAIN = {
    "int": "an integer",
    "float": "a number",
    "decimal": "a number",
    "string": "a string",
    "bool": "true or false",
    "list": "an array",
    "tuple": "an array",
    "set": "an array",
    "frozen": "an array",
    "dict": "an object",
    "model": "an object",
    "dataclass": "an object",
    "mapping": "an object",
    "none": "null",
}
"""The first word of a pydantic error type that is about the type as such, to what a model understands."""
_ABOUT_TYPE = (
    "_type",
    "_parsing",
    "_from_float",
    "_attributes_type",
    "_required",
    "_unicode",
    "_exact_type",
    "_set_type",
)
_FOREIGN = ("is_instance_of", "is_subclass_of", "callable_type", "needs_python_object")


def problems_of_pydantic(error: Any, data: Any, names: Iterable[str] = ()) -> list[Problem]:
    """The mistakes that a ``pydantic.ValidationError`` over ``data`` lists.

    Args:
        error: The error.
        data: What was validated, JSON data: pydantic's locations hold names of union members and validators, and only
            what can be followed inside the data is shown.
        names: The names that are allowed at the top, said where one is not.
    """
    allowed = ", ".join(names)
    problems = []
    for item in error.errors(include_url=False):
        kind, where = item["type"], item["loc"]
        path = path_of(where, data, last_is_new=kind == "missing")
        if kind == "missing":
            problems.append(Problem(path, "", kind="missing"))
        elif kind in ("extra_forbidden", "unexpected_keyword_argument"):
            known = (allowed or "no arguments at all") if len(where) == 1 else "the names in the schema"
            problems.append(Problem(path, shorten(known, MAX_ALLOWED), kind="extra"))
        else:
            problems.append(Problem(path, _allowed(kind, item), item["input"]))
    return merged(problems)


def _allowed(kind: str, item: Mapping[str, Any]) -> str:
    plain = _PLAIN.get(kind.partition("_")[0])
    if plain and kind.endswith(_ABOUT_TYPE):
        return plain
    if kind in _FOREIGN:
        return "a value of another kind"
    message = str(item["msg"])
    for prefix in ("Input should be ", "Value error, ", "Assertion failed, "):
        message = message.removeprefix(prefix)
    class_name = (item.get("ctx") or {}).get("class_name")
    if class_name:
        message = message.replace(str(class_name), "the object")
    return shorten(message, MAX_ALLOWED)


def path_of(where: Sequence[Any], data: Any, *, last_is_new: bool = False) -> str:
    path, here = "", data
    for index, step in enumerate(where):
        if isinstance(here, Mapping) and step in here:
            path, here = f"{path}.{shorten(str(step), MAX_FOUND)}", here[step]
        elif isinstance(here, list | tuple) and isinstance(step, int) and 0 <= step < len(here):
            path, here = f"{path}[{step}]", here[step]
        elif last_is_new and index == len(where) - 1:
            path = f"{path}.{step}"
    return path.removeprefix(".")
