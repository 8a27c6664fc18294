"""The contract checks find what they are for."""

from __future__ import annotations

import dataclasses

import pytest

from qwen_agent_kit.backends import Backend, CallDelta, CallDone, Capabilities, EngineSpec, Finish, Usage
from qwen_agent_kit.events import TextDelta
from qwen_agent_kit.messages import Image, Media, ToolCall
from qwen_agent_kit.testing import ScriptedModel, check_backend, check_engine

CALL = ToolCall("c", "lookup", {"key": "a"})


class Raw(ScriptedModel):
    """Says exactly the given deltas, each time."""

    def __init__(self, *deltas: object, **fields: object) -> None:
        super().__init__(**fields)
        self.deltas = deltas

    def stream(self, request):
        yield from self.deltas


@pytest.mark.parametrize(
    ("deltas", "told"),
    [
        ([TextDelta("x")], "Finish came at"),
        ([Finish("stop"), TextDelta("x")], "Finish came at"),
        ([Finish("stop"), Finish("stop")], "Finish came at"),
        (["text", Finish("stop")], "a delta is a str"),
        ([Finish("because")], "Finish.reason is 'because'"),
        ([TextDelta("x"), Finish("tool_calls")], "no CallDone"),
        ([CallDelta(0, None, "{"), Finish("stop")], "name of call 0"),
        ([CallDelta(0, "f"), CallDelta(0, "f"), Finish("stop")], "name of call 0"),
        ([CallDone(0, CALL), CallDone(0, CALL), Finish("tool_calls")], "done twice"),
        ([CallDone(0, CALL), CallDone(1, CALL), Finish("tool_calls")], "ids repeat"),
        ([CallDone(0, CALL), CallDelta(0, "x"), Finish("tool_calls")], "after its CallDone"),
        ([CallDelta(0, "other"), CallDone(0, CALL), Finish("tool_calls")], "its deltas said"),
        ([CallDelta(0, "lookup", '{"key": "b"}'), CallDone(0, CALL), Finish("tool_calls")], "argument text"),
        ([CallDone(0, dataclasses.replace(CALL, id="")), Finish("tool_calls")], "has no id"),
        ([CallDone(0, CALL), Finish("tool_calls", truncated="x")], "`truncated`"),
        ([TextDelta("x"), Finish("stop", ids=(1,))], "come together"),
        ([TextDelta("x"), Finish("stop", Usage(generated_tokens=2), ids=(1,), fingerprint="f")], "ids differ"),
        ([TextDelta("x"), Finish("stop", Usage(prompt_tokens=1, cached_tokens=2))], "more cached"),
    ],
)
def test_an_engine_that_breaks_a_promise_is_told_which(deltas: list, told: str) -> None:
    """Each promise about the stream, broken alone."""
    with pytest.raises(AssertionError, match=told):
        check_engine(Raw(*deltas))


def test_promises_about_the_face() -> None:
    """Name, caps and the members of the protocol."""
    good = [TextDelta("x"), Finish("stop")]
    check_engine(Raw(*good))
    with pytest.raises(AssertionError, match="`name`"):
        check_engine(Raw(*good, name=""))
    with pytest.raises(AssertionError, match="`text` is always"):
        check_engine(Raw(*good, caps=Capabilities(kinds=frozenset({"image"}))))
    with pytest.raises(AssertionError, match=r"caps\.token_ids"):
        check_engine(Raw(*good, caps=Capabilities(token_ids=True)))
    with pytest.raises(AssertionError, match="lacks a member"):
        check_engine(object())

    class Endless(Raw):
        def stream(self, request):
            return Stubborn(self.deltas)

    class Stubborn:
        def __init__(self, deltas):
            self.deltas = iter(deltas)

        def __iter__(self):
            return self

        def __next__(self):
            return next(self.deltas)

        def close(self):
            pass

    with pytest.raises(AssertionError, match="closed stream went on"):
        check_engine(Endless(*good))


def test_a_spec_is_opened_and_closed() -> None:
    """The rest of the name goes to `open`, and the model is closed at the end."""
    seen: list[str] = []

    class Closing(Raw):
        def close(self):
            seen.append("closed")

    def open_it(rest: str) -> Closing:
        seen.append(rest)
        return Closing(TextDelta("x"), Finish("stop"))

    check_engine(EngineSpec("mine", open_it), "some:thing")
    assert seen == ["some:thing", "closed"]
    with pytest.raises(AssertionError, match="prefix"):
        check_engine(EngineSpec("not a name", open_it))


class Scan(Media):
    """A part of a plugin's own."""

    kind = "scan"


def widen(part, config, budget):
    return 1, "digest", part


GOOD = Backend(
    "scans",
    frozenset({"text", "scan"}),
    families=("qwen2",),
    parts=(Scan,),
    widen=widen,
    encoder=lambda config, tensors, device: None,
    positions=lambda ids, spans: None,
    footprint=lambda config, budget: 0,
)


def test_a_good_backend_passes() -> None:
    """With media, and the text-only ones of the kit's shape."""
    check_backend(GOOD)
    check_backend(Backend("text", frozenset({"text"}), families=("qwen2",)))


class Nameless(Media):
    """Forgot its kind."""


class Lossy(Media):
    """Loses its options."""

    kind = "scan"

    def to_dict(self):
        return {"type": "scan", "data": "eA=="}


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"name": "a b"}, "`name`"),
        ({"accepts": {"text"}}, "allowed: a frozenset"),
        ({"accepts": frozenset({"scan"})}, "`text` is always"),
        ({"families": ["qwen2"]}, "`families`"),
        ({"parts": [Scan]}, "`parts`"),
        ({"parts": (str,)}, "subclasses of Media"),
        ({"parts": ()}, r"`accepts` has \['scan'\], and no class of `parts`"),
        ({"parts": (Image,)}, "which `accepts` lacks"),
        ({"parts": (Nameless,), "accepts": frozenset({"text", "media"})}, "a kind of its own"),
        ({"parts": (Lossy,)}, "does not survive"),
        ({"widen": None}, "`widen` is None"),
        ({"encoder": None}, "`encoder` is None"),
        ({"widen": 5}, "allowed: a function"),
        ({"widen": lambda part: None}, "does not take 3"),
        ({"footprint": lambda: 0}, "does not take 2"),
    ],
)
def test_a_bad_backend_is_told_which_field(changes: dict, told: str) -> None:
    """Each field, broken alone."""
    with pytest.raises(AssertionError, match=told):
        check_backend(dataclasses.replace(GOOD, **changes))
