"""A chat template is foreign code: it cannot leave the sandbox, run for ever or fill the memory."""

from __future__ import annotations

import threading
import time
import tracemalloc
from collections.abc import Callable
from typing import Any

import pytest
from chat_templates import LIST_CONTENT

from qwen_agent_kit.errors import ModelError, PromptError, QakError, SecurityError
from qwen_agent_kit.prompt import PromptRenderer
from qwen_agent_kit.prompt.budget import Budget
from qwen_agent_kit.prompt.template import ChatTemplate, Marks

ESCAPES = {
    "subclasses": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "globals of a function": "{{ raise_exception.__globals__ }}",
    "globals of cycler": "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
    "globals of joiner": "{{ joiner['__init__']['__globals__'] }}",
    "namespace init": "{{ namespace.__init__.__globals__ }}",
    "attr filter": "{{ '' | attr('__class__') | attr('__mro__') }}",
    "self": "{{ self._TemplateReference__context.environment.loader.searchpath }}",
    "str.format": "{{ '{0.__class__.__mro__}'.format('x') }}",
    "str.format_map": "{{ '{a.__class__.__init__.__globals__}'.format_map({'a': messages}) }}",
    "format through attr": "{{ ('{0.__class__.__base__}' | attr('format'))('x') }}",
    "map of attributes": "{{ [''] | map(attribute='__class__') | list | string | length + [''][0].__class__ }}",
    "context of a macro": "{% macro m() %}{% endmacro %}{{ m._func.__globals__ }}",
    "config through loop": "{% for i in [1] %}{{ loop.__class__.__init__.__globals__ }}{% endfor %}",
    "mutating a list": "{{ messages.append(1) }}",
    "mutating a dict": "{{ messages[0].update({'role': 'system'}) }}",
    "generator frame": "{{ (messages | map('string')).gi_frame.f_globals }}",
    "namespace dunder": "{% set n = namespace() %}{% set n.__class__ = 1 %}",
    "codecs": "{{ 'x'.encode('rot13') }}",
    "environment": "{{ messages.__init__.__self__ }}",
    "undefined": "{{ nothing.__init__.__globals__ }}",
}

