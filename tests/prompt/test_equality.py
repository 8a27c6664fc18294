"""Without sampled ids, rendering equals transformers' ``apply_chat_template`` token for token."""

from __future__ import annotations

import random
from typing import Any

import pytest

from qwen_agent_kit.messages import Message, Reasoning, Text, ToolCall, ToolResult
from qwen_agent_kit.prompt import PromptRenderer

EDGES = [
    "",
    "\n",
    "\n\n",
    " ",
    "  ",
    "}",
    "}\n",
    ".",
    ".\n",
    '"',
    "天気",
    "。",
    "👩\u200d👩\u200d👧",
    "e\u0301",
    "Å",
    "'s",
    "3",
    "\t",
]
WORDS = [
    "the answer is 42",
    "{'a': [1, 2]}",
    "def f(x):\n    return x",
    "日本語のテキスト",
    "it's   spaced  out",
    "a<b>c</b>",
    "naïve café",
    "x = 1;\r\ny = 2;",
    "# Title\n\n- item",
    "100%",
    "<tools>",
    "👍🏽 ok",
    "\u200bzero",
    "ﬁ ligature",
    "مرحبا",
    "http://a.b/c?d=e&f=<g>",
    "null",
    "\\n",
]
TOOLS = [
    ("get_weather", {"city": {"type": "string", "description": "Where? 'Oslo'"}, "days": {"type": "integer"}}),
    ("run", {"code": {"type": "string"}, "opts": {"type": "object", "properties": {"é": {"enum": ["ü", None, 1.5]}}}}),
    ("noop", {}),
]


def text(rng: random.Random) -> str:
    return rng.choice(EDGES) + " ".join(rng.choices(WORDS, k=rng.randrange(4))) + rng.choice(EDGES)


def value(rng: random.Random, depth: int = 2) -> Any:
    kinds = [lambda: text(rng), lambda: rng.randrange(-5, 10**6), lambda: rng.random(), lambda: None, lambda: True]
    if depth:
        kinds.append(lambda: [value(rng, depth - 1) for _ in range(rng.randrange(3))])
        kinds.append(lambda: {text(rng): value(rng, depth - 1) for _ in range(rng.randrange(3))})
    return rng.choice(kinds)()


def assistant(rng: random.Random, ids: Any, final: bool) -> tuple[Message, dict[str, Any]]:
    """A turn in our form and in the one that transformers takes; content is sometimes None there."""
    parts: list[Any] = []
    form: dict[str, Any] = {"role": "assistant"}
    if rng.random() < 0.4:
        reasoning = text(rng) or "hm"
        parts.append(Reasoning(reasoning))
        form["reasoning_content"] = reasoning
    content = text(rng) if final or rng.random() < 0.5 else ""
    if content:
        parts.append(Text(content))
    form["content"] = content
    if not final:
        calls = [(f"c{next(ids)}", rng.choice(TOOLS)[0], {text(rng): value(rng)}) for _ in range(rng.randrange(1, 4))]
        parts += [ToolCall(*call) for call in calls]
        form["tool_calls"] = [
            {"type": "function", "id": c[0], "function": {"name": c[1], "arguments": c[2]}} for c in calls
        ]
    return Message("assistant", tuple(parts)), form


def conversation(rng: random.Random) -> tuple[list[Message], list[dict[str, Any]]]:
    """A system turn perhaps, then questions, each with some steps of calls and results."""
    ours: list[Message] = []
    theirs: list[dict[str, Any]] = []
    ids = iter(range(10**9))

    def add(message: Message, form: dict[str, Any]) -> None:
        ours.append(message)
        theirs.append(form)

    if rng.random() < 0.5:
        said = text(rng)
        add(Message("system", said), {"role": "system", "content": said})
    for _ in range(rng.randrange(1, 4)):
        asked = text(rng)
        add(Message("user", asked), {"role": "user", "content": asked})
        for _ in range(rng.randrange(3)):
            turn = assistant(rng, ids, final=False)
            add(*turn)
            for call in turn[0].tool_calls:
                got = text(rng)
                result = ToolResult((Text(got),), call.id, call.name)
                add(Message("tool", (result,)), {"role": "tool", "name": call.name, "content": got})
        if rng.random() < 0.7:
            add(*assistant(rng, ids, final=True))
    return ours, theirs


