"""``Chat``: a conversation that goes on from turn to turn, stored or not."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import AsyncGenerator, Callable, Generator, Mapping
from typing import TYPE_CHECKING, Any

from qwen_agent_kit.agent.cancel import Cancel
from qwen_agent_kit.agent.drain import alast, last
from qwen_agent_kit.agent.inputs import Inputs, opening, user_message
from qwen_agent_kit.agent.loop import Open, Run
from qwen_agent_kit.errors import StoreError, UsageError
from qwen_agent_kit.events import Event, RunDone, RunResult, StepDone
from qwen_agent_kit.messages import Message, ToolCall
from qwen_agent_kit.paths import safe_name

if TYPE_CHECKING:
    import asyncio

    from qwen_agent_kit.agent.agent import Agent
    from qwen_agent_kit.store import Position, Store
    from qwen_agent_kit.tools import OutputType

__all__ = ["Chat"]

Start = Callable[[Cancel, "asyncio.AbstractEventLoop | None"], Generator[Event, None, None]]


class Chat:
    """A conversation with an agent; ``Agent.chat`` makes one.

    A turn is added step by step: after an exception, a cancelled turn or a killed process the conversation is as it
    was after the last complete step. One turn at a time: a second thread is refused, not mixed in.

    Args:
        agent: Who answers.
        session: The name under which it is stored, None where it is not.
        store: Where; the user's own store where None.
    """

    def __init__(self, agent: Agent, session: str | None = None, *, store: Store | None = None) -> None:
        self.session = session
        self._agent = agent
        self._store = store
        self._messages: list[Message] = []
        self._open: Open | None = None
        self._position: Position | None = None
        self._busy = threading.Lock()
        if session is not None:
            self._load(safe_name(session, "the session name"))

    def __repr__(self) -> str:
        return f"Chat(session={self.session!r}, {len(self._messages)} messages)"

    @property
    def messages(self) -> tuple[Message, ...]:
        """The conversation so far, complete steps only."""
        return tuple(self._messages)

    @property
    def pending(self) -> tuple[ToolCall, ...]:
        """The calls that wait for approval; ``resume`` decides them."""
        if self._open is None:
            return ()
        return tuple(call for call in self._messages[-1].tool_calls if call.id in self._open.waiting)

    # --- turns -----------------------------------------------------------------------------------------------------

    def run(
        self,
        prompt: Any = None,
        *,
        parts: Any = (),
        images: Any = (),
        audio: Any = (),
        video: Any = (),
        output: Any = None,
    ) -> RunResult:
        """Answer the next message; the arguments and errors are those of ``Agent.run``.

        Raises:
            UsageError: Also where another turn is under way, or calls wait for approval.
            StoreError: Where the step cannot be stored, or another process changed the conversation.
        """
        return last(self.stream(prompt, parts=parts, images=images, audio=audio, video=video, output=output))

    def stream(
        self,
        prompt: Any = None,
        *,
        parts: Any = (),
        images: Any = (),
        audio: Any = (),
        video: Any = (),
        output: Any = None,
    ) -> Generator[Event, None, None]:
        """As ``run``, event by event. A step is stored before its ``StepDone`` comes."""
        return self._turn(prompt, parts, images, audio, video, output)(Cancel(), None)

    async def arun(
        self,
        prompt: Any = None,
        *,
        parts: Any = (),
        images: Any = (),
        audio: Any = (),
        video: Any = (),
        output: Any = None,
    ) -> RunResult:
        """As ``run``, for async callers."""
        return await alast(self.astream(prompt, parts=parts, images=images, audio=audio, video=video, output=output))

    def astream(
        self,
        prompt: Any = None,
        *,
        parts: Any = (),
        images: Any = (),
        audio: Any = (),
        video: Any = (),
        output: Any = None,
    ) -> AsyncGenerator[Event, None]:
        """As ``stream``, for async callers."""
        from qwen_agent_kit.agent.aio import drive

        return drive(self._turn(prompt, parts, images, audio, video, output))

    # --- going on --------------------------------------------------------------------------------------------------

    def resume(self, decisions: Mapping[str, bool | str] | None = None, *, output: Any = None) -> RunResult:
        """Go on where a turn stopped: with the calls that waited for approval, or after a crash with the next step.

        Args:
            decisions: Per call id: True runs it, False or a reason refuses it. What is left out goes on waiting.
            output: As for ``run``.

        Raises:
            UsageError: Where nothing is to be resumed, or a decision is for no waiting call.
        """
        return last(self.stream_resume(decisions, output=output))

    def stream_resume(
        self, decisions: Mapping[str, bool | str] | None = None, *, output: Any = None
    ) -> Generator[Event, None, None]:
        """As ``resume``, event by event."""
        return self._going_on(decisions, output)(Cancel(), None)

    async def aresume(self, decisions: Mapping[str, bool | str] | None = None, *, output: Any = None) -> RunResult:
        """As ``resume``, for async callers."""
        from qwen_agent_kit.agent.aio import drive

        return await alast(drive(self._going_on(decisions, output)))

    def fork(self, session: str | None = None) -> Chat:
        """A conversation that goes on from here by itself; the messages so far are shared.

        Args:
            session: Stores the copy under this name; without one it is in memory only.

        Raises:
            UsageError: Where that name is taken.
        """
        copy = Chat(self._agent, store=self._store)
        copy._messages = list(self._messages)
        copy._open = self._open
        if session is not None:
            copy.session = safe_name(session, "the session name")
            copy._position = copy._begin(copy.session)
        return copy

    # --- inside ----------------------------------------------------------------------------------------------------

    def _turn(self, prompt: Any, parts: Any, images: Any, audio: Any, video: Any, output: Any) -> Start:
        message = user_message(prompt, parts=parts, images=images, audio=audio, video=video)
        if message is None:
            raise UsageError("there is no prompt", hint='pass a text, as in chat.run("...")')
        if self._open is not None:
            waiting = ", ".join(repr(ident) for ident in self._open.waiting)
            raise UsageError(
                f"calls of the last turn wait for approval: {waiting}",
                hint="chat.resume({call_id: True or False}) decides them",
                code="approval_pending",
            )
        return self._starter(message, None, self._agent.output_of(output))

    def _going_on(self, decisions: Mapping[str, bool | str] | None, output: Any) -> Start:
        wanted = self._agent.output_of(output)
        if self._open is None:
            if decisions:
                raise UsageError("no call waits for approval", code="nothing_pending")
            if not self._messages:
                named = "the conversation" if self.session is None else f"session {self.session!r}"
                raise UsageError(f"there is nothing to resume: {named} is empty", hint="chat.run(...) begins it")
            if self._messages[-1].role not in ("tool", "user"):
                raise UsageError("there is nothing to resume: the last turn is complete")
            return self._starter(None, None, wanted)
        decided = dict(decisions or {})
        unknown = sorted(set(decided) - set(self._open.waiting))
        if unknown or not decided:
            raise UsageError(
                f"decisions are for {unknown or 'no call'}; waiting: {', '.join(map(repr, self._open.waiting))}",
                hint="chat.resume({call_id: True or False})",
            )
        self._refuse_unarmed(decided)
        return self._starter(None, Open(self._open.waiting, self._open.results, decided), wanted)

    def _refuse_unarmed(self, decided: Mapping[str, bool | str]) -> None:
        """An approval is not spent on a call that this agent could not run."""
        armed = {tool.name for tool in self._agent.tools}
        for call in self._messages[-1].tool_calls:
            if decided.get(call.id) is True and call.name not in armed:
                raise UsageError(
                    f"the approved call is of the tool {call.name!r}; armed: {', '.join(sorted(armed)) or 'none'}",
                    hint="arm the tool that the conversation had; the call keeps waiting",
                    code="tool_not_armed",
                )

    def _starter(self, message: Message | None, waiting: Open | None, output: OutputType | None) -> Start:
        def start(cancel: Cancel, loop: asyncio.AbstractEventLoop | None) -> Generator[Event, None, None]:
            if not self._busy.acquire(blocking=False):
                raise UsageError(
                    "this conversation is busy with another turn",
                    hint="wait for that turn, or go on in a copy: chat.fork()",
                    code="busy",
                )
            try:
                self._check_position()
                system = self._agent.system if not self._messages else None  # a conversation keeps the one it has
                messages = opening(system, Inputs(tuple(self._messages), message))
                run = Run(self._agent.setup, messages, output=output, cancel=cancel, loop=loop, open_step=waiting)
                with contextlib.closing(run.events()) as events:
                    for event in events:
                        if isinstance(event, StepDone) or (isinstance(event, RunDone) and run.pending is not None):
                            self._keep(run)
                        yield event
                run.look_ahead()
            finally:
                self._busy.release()

        return start

    def _keep(self, run: Run) -> None:
        """Take over what a step added, stored first."""
        new = run.messages[len(self._messages) :]
        if self.session is not None:
            assert self._position is not None, "a stored conversation has a position"
            self._position = self._disk().append(self.session, new, self._position, _pending(run.pending))
        self._messages += new
        self._open = run.pending

    def _disk(self) -> Store:
        if self._store is None:
            from qwen_agent_kit.store import Store

            self._store = Store()
        return self._store

    def _load(self, session: str) -> None:
        store = self._disk()
        kinds = self._agent.setup.media_types if store.position(session).count else ()
        stored = store.load(session, kinds)
        self._messages = list(stored.messages)
        self._position = stored.position
        if stored.pending is not None:
            self._open = Open(stored.pending.waiting, stored.pending.results)

    def _begin(self, session: str) -> Position:
        """Store a copy of this conversation under a new name."""
        from qwen_agent_kit.store import Position

        store = self._disk()
        if store.position(session).count:
            raise UsageError(f"session {session!r} is there already", hint="choose another name", code="exists")
        return store.append(session, self._messages, Position(), _pending(self._open))

    def _check_position(self) -> None:
        """Refuse a turn that could not be stored, before the model works for it."""
        if self.session is None:
            return
        if self._disk().position(self.session) != self._position:
            raise StoreError(
                f"session {self.session!r} was changed by another process",
                hint="open it again with agent.chat(session=...), or go on in a copy: chat.fork()",
                code="conflict",
            )


def _pending(waiting: Open | None) -> Any:
    if waiting is None:
        return None
    from qwen_agent_kit.store import Pending

    return Pending(waiting.waiting, waiting.results)