BOMBS = {
    "range": "{% for i in range(10**9) %}{% endfor %}",
    "a number too large": "{% for i in range(1000000000) %}x{% endfor %}",
    "nested loops": "{% for a in range(9999) %}{% for b in range(9999) %}{% for c in range(9999) %}{% endfor %}"
    "{% endfor %}{% endfor %}",
    "nested loops over one list": "{% set r = range(99999) | list %}{% for a in r %}{% for b in r %}{% endfor %}"
    "{% endfor %}",
    "loops with a test": "{% for a in range(99999) %}{% for b in range(99999) if b < 0 %}{% endfor %}{% endfor %}",
    "string times number": "{{ 'a' * 10**9 }}",
    "list times number": "{{ [0] * 10**9 }}",
    "power": "{{ 10 ** (10 ** 10) }}",
    "power of a sum": "{% set n = namespace(x=9) %}{% for i in range(99) %}{% set n.x = n.x ** 9 %}{% endfor %}",
    "doubling by +": "{% set n = namespace(x='ab') %}{% for i in range(99) %}{% set n.x = n.x + n.x %}{% endfor %}",
    "doubling by ~": "{% set n = namespace(x='ab') %}{% for i in range(99) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
    "doubling by blocks": "{% set n = namespace(x='ab') %}{% for i in range(99) %}{% set y %}{{ n.x }}{{ n.x }}"
    "{% endset %}{% set n.x = y %}{% endfor %}",
    "a list of itself": "{% set n = namespace(x=[1]) %}{% for i in range(99) %}{% set n.x = [n.x, n.x] %}{% endfor %}"
    "{{ n.x }}",
    "a dict of itself": "{% set n = namespace(x={}) %}{% for i in range(99) %}{% set n.x = {'a': n.x, 'b': n.x} %}"
    "{% endfor %}{{ n.x | tojson }}",
    "dict() of itself": "{% set n = namespace(x={}) %}{% for i in range(99) %}{% set n.x = dict(a=n.x, b=n.x) %}"
    "{% endfor %}{{ n.x == n.x }}",
    "varargs": "{% macro m() %}{{ varargs }}{% endmacro %}{% macro f(n, x) %}{{ f(n - 1, [x, x, x, x]) if n "
    "else m(x, x) }}{% endmacro %}{{ f(40, 'aaaa') }}",
    "recursion": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "branching recursion": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "width of %": "{{ '%1000000000d' % 1 }}",
    "star width of %": "{{ '%*d' % (1000000000, 1) }}",
    "width of format": "{{ '{:1000000000}'.format('a') }}",
    "nested width of format": "{{ '{:{}}'.format('a', 1000000000) }}",
    "format filter": "{{ '%999999999s' | format('a') }}",
    "center": "{{ 'a'.center(10**9) }}",
    "center by item": "{{ 'a'['rjust'](1000000000) }}",
    "center filter": "{{ 'a' | center(1000000000) }}",
    "zfill of bytes": "{{ 'a'.encode().zfill(1000000000) }}",
    "expandtabs": "{{ ('\t' * 9999).expandtabs(99999) }}",
    "indent": "{{ ('\n' * 99999) | indent(9999) }}",
    "indent by a string": "{{ ('\n' * 99999) | indent('x' * 99999) }}",
    "replace": "{{ ('a' * 99999).replace('a', 'b' * 99999) }}",
    "replace filter": "{{ ('a' * 99999) | replace('a', 'b' * 99999) }}",
    "join": "{{ ('b' * 99999).join(['a'] * 99999) }}",
    "join filter": "{{ (['b' * 99999] * 99999) | join }}",
    "join by a large string": "{{ range(99999) | join('b' * 99999) }}",
    "join by name": "{{ (range(99999) | list) | join(attribute=none, d='b' * 99999) }}",
    "sum of lists": "{{ ([[1] * 999] * 999) | sum(start=[]) }}",
    "tojson indent": "{{ ([[1] * 999] * 999) | tojson(indent=9999) }}",
    "tojson separators": "{{ ([1] * 99999) | tojson(separators=('x' * 99999, ':')) }}",
    "round": "{{ 3 | round(-1000000000) }}",
    "to_bytes": "{{ (1).to_bytes(1000000000, 'big') }}",
    "translate": "{{ ('a' * 99999).translate({97: 'b' * 99999}) }}",
    "wordwrap": "{{ ('a' * 9999999) | wordwrap(1) }}",
    "lipsum": "{{ lipsum(n=1000000) }}",
    "split": "{{ ('a' * 9999999).split('a') | length }}"
    "{% for i in range(99999) %}{{ ('a' * 9999999) | length }}{% endfor %}",
    "list of a string": "{{ ('a' * 9999999) | list | length }}",
    "slices kept": "{% set n = namespace(x=[]) %}{% set b = 'a' * 9999999 %}{% for i in range(9999) %}"
    "{% set n.x = n.x + [b[i:]] %}{% endfor %}",
    "long output": "{% set b = 'a' * 99999 %}{% for i in range(99999) %}{{ b }}{% endfor %}",
    "output of a macro": "{% macro m() %}{% set b = 'a' * 99999 %}{% for i in range(99999) %}{{ b }}{% endfor %}"
    "{% endmacro %}{% set x = m() %}",
    "map of a filter": "{% for i in range(9999) %}{{ range(99999) | map('string') | list | length }}{% endfor %}",
    "nested generators": "{% set n = namespace(g=range(9)) %}{% for i in range(99999) %}"
    "{% set n.g = n.g | map('string') %}{% endfor %}{{ n.g | list }}",
    "generators in a cycler": "{% set n = namespace(c=cycler(1)) %}{% for i in range(99999) %}"
    "{% set n.c = cycler(n.c | map('string')) %}{% endfor %}",
    "comparison": "{% set a = [1] * 999999 %}{% set b = [1] * 999999 %}" + "{{ a == b and a < b }}" * 4000,
    "comparison by a test": "{% set a = [1] * 999999 %}{% set b = [1] * 999999 %}" + "{{ a is eq(b) }}" * 6000,
    "import": "{% import 'os' as os %}{{ os }}",
    "include": "{% include '/etc/passwd' %}",
}  # fmt: skip

MESSAGES = [{"role": "user", "content": "hello"}]


def rendering(source: str) -> str:
    marks = Marks({"<|im_end|>": 1})
    return ChatTemplate(source, marks).render(MESSAGES, add_generation_prompt=True)[0]


@pytest.mark.parametrize("name", ESCAPES)
def test_f15_a_template_cannot_leave_the_sandbox(name: str) -> None:
    """Each way out of the sandbox is a `SecurityError`."""
    with pytest.raises(SecurityError):
        rendering(ESCAPES[name])


