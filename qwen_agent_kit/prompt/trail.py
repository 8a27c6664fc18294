"""From marked text to ids, going on from what earlier renderings already turned into ids."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from qwen_agent_kit.backends import MediaSpan, Run
from qwen_agent_kit.errors import PromptError
from qwen_agent_kit.messages import Media, Message, TokenLog
from qwen_agent_kit.prompt.template import Marks
from qwen_agent_kit.prompt.tokens import PlainTokenizer
from qwen_agent_kit.prompt.turns import Splice, Tags, Turns

__all__ = ["PLACEHOLDERS", "Script", "Trail", "Trails", "Widen", "Writer"]

Widen = Callable[[Media], tuple[int, str, Any] | list[Run]]
"""A media part's number of placeholder ids, its digest, and the item for the encoder; or several runs of them."""

PLACEHOLDERS = frozenset(
    {"<|image_pad|>", "<|video_pad|>", "<|audio_pad|>", "<|AUDIO|>", "<|IMAGE|>", "<|VIDEO|>", "<image>", "<audio>"}
)
"""Control tokens that stand for a media part, one each, in the text of a template."""

MAX_TRAILS = 8


@dataclass(frozen=True, slots=True)
class Script:
    """What one rendering gave.

    Args:
        text: With marks.
        assistants: The messages behind its assistant turns, in order.
        logs: What those were sampled as.
        media: The parts behind its placeholders, in order.
        prompt: The generation prompt it ends with, "" where it has none.
    """

    text: str
    assistants: Sequence[Message]
    logs: list[TokenLog | None]
    media: Sequence[Media]
    prompt: str


@dataclass(frozen=True, slots=True)
class _Stop:
    """A place in the text where the ids up to there depend on nothing after it."""

    offset: int
    ids: int
    turns: int
    media: int
    spans: int


@dataclass(slots=True)
class Trail:
    """A text and the ids it became. Never changed once it is kept."""

    text: str
    logs: list[TokenLog | None]
    parts: Sequence[Media]
    spliced: bool
    ids: list[int] = field(default_factory=list)
    spans: list[MediaSpan] = field(default_factory=list)
    widened: int = 0
    stops: list[_Stop] = field(default_factory=list)
    hint: str | None = None

    def same(self, other: Trail) -> bool:
        """Whether ``other`` would become the same ids."""
        return (
            self.text == other.text
            and self.spliced == other.spliced
            and self.logs == other.logs
            and list(self.parts) == list(other.parts)
        )

    def shared(self, other: Trail) -> int:
        """How many of these stops ``other`` goes through as well; a search back from the last."""
        if self.spliced != other.spliced:
            return 0
        turns, media = _common(self.logs, other.logs), _common(self.parts, other.parts)

        def holds(count: int) -> bool:
            stop = self.stops[count - 1]
            return stop.turns <= turns and stop.media <= media and other.text.startswith(self.text[: stop.offset])

        good, bad, stride = 0, len(self.stops) + 1, 1
        while bad - good > 1:
            count = max(bad - stride, good + 1) if good == 0 else (good + bad) // 2
            if holds(count):
                good = count
            else:
                bad = count
            stride *= 2
        return good


def _common(a: Sequence[Any], b: Sequence[Any]) -> int:
    """The length of the common prefix; members that are the same object are not looked into."""
    length = min(len(a), len(b))
    if a[:length] == b[:length]:
        return length
    return next(i for i in range(length) if a[i] != b[i])


