"""Contract checks for the authors of engines and backends.

Call them in a test of your own; they raise ``AssertionError`` with what was promised and what was found.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Sequence
from typing import Any

from qwen_agent_kit.backends import (
    Backend,
    CallDelta,
    CallDone,
    Capabilities,
    ChatModel,
    ChatRequest,
    Delta,
    EngineSpec,
    Finish,
    Sampling,
)
from qwen_agent_kit.events import ReasoningDelta, TextDelta
from qwen_agent_kit.messages import Audio, Image, Media, Message, Text, Video
from qwen_agent_kit.tools import Tool

__all__ = ["check_backend", "check_engine"]

REASONS = ("stop", "tool_calls", "length", "repetition", "cancelled", "error")
_FUNCTIONS = {"widen": 3, "positions": 2, "encoder": 3, "footprint": 2}


def check_engine(engine: ChatModel | EngineSpec, spec: str = "", *, tokens: int = 64) -> None:
    """Hold a ``ChatModel`` (or what an ``EngineSpec`` opens) to its contract by asking it a few short questions.

    Args:
        engine: The model, or the spec whose ``open(spec)`` gives one (which is closed at the end).
        spec: What follows the prefix, for an ``EngineSpec``.
        tokens: ``max_tokens`` of each question.

    Raises:
        AssertionError: Says which promise is broken.
    """
    if isinstance(engine, EngineSpec):
        _check(engine.prefix.isidentifier(), f"EngineSpec.prefix is {engine.prefix!r}; allowed: an identifier")
        model = engine.open(spec)
        try:
            check_engine(model, tokens=tokens)
        finally:
            model.close()
        return
    _check_face(engine)
    sampling = Sampling(max_tokens=tokens, temperature=0.0)
    hello = ChatRequest((Message("user", (Text("Say hello."),)),), sampling=sampling)
    engine.check(hello)
    said = list(engine.stream(hello))
    _check_stream(said, engine.caps)
    _check_closing(engine, hello)
    again = list(engine.stream(hello))
    _check_stream(again, engine.caps)
    if engine.caps.tools:
        _check_tools(engine, sampling)


def _check_face(model: ChatModel) -> None:
    _check(
        isinstance(model, ChatModel),
        f"{type(model).__name__} lacks a member of ChatModel: name caps stream check close",
    )
    _check(isinstance(model.name, str) and bool(model.name), f"`name` is {model.name!r}; allowed: a text")
    caps = model.caps
    _check(isinstance(caps, Capabilities), f"`caps` is a {type(caps).__name__}; allowed: Capabilities")
    _check("text" in caps.kinds, f"`caps.kinds` is {sorted(caps.kinds)}; `text` is always among them")


def _check_stream(deltas: Sequence[Delta], caps: Capabilities) -> None:
    """A ``Finish`` comes once, last, and fits what came before; deltas of calls are in order."""
    allowed = (TextDelta, ReasoningDelta, CallDelta, CallDone, Finish)
    for delta in deltas:
        _check(isinstance(delta, allowed), f"a delta is a {type(delta).__name__}; allowed: the members of Delta")
    ends = [i for i, delta in enumerate(deltas) if isinstance(delta, Finish)]
    _check(ends == [len(deltas) - 1], f"Finish came at {ends} of {len(deltas)} deltas; allowed: once, last")
    finish = deltas[-1]
    assert isinstance(finish, Finish), "checked above"
    _check(finish.reason in REASONS, f"Finish.reason is {finish.reason!r}; allowed: {', '.join(REASONS)}")
    done = _check_calls(deltas)
    _check((finish.reason == "tool_calls") <= bool(done), "Finish.reason is 'tool_calls', and no CallDone came")
    _check(not finish.truncated or finish.reason != "tool_calls", "`truncated` is set on a turn that ended with calls")
    _check(
        (finish.ids is None) == (finish.fingerprint is None), "`ids` and `fingerprint` come together, or both are None"
    )
    _check(finish.ids is not None or not caps.token_ids, "caps.token_ids is True, and Finish.ids is None")
    usage = finish.usage
    if usage.cached_tokens is not None and usage.prompt_tokens is not None:
        _check(usage.cached_tokens <= usage.prompt_tokens, "usage has more cached than prompt tokens")
    if usage.generated_tokens is not None and finish.ids is not None:
        found = f"{usage.generated_tokens} generated tokens and {len(finish.ids)} ids"
        _check(usage.generated_tokens == len(finish.ids), f"usage and ids differ: {found}")


def _check_calls(deltas: Sequence[Delta]) -> list[CallDone]:
    """The name once, on the first delta of an index; then argument text; then at most one ``CallDone``."""
    names: dict[int, str] = {}
    text: dict[int, str] = {}
    done: dict[int, CallDone] = {}
    for delta in deltas:
        if isinstance(delta, CallDelta):
            first = delta.index not in names
            _check(delta.index not in done, f"a CallDelta for call {delta.index} came after its CallDone")
            _check(first == (delta.name is not None), f"the name of call {delta.index} comes on its first delta, once")
            if delta.name is not None:
                names[delta.index] = delta.name
            text[delta.index] = text.get(delta.index, "") + delta.arguments
        elif isinstance(delta, CallDone):
            _check(delta.index not in done, f"call {delta.index} was done twice")
            _check(bool(delta.call.id), f"call {delta.index} has no id")
            done[delta.index] = delta
    for index, item in done.items():
        if item.call.error is None and index in names:
            _check(
                names[index] == item.call.name, f"call {index} is {item.call.name!r}, its deltas said {names[index]!r}"
            )
        if item.call.error is None and text.get(index):
            _check(
                _same_json(text[index], item.call.arguments), f"the argument text of call {index} is not its arguments"
            )
    ids = [item.call.id for item in done.values()]
    _check(len(set(ids)) == len(ids), f"call ids repeat: {ids}")
    return list(done.values())


def _same_json(text: str, arguments: Any) -> bool:
    try:
        return bool(json.loads(text) == json.loads(json.dumps(dict(arguments))))
    except ValueError:
        return True  # a dialect that is not JSON streams its own text


def _check_closing(model: ChatModel, request: ChatRequest) -> None:
    """Closing the iterator cancels: it ends, gives nothing more, and the model goes on to serve others."""
    stream = model.stream(request)
    next(iter(stream))
    close: Callable[[], None] | None = getattr(stream, "close", None)
    _check(close is not None, "the iterator of `stream` has no close(); a generator has one")
    assert close is not None, "checked above"
    close()
    close()
    _check(next(iter(stream), None) is None, "a closed stream went on")


def _check_tools(model: ChatModel, sampling: Sampling) -> None:
    def lookup(key: str) -> str:
        """Look a key up."""
        return key

    tool = Tool("lookup", None, None, lookup)
    request = ChatRequest((Message("user", (Text("Look up `a`."),)),), tools=(tool,), sampling=sampling)
    model.check(request)
    _check_stream(list(model.stream(request)), model.caps)


def check_backend(backend: Backend) -> None:
    """Hold the fields and signatures of a ``Backend`` to what hosts and agents rely on; calls none of its functions.

    Raises:
        AssertionError: Says which field is wrong, and what is allowed.
    """
    _check(isinstance(backend, Backend), f"it is a {type(backend).__name__}; allowed: Backend(...)")
    _check(backend.name.isidentifier(), f"`name` is {backend.name!r}; allowed: an identifier, unique among plugins")
    _check(
        isinstance(backend.accepts, frozenset), f"`accepts` is a {type(backend.accepts).__name__}; allowed: a frozenset"
    )
    _check("text" in backend.accepts, f"`accepts` is {sorted(backend.accepts)}; `text` is always among them")
    _check(isinstance(backend.families, tuple), f"`families` is a {type(backend.families).__name__}; allowed: a tuple")
    _check(isinstance(backend.parts, tuple), f"`parts` is a {type(backend.parts).__name__}; allowed: a tuple")
    for part in backend.parts:
        _check(
            isinstance(part, type) and issubclass(part, Media), f"`parts` holds {part!r}; allowed: subclasses of Media"
        )
        _check(part.kind in backend.accepts, f"`parts` brings the kind {part.kind!r}, which `accepts` lacks")
        _check(part.kind not in ("media", "text"), f"{part.__name__}.kind is {part.kind!r}; allowed: a kind of its own")
        whole = part(b"x", options={"a": 1})
        _check(
            part.from_dict(whole.to_dict()) == whole.found(), f"{part.__name__} does not survive to_dict and from_dict"
        )
    media = backend.accepts - {"text"}
    types: tuple[type[Media], ...] = (Image, Audio, Video, *backend.parts)
    known = {part.kind for part in types}
    _check(media <= known, f"`accepts` has {sorted(media - known)}, and no class of `parts` is of that kind")
    for name, count in _FUNCTIONS.items():
        function = getattr(backend, name)
        if function is None:
            needed = bool(media) and bool(backend.families) and name in ("widen", "encoder")
            _check(not needed, f"`{name}` is None, and the backend accepts {', '.join(sorted(media))}")
            continue
        _check(callable(function), f"`{name}` is a {type(function).__name__}; allowed: a function")
        _check(_takes(function, count), f"`{name}` does not take {count} positional arguments")


def _takes(function: Callable[..., Any], count: int) -> bool:
    try:
        inspect.signature(function).bind(*range(count))
    except TypeError:
        return False
    except ValueError:  # a builtin without a signature
        return True
    return True


def _check(ok: bool, message: str) -> None:
    if not ok:
        raise AssertionError(message)
