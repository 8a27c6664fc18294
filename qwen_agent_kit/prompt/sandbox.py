"""The environment in which chat templates run: what transformers gives them, inside a budget.

The names, filters and whitespace rules are those of ``transformers.utils.chat_template_utils`` (5.23): an immutable
sandbox, ``trim_blocks`` and ``lstrip_blocks``, loop controls, ``tojson`` without HTML escapes, ``raise_exception``,
``strftime_now`` and the ``generation`` tag. This module imports jinja2 at its top, and is imported when a template is
compiled.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from functools import wraps
from types import BuiltinMethodType, GeneratorType, MethodType
from typing import Any

import jinja2
import jinja2.ext
import jinja2.runtime
from jinja2 import nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

from qwen_agent_kit.errors import PromptError, SecurityError
from qwen_agent_kit.prompt.budget import Budget

__all__ = ["Sandbox"]

# What chat templates have no use for and what makes large values out of small ones.
_DENIED = {str: frozenset({"encode", "maketrans", "translate"})}
_NO_ATTRIBUTES = (int, float, complex, bytes)
_COMPARING_TESTS = ("==", "eq", "equalto", "!=", "ne", "<", "lt", "lessthan", "<=", "le", ">", "gt", ">=", "ge", "in")


class Sandbox(ImmutableSandboxedEnvironment):
    """An environment whose templates render only inside ``spending(budget)``.

    Args:
        mark: Applied to every literal text of a template before it is compiled.
    """

    intercepted_binops = frozenset({"+", "-", "*", "/", "//", "%", "**"})

    def __init__(self, mark: Callable[[str], str]) -> None:
        # Not optimised: jinja2 would compute constant expressions while it compiles, outside the budget.
        super().__init__(
            trim_blocks=True, lstrip_blocks=True, optimized=False, extensions=[_Generation, jinja2.ext.loopcontrols]
        )
        self._mark = mark
        self._local = threading.local()
        del self.globals["lipsum"]
        self.globals.update(
            raise_exception=_raise_exception,
            strftime_now=_strftime_now,
            dict=_Dict(),
            namespace=_Namespace,
        )
        self.filters["tojson"] = _tojson
        for name, function in list(self.filters.items()):
            self.filters[name] = self._bounded_filter(name, function)
        for name in _COMPARING_TESTS:
            self.tests[name] = self._bounded_test(name)

    @contextmanager
    def spending(self, budget: Budget) -> Iterator[None]:
        """Templates that this thread renders meanwhile spend ``budget``."""
        before = getattr(self._local, "budget", None)
        self._local.budget = budget
        try:
            yield
        finally:
            self._local.budget = before

    @property
    def budget(self) -> Budget:
        """The budget of this thread's rendering."""
        found: Budget = self._local.budget
        return found

    # --- what compiled templates call ----------------------------------------------------------------------------

    @property
    def pulse(self) -> bool:
        """Ticks; stands at the head of each loop body and before each comparison."""
        self._local.budget.tick()
        return True

    def weighed(self, value: Any) -> Any:
        """A literal list, tuple or dict with computed members."""
        return self.budget.made(value)

    def sliced(self, value: Any, start: Any, stop: Any, step: Any) -> Any:
        """``value[start:stop:step]``; parts of an input need no weighing, a new text is accounted for."""
        found = value[start:stop:step]
        self.budget.tick(len(found) if isinstance(found, str | list | tuple) else 1)
        return found

    def joined(self, *values: Any) -> str:
        """``a ~ b``, which jinja2 compiles to a join that cannot be overridden."""
        self.budget.text(sum(map(self.budget.printed, values)))
        return str(self.budget.made(jinja2.runtime.str_join(values)))

    def concat(self, parts: Any) -> str:  # for `"".join`, jinja2's
        """What a macro, a block or a ``set`` block wrote, as one text."""
        read = list(parts)
        self.budget.text(sum(map(len, read)))
        return str(self.budget.made("".join(read)))

    def call(self, context: Any, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        budget = self.budget
        budget.tick()
        owner = obj.__self__ if isinstance(obj, BuiltinMethodType | MethodType) else None
        if owner is self:  # one of the hooks above, which account for themselves
            return obj(*args)
        if isinstance(owner, str):
            args = budget.method(obj.__name__, owner, args, kwargs)
        elif len(args) + len(kwargs) > 1 or isinstance(obj, type):
            given = (*args, *kwargs.values())
            budget.weigh(*(x for x in given if isinstance(x, list | tuple | dict)))
            if isinstance(obj, type) and any(isinstance(x, GeneratorType) for x in given):
                raise SecurityError("the model's chat template kept a generator", code="template_limit")
        return budget.made(super().call(context, obj, *args, **kwargs))

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        self.budget.operator(operator, left, right)
        return self.budget.made(super().call_binop(context, operator, left, right))

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        wrapped = super().wrap_str_format(value)
        if wrapped is None:
            return None
        fill = wrapped

        def bounded(*args: Any, **kwargs: Any) -> str:
            self.budget.format(str(value.__self__), [args, kwargs], "{")
            return fill(*args, **kwargs)

        return bounded

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        if isinstance(obj, _NO_ATTRIBUTES) or (isinstance(obj, str) and attr in _DENIED[str]):
            return False
        return super().is_safe_attribute(obj, attr, value)

    def unsafe_undefined(self, obj: Any, attribute: str) -> jinja2.Undefined:
        if attribute.startswith("_"):  # jinja2 would print nothing; a template that asks for this is hostile
            raise SecurityError(f"the model's chat template asked for {attribute[:80]!r} of a {type(obj).__name__}")
        return super().unsafe_undefined(obj, attribute)

    # --- how templates are compiled ------------------------------------------------------------------------------

    def _generate(self, source: nodes.Template, *args: Any, **kwargs: Any) -> str:
        tree = _Instrument(self._mark).visit(source)
        tree.set_environment(self)
        return super()._generate(tree, *args, **kwargs)

    def _bounded_filter(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        first = 1 if hasattr(function, "jinja_pass_arg") else 0

        @wraps(function)
        def bounded(*args: Any, **kwargs: Any) -> Any:
            budget = self.budget
            budget.tick()
            if len(args) <= first:  # the value itself is missing: let the filter say so
                return function(*args, **kwargs)
            value = budget.filter(name, args[first], args[first + 1 :], kwargs)
            return budget.made(function(*args[:first], value, *args[first + 1 :], **kwargs))

        return bounded

    def _bounded_test(self, name: str) -> Callable[..., Any]:
        function: Any = self.tests[name]

        @wraps(function)
        def bounded(*args: Any) -> Any:
            self.budget.tick()
            return function(*args)

        return bounded


class _Instrument(NodeTransformer):
    """Marks a template's literals and puts the budget's hooks where jinja2 has none."""

    def __init__(self, mark: Callable[[str], str]) -> None:
        self._mark = mark

    def visit_TemplateData(self, node: nodes.TemplateData) -> nodes.Node:  # noqa: N802  # jinja2 names visitors so
        node.data = self._mark(node.data)
        return node

    def visit_Const(self, node: nodes.Const) -> nodes.Node:  # noqa: N802  # jinja2 names visitors so
        if isinstance(node.value, str):
            node.value = self._mark(node.value)
        return node

    def visit_For(self, node: nodes.For) -> nodes.Node:  # noqa: N802  # jinja2 names visitors so
        self.generic_visit(node)
        node.body.insert(0, nodes.ExprStmt(_pulse(node), lineno=node.lineno))
        if node.test is not None:
            node.test = nodes.And(_pulse(node), node.test, lineno=node.lineno)
        return node

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:  # noqa: N802  # jinja2 names visitors so
        self.generic_visit(node)
        cheap = len(node.ops) == 1 and isinstance(node.ops[0].expr, nodes.Const)  # against one literal
        return node if cheap else nodes.And(_pulse(node), node, lineno=node.lineno)

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802  # jinja2 names visitors so
        self.generic_visit(node)
        return _through("joined", node, list(node.nodes))

    def visit_List(self, node: nodes.List) -> nodes.Node:  # noqa: N802  # jinja2 names visitors so
        self.generic_visit(node)
        return node if _constant(node.items) else _through("weighed", node, [node])

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Node:  # noqa: N802  # jinja2 names visitors so
        self.generic_visit(node)
        return node if node.ctx != "load" or _constant(node.items) else _through("weighed", node, [node])

    def visit_Dict(self, node: nodes.Dict) -> nodes.Node:  # noqa: N802  # jinja2 names visitors so
        self.generic_visit(node)
        return node if _constant([pair.value for pair in node.items]) else _through("weighed", node, [node])

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:  # noqa: N802  # jinja2 names visitors so
        self.generic_visit(node)
        if not isinstance(node.arg, nodes.Slice):
            return node
        bounds = (node.arg.start, node.arg.stop, node.arg.step)
        none = nodes.Const(None, lineno=node.lineno)
        return _through("sliced", node, [node.node, *(none if bound is None else bound for bound in bounds)])


def _pulse(node: nodes.Node) -> nodes.Expr:
    return nodes.EnvironmentAttribute("pulse", lineno=node.lineno)


def _through(name: str, node: nodes.Node, args: list[nodes.Expr]) -> nodes.Node:
    function = nodes.EnvironmentAttribute(name, lineno=node.lineno)
    return nodes.Call(function, args, [], None, None, lineno=node.lineno)


def _constant(items: list[nodes.Expr]) -> bool:
    return all(isinstance(item, nodes.Const) for item in items)


class _Generation(jinja2.ext.Extension):
    """``{% generation %}``: which text an assistant wrote. Training uses it; rendering passes the text through."""

    tags = {"generation"}  # noqa: RUF012  # jinja2 declares it as a plain set

    def parse(self, parser: Any) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_passed"), [], [], body).set_lineno(line)

    def _passed(self, caller: Callable[[], str]) -> str:
        return caller()


class _Dict:
    """``dict(...)`` without the attributes of the type."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)


class _Namespace(Namespace):
    """``namespace(...)``: opaque to printing, closed to private names and to generators."""

    def __init__(*args: Any, **kwargs: Any) -> None:  # so that `namespace(self=...)` works, as in jinja2
        self, rest = args[0], args[1:]
        values: Mapping[str, Any] = dict(*rest, **kwargs)
        Namespace.__init__(self)
        for name, value in values.items():
            self[name] = value

    def __setitem__(self, name: str, value: Any) -> None:
        if name.startswith("_"):
            raise jinja2.exceptions.SecurityError(f"the name {name!r} of a namespace is private")
        if isinstance(value, GeneratorType):
            raise SecurityError("the model's chat template kept a generator", code="template_limit")
        super().__setitem__(name, value)

    def __repr__(self) -> str:
        return "<Namespace>"


def _raise_exception(message: Any) -> None:
    raise PromptError(
        f"the model's chat template refuses the messages: {str(message)[:300]}",
        hint="change the messages as the template asks",
        code="template_refusal",
    )


def _strftime_now(format: str) -> str:  # noqa: A002  # the name that templates may pass it by
    return datetime.now().strftime(format)


def _tojson(
    x: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