class Trails:
    """The last renderings. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: tuple[Trail, ...] = ()

    def nearest(self, wanted: Trail) -> tuple[Trail | None, int]:
        """The kept trail that goes along with ``wanted`` the longest, and for how many stops."""
        best, count, reach = None, 0, 0
        for trail in self._kept:
            shared = trail.shared(wanted)
            if shared and trail.stops[shared - 1].offset > reach:
                best, count, reach = trail, shared, trail.stops[shared - 1].offset
        return best, count

    def keep(self, trail: Trail, instead: Trail | None) -> None:
        """Keep a trail, in place of the one that it goes on from."""
        with self._lock:
            rest = tuple(kept for kept in self._kept if kept is not instead)
            self._kept = (trail, *rest)[:MAX_TRAILS]


class Writer:
    """Writes ids for marked text.

    Args:
        tokens: Encodes the text between marks.
        marks: Of the template.
        turns: Where its turns stand.
        think: The tags that open and close reasoning.
        widen: Gives the placeholders of a media part.
        placeholders: The control tokens that stand for one each.
    """

    def __init__(
        self,
        tokens: PlainTokenizer,
        marks: Marks,
        turns: Turns,
        think: tuple[str, str],
        widen: Widen | None,
        placeholders: frozenset[str] = PLACEHOLDERS,
    ) -> None:
        self.tokens, self.marks, self.turns, self.widen = tokens, marks, turns, widen
        self.placeholders = placeholders
        self._think = (marks.put(think[0]), marks.put(think[1]))
        self._think_ids = (tokens.control.get(think[0]), tokens.control.get(think[1]))
        found = marks.pattern.match(turns.end)
        self.end_id = marks.id(found) if found else -1

    def write(self, script: Script, trails: Trails) -> Trail:
        """The ids of a rendering, from the nearest trail on.

        Raises:
            PromptError: Where placeholders and media do not match, or text is no Unicode.
        """
        spliced = self.turns.spliceable
        while True:
            new = Trail(script.text, script.logs, script.media, spliced)
            near, count = trails.nearest(new)
            if near is not None and near.same(new):
                return near
            start = near.stops[count - 1] if near is not None else _Stop(0, 0, 0, 0, 0)
            turns = start.turns + script.text.count(self.turns.opener, start.offset) if spliced else 0
            if not spliced or turns == len(script.logs) + bool(script.prompt):
                break
            spliced = False  # the template left turns out, or wrote some of its own
        if near is not None:
            new.ids, new.spans, new.stops = near.ids[: start.ids], near.spans[: start.spans], near.stops[:count]
            new.widened = start.media
        if not spliced and any(script.logs):
            new.hint = "the template's assistant turns cannot be told apart, so they are written as text"
        _Pass(self, script, new, start).run()
        if new.widened != len(script.media):
            kinds = sorted({part.kind for part in script.media})
            raise PromptError(
                f"the messages hold {len(script.media)} media parts of {kinds!r}; the model's chat template has "
                f"{new.widened} places for them",
                hint="use a model that takes these kinds, or leave the parts out",
            )
        trails.keep(new, near if near is not None and count == len(near.stops) else None)
        return new

    def splice(self, message: Message, region: str, prompt: str, fingerprint: str) -> Splice:
        """How an assistant turn is written."""
        if message.log is None:
            return Splice(None)
        if message.log.fingerprint != fingerprint:
            return Splice(None, "the model changed")
        ids, (opens, closes) = message.log.ids, self._think_ids
        tags = Tags(opens in ids[:4], closes in ids, known=opens is not None)
        return self.turns.splice(message, region, prompt, self._think, tags)


class _Pass:
    """One way through a text. Stops are where turns end: inside one there is none, since it may come to be spliced."""

    def __init__(self, writer: Writer, script: Script, trail: Trail, start: _Stop) -> None:
        self._writer, self._script, self._trail = writer, script, trail
        self._marks, self._turns = writer.marks, writer.turns
        self._at, self._count = start.offset, start.turns

    def run(self) -> None:
        text, opener = self._script.text, self._turns.opener
        while found := self._marks.pattern.search(text, self._at):
            opens = self._trail.spliced and text.startswith(opener, found.start())
            if opens and self._count < len(self._script.assistants) and self._turn(found.start()):
                continue
            self._plain(text[self._at : found.start()])
            self._control(self._marks.id(found), self._marks.token(found))
            self._at = found.end()
            if found[0] == self._turns.end or not self._turns.spliceable:
                self._stop()
        self._plain(text[self._at :])
        self._at = len(text)

    def _turn(self, begin: int) -> bool:
        """Write the assistant turn at ``begin`` as it was sampled, if it was and the template still has it so."""
        text, end, message = self._script.text, self._turns.end, self._script.assistants[self._count]
        self._count += 1
        close = text.find(end, begin)
        if close < 0 or message.log is None:
            return False
        region = text[begin : close + len(end)]
        splice = self._writer.splice(message, region, self._script.prompt, self._writer.tokens.fingerprint)
        if splice.broken and self._trail.hint is None:
            self._trail.hint = f"{splice.broken} (assistant turn {self._count})"
        if splice.header is None:
            return False
        self._plain(text[self._at : begin])
        self._marked(splice.header)
        self._trail.ids.extend(message.log.ids)
        if not message.log.ids or message.log.ids[-1] != self._writer.end_id:
            self._trail.ids.append(self._writer.end_id)
        self._at = close + len(end)
        self._stop()
        return True

    def _marked(self, text: str) -> None:
        at = 0
        for found in self._marks.pattern.finditer(text):
            self._plain(text[at : found.start()])
            self._trail.ids.append(self._marks.id(found))
            at = found.end()
        self._plain(text[at:])

    def _plain(self, text: str) -> None:
        if text:
            self._trail.ids.extend(self._writer.tokens.encode(text))

    def _control(self, token_id: int, token: str) -> None:
        trail, parts, widen = self._trail, self._script.media, self._writer.widen
        if token in self._writer.placeholders and widen is not None and trail.widened < len(parts):
            made = widen(parts[trail.widened])
            trail.widened += 1
            for run in made if isinstance(made, list) else [Run(*made)]:
                self._run(run, token_id)
        else:
            trail.ids.append(token_id)

    def _run(self, run: Run, token_id: int) -> None:
        """A run's placeholders, and what a backend has around them."""
        if run.length < 1:
            raise PromptError(f"a backend widened a media part to {run.length!r} placeholders; allowed: 1 or more")
        trail = self._trail
        self._words(run.before)
        trail.spans.append(MediaSpan(len(trail.ids), run.length, run.digest, run.item))
        trail.ids.extend([self._writer.tokens.control.get(run.token, token_id)] * run.length)
        self._words(run.after)

    def _words(self, words: Sequence[str]) -> None:
        for word in words:
            known = self._writer.tokens.control.get(word)
            if known is None:
                self._plain(word)
            else:
                self._trail.ids.append(known)

    def _stop(self) -> None:
        trail = self._trail
        trail.stops.append(_Stop(self._at, len(trail.ids), self._count, trail.widened, len(trail.spans)))