@pytest.mark.parametrize("name", BOMBS)
def test_f15_a_template_is_bounded(name: str) -> None:
    """Each bomb ends in a `SecurityError` within the limit of 2 s; what is not there at all is a `PromptError`."""
    kind = PromptError if name in ("import", "include", "lipsum") else SecurityError
    start = time.process_time()
    with pytest.raises(kind):
        rendering(BOMBS[name])
    assert time.process_time() - start < 6  # 2 s by the template's clock, besides compiling it; others do not count


def test_f15_memory_stays_bounded() -> None:
    """Of the bombs that grow values, none gets far: what Python allocates at most is under 300 MB."""
    for name in (
        "doubling by ~",
        "a list of itself",
        "join filter",
        "replace",
        "output of a macro",
        "string times number",
    ):
        tracemalloc.start()
        with pytest.raises(QakError):
            rendering(BOMBS[name])
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 300e6, name


def test_f15_a_bound_holds_in_any_thread() -> None:
    """No signal is needed: a bomb ends in a thread that is not the main one."""
    found: list[BaseException] = []

    def run() -> None:
        try:
            rendering(BOMBS["nested loops"])
        except SecurityError as error:
            found.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(20)
    assert not thread.is_alive()
    assert [error.code for error in found] == ["template_limit"]  # type: ignore[attr-defined]  # a QakError


def test_f15_a_renderer_refuses_a_hostile_template(open_renderer: Callable[..., PromptRenderer]) -> None:
    """A bomb in a checkpoint's template is refused when its model is opened, all questions to it counted together."""
    start = time.process_time()
    with pytest.raises(SecurityError):
        open_renderer(template=BOMBS["nested loops"])
    assert time.process_time() - start < 8


def test_a_template_that_does_not_compile_is_the_model_s_fault() -> None:
    """Broken jinja2 is a `ModelError`; so is one that nests deeper than Python can compile, or a `SecurityError`."""
    with pytest.raises(ModelError, match="does not compile"):
        rendering("{% for %}")
    with pytest.raises((SecurityError, ModelError)):
        rendering("{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}")
    with pytest.raises((SecurityError, ModelError)):
        rendering("{% if 1 %}" * 500 + "{% endif %}" * 500)
    with pytest.raises(SecurityError):
        rendering("x" * 2**19)


def test_the_template_s_own_words_reach_the_user() -> None:
    """`raise_exception` becomes a `PromptError` that says what the template said."""
    with pytest.raises(PromptError, match="Roles must alternate") as caught:
        rendering("{{ raise_exception('Roles must alternate') }}")
    assert caught.value.code == "template_refusal"


def test_what_templates_use_works_as_in_transformers() -> None:
    """Loop controls, tojson without HTML escapes, strftime_now, namespace, generation blocks, whitespace rules."""
    source = """
    {% for m in messages %}
        {% if loop.index > 1 %}{% break %}{% endif %}
        {%- generation %}{{ m | tojson }}{% endgeneration %}
    {% endfor %}
    {%- set ns = namespace(n=0) %}{% for i in range(3) %}{% set ns.n = ns.n + i %}{% endfor %}
    {{- ns.n ~ ('%s-%d' % ('a', 2)) ~ '{}'.format(1) ~ strftime_now('%Y')[:2] ~ dict(a=1)['a'] ~ 'ab' * 2 ~ 2 ** 3 }}
    {{- messages[::-1] | length ~ [1, 2][0:1] ~ ('a,b'.split(',') | join('-')) ~ {'<é>': 1} | tojson(indent=2) }}
    """
    from qwen_agent_kit import foreign

    foreign.transformers()
    from transformers.utils import chat_template_utils  # noqa: TID251  # its module is not an attribute of the package

    theirs, _ = chat_template_utils.render_jinja_template([MESSAGES], chat_template=source, add_generation_prompt=True)
    assert rendering(source) == theirs[0]


@pytest.mark.parametrize("work", [10, 1000])
def test_a_budget_ends(work: int) -> None:
    """A budget gives exactly the work it was made with."""
    budget = Budget(60, work)
    for _ in range(work):
        budget.tick()
    with pytest.raises(SecurityError, match="characters"):
        budget.tick()


def test_large_honest_conversations_fit(open_renderer: Callable[..., PromptRenderer]) -> None:
    """Two megabytes of text and two thousand turns render well inside the budget."""
    from qwen_agent_kit.messages import Message

    renderer: Any = open_renderer(template=LIST_CONTENT)
    long = [Message("user", "word " * 400_000)]
    many = [Message(("user", "assistant")[i % 2], f"turn {i}") for i in range(2000)]  # type: ignore[arg-type]  # both are roles
    assert len(renderer.render(long).ids) > 400_000
    assert len(renderer.render(many).ids) > 8000