def definitions(rng: random.Random) -> list[dict[str, Any]]:
    chosen = rng.sample(TOOLS, rng.randrange(len(TOOLS) + 1))
    return [
        {
            "type": "function",
            "function": {"name": n, "description": text(rng), "parameters": {"type": "object", "properties": p}},
        }
        for n, p in chosen
    ]


def compare(name: str, ours: PromptRenderer, theirs: Any, seeds: range) -> None:
    for seed in seeds:
        rng = random.Random(f"{name}-{seed}")
        messages, forms = conversation(rng)
        tools, thinking = definitions(rng), rng.choice([None, True, False, 64])
        prompted = rng.random() < 0.8
        options = {} if thinking is None else {"enable_thinking": bool(thinking)}
        want = theirs.apply_chat_template(
            forms, tools=tools or None, add_generation_prompt=prompted, return_dict=False, **options
        )
        got = ours.render(messages, tools=tools, thinking=thinking, add_generation_prompt=prompted)
        assert got.ids == want, f"seed {seed}: {theirs.decode(got.ids)!r} != {theirs.decode(want)!r}"
        assert got.prefix_break_hint is None
        assert got.starts_in_reasoning is False


@pytest.mark.parametrize("name", ["qwen25", "qwen3"])
def test_generated_conversations_equal_transformers(
    name: str, request: pytest.FixtureRequest, official: dict[str, Any]
) -> None:
    """200 conversations with tools, parallel calls, results, thinking and difficult edges are equal id for id."""
    compare(name, request.getfixturevalue(name), official[name], range(200))


@pytest.mark.full
@pytest.mark.parametrize("name", ["qwen25", "qwen3"])
def test_many_generated_conversations_equal_transformers(
    name: str, request: pytest.FixtureRequest, official: dict[str, Any]
) -> None:
    """The same for 2,500 other conversations per tokenizer."""
    compare(name, request.getfixturevalue(name), official[name], range(1000, 3500))


@pytest.mark.parametrize("name", ["qwen25", "qwen3"])
def test_a_call_without_content_equals_content_none(
    name: str, request: pytest.FixtureRequest, official: dict[str, Any]
) -> None:
    """A message without text renders as transformers renders ``content: None`` beside calls."""
    ours, theirs = request.getfixturevalue(name), official[name]
    call = {"type": "function", "function": {"name": "noop", "arguments": {}}}
    forms = [{"role": "user", "content": "q"}, {"role": "assistant", "content": None, "tool_calls": [call]}]
    want = theirs.apply_chat_template([*forms[:1], {**forms[1], "content": ""}], return_dict=False)
    if name == "qwen25":  # Qwen3's template does not take None
        assert theirs.apply_chat_template(forms, return_dict=False) == want
    messages = [Message("user", "q"), Message("assistant", (ToolCall("c", "noop", {}),))]
    assert ours.render(messages, add_generation_prompt=False).ids == want


@pytest.mark.parametrize("name", ["qwen25", "qwen3"])
def test_growing_conversations_equal_rendering_afresh(
    name: str, request: pytest.FixtureRequest, official: dict[str, Any]
) -> None:
    """What is kept between renderings changes nothing: each prefix of a conversation equals transformers' ids."""
    ours, theirs = request.getfixturevalue(name), official[name]
    for seed in range(12):
        messages, forms = conversation(random.Random(seed))
        for end in [*range(1, len(forms) + 1), *range(len(forms), 0, -1)]:
            want = theirs.apply_chat_template(forms[:end], add_generation_prompt=True, return_dict=False)
            assert ours.render(messages[:end]).ids == want


def test_many_threads_render_alike(renderer: PromptRenderer) -> None:
    """Twelve conversations that share a beginning, rendered from eight threads at once, equal those rendered alone."""
    from concurrent.futures import ThreadPoolExecutor

    start = (Message("system", "s"), Message("user", "hello"))
    talks = [[*start, *(Message("assistant", f"a{i}{j}") for j in range(i))] for i in range(12)]
    alone = [renderer.render(talk).ids for talk in talks]
    with ThreadPoolExecutor(8) as pool:
        again = list(pool.map(lambda i: renderer.render(talks[i % 12]).ids, range(120)))
    assert again == [alone[i % 12] for i in range(120)]
