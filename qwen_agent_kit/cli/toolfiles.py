"""``--tool``: from ``module:function`` or ``file.py:function`` to the function."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import traceback
from pathlib import Path
from types import ModuleType
from typing import Any

from qwen_agent_kit.errors import UsageError

__all__ = ["load_tool"]

_FORMS = "write --tool file.py:function, --tool module:function or the name of a plugin's tool"


def load_tool(name: str) -> Any:
    """The function that ``name`` means, or ``name`` itself where it is that of a plugin's tool.

    Raises:
        UsageError: Where the file, the module or the function is not there, or reading it failed.
    """
    place, colon, attribute = name.rpartition(":")
    if not colon:
        if name.endswith(".py"):
            raise UsageError(f"`--tool` is {name!r}; which function of it?", hint=_FORMS)
        return name
    if not place or not attribute:
        raise UsageError(f"`--tool` is {name!r}; allowed: file.py:function, module:function or a name", hint=_FORMS)
    value: Any = _file(Path(place)) if place.endswith(".py") else _module(place)
    for part in attribute.split("."):
        value = getattr(value, part, None)
    if value is None:
        raise UsageError(f"`{place}` has no {attribute!r}", hint=_FORMS)
    if not callable(value):
        raise UsageError(f"`{name}` is a {type(value).__name__}; allowed: a function")
    return value


def _module(name: str) -> ModuleType:
    if "" not in sys.path:
        sys.path.insert(0, "")  # as `python -m` does, so that a module of the current directory is found
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise UsageError(f"cannot import `{name}`: there is no module `{error.name}`", hint=_FORMS) from error
    except (Exception, SystemExit) as error:  # the user's module may raise anything; it is theirs to mend
        raise _failed(name, error) from error


def _file(path: Path) -> ModuleType:
    if not path.is_file():
        raise UsageError(f"there is no file `{path}`", hint=_FORMS)
    name = f"qak_tool_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path.resolve())
    assert spec is not None, "a path that ends in .py has a loader"
    assert spec.loader is not None, "a path that ends in .py has a loader"
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    sys.path.append(str(path.resolve().parent))  # for the modules beside it
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # the user's file may raise anything; it is theirs to mend
        raise _failed(str(path), error) from error
    return module


def _failed(place: str, error: BaseException) -> UsageError:
    """Where it broke, by line; what the exception says may hold anything, so only its type is told."""
    if isinstance(error, SyntaxError):
        where = f"{error.filename}, line {error.lineno}: {error.msg}"
    else:
        frames = traceback.extract_tb(error.__traceback__)
        where = f"{type(error).__name__} in {frames[-1].filename}, line {frames[-1].lineno}"
    return UsageError(f"`{place}` failed while it was read: {where}", hint="run it with python to see more")
