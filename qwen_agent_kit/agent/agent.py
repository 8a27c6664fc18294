"""``Agent``: what a run is made of, as one immutable value."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import AsyncGenerator, Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from qwen_agent_kit.agent.batch import run_batch
from qwen_agent_kit.agent.cancel import Cancel
from qwen_agent_kit.agent.chat import Chat
from qwen_agent_kit.agent.drain import alast, last
from qwen_agent_kit.agent.hooks import Hooks
from qwen_agent_kit.agent.inputs import opening, read_inputs
from qwen_agent_kit.agent.limits import Limits
from qwen_agent_kit.agent.loop import Run
from qwen_agent_kit.agent.setup import Approve, Setup, candidates_of
from qwen_agent_kit.backends import ChatModel, Sampling
from qwen_agent_kit.errors import UsageError
from qwen_agent_kit.events import Event, RunResult
from qwen_agent_kit.messages import Message
from qwen_agent_kit.tools import OutputType, ToolSet, output_type

if TYPE_CHECKING:
    import asyncio
    from os import PathLike

    from qwen_agent_kit.host import Host
    from qwen_agent_kit.placement import Plan
    from qwen_agent_kit.store import Store
    from qwen_agent_kit.tools import Tool

__all__ = ["Agent"]


class _Once:
    """A value that is made on first use."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.value: Setup | None = None


@dataclass(frozen=True, eq=False)
class Agent:
    """A model with its tools. Configuration only: making one is cheap, nothing is opened before the first run.

    Usable from any number of threads and tasks at once.

    Args:
        model: A catalog name, a path, a hub id, ``engine:spec``, a ``ChatModel`` object, or None for ``QAK_MODEL``,
            else the installed model that covers the parts.
        models: Further models that a run may use, in order; nothing else is ever opened.
        tools: Functions, ``Tool`` objects, and names of tools that installed plugins offer.
        system: The system message. A conversation that begins with one of its own keeps that.
        output: What the answer must be: a type (pydantic model, dataclass, ``list[int]``) or a JSON schema; None for
            text.
        sampling: Over the model's defaults.
        limits: What ends a run that does not end by itself.
        thinking: None (the model's default), False, True, or a budget in tokens.
        tool_choice: ``auto``, ``none``, ``required`` or a tool's name. The last two hold for the first step of a run;
            after it the model chooses, else no run would end.
        approve: Asked about every call before it runs: True runs it, False or a reason refuses it (the model reads
            that), None suspends the run with ``stop_reason="approval"``. Without it, calls of tools with
            ``side_effects=True`` suspend and all others run.
        adapter: The name of one of the host's LoRA adapters, for models that run here; None for none.
        host: What opens models; the process's own where None.
        plugins: Plugin objects whose hooks take part in this agent's runs.
        strict: Where False, an output or tool schema that the grammar cannot express is validated after the fact, and
            the step's notes say so, instead of being refused.

    Raises:
        UsageError: For a field that is refused.
        SchemaError: For a tool signature or an output schema that is refused; ``pointer`` says where.
    """

    model: str | PathLike[str] | ChatModel | None = None
    models: Sequence[str | PathLike[str] | ChatModel] = field(default=(), kw_only=True)
    tools: Sequence[Any] = field(default=(), kw_only=True)
    system: str | None = field(default=None, kw_only=True, repr=False)
    output: Any = field(default=None, kw_only=True)
    sampling: Sampling | None = field(default=None, kw_only=True)
    limits: Limits | None = field(default=None, kw_only=True)
    thinking: bool | int | None = field(default=None, kw_only=True)
    tool_choice: str = field(default="auto", kw_only=True)
    approve: Approve | None = field(default=None, kw_only=True)
    adapter: str | None = field(default=None, kw_only=True)
    host: Host | None = field(default=None, kw_only=True)
    plugins: Sequence[Any] | None = field(default=None, kw_only=True)
    strict: bool = field(default=True, kw_only=True)
    _once: _Once = field(default_factory=_Once, init=False, repr=False)

    def __post_init__(self) -> None:
        if isinstance(self.tools, str) or isinstance(self.models, str):
            raise UsageError("`tools` or `models` is a string; allowed: a list")
        for name in ("tools", "models", "plugins"):
            if not isinstance(getattr(self, name) or (), Iterable):
                raise UsageError(f"`{name}` is a {type(getattr(self, name)).__name__}; allowed: a list")
        candidates_of(self.model, self.models)
        tools = ToolSet(self._offered(value) if isinstance(value, str) else value for value in self.tools)
        _set(self, "models", tuple(self.models))
        _set(self, "tools", tuple(tools.values()))
        _check_fields(self, tools)
        if self.output is not None:
            _set(self, "output", output_type(self.output))

    # --- running ---------------------------------------------------------------------------------------------------

    def run(
        self,
        prompt: Any = None,
        *,
        parts: Any = (),
        images: Any = (),
        audio: Any = (),
        video: Any = (),
        messages: Iterable[Message | Mapping[str, Any]] = (),
        output: Any = None,
    ) -> RunResult:
        """Answer a prompt; each run stands alone.

        Args:
            prompt: A text, a part or a list of these. May be None where ``messages`` end with a turn to answer.
            parts: More parts, after the prompt.
            images: Paths, bytes or ``Image`` parts, after those; one alone needs no list.
            audio: The same for sound.
            video: The same for moving pictures.
            messages: The conversation so far.
            output: In place of the agent's own.

        Raises:
            UsageError: For arguments that are refused, and for parts that no eligible model takes.
            OutputError: Where no answer fitted ``output`` in ``limits.mistakes`` tries; its ``result`` holds the run.
            QakError: What opening or running the model raises.
        """
        stream = self.stream(
            prompt, parts=parts, images=images, audio=audio, video=video, messages=messages, output=output
        )
        return last(stream)

    def stream(
        self,
        prompt: Any = None,
        *,
        parts: Any = (),
        images: Any = (),
        audio: Any = (),
        video: Any = (),
        messages: Iterable[Message | Mapping[str, Any]] = (),
        output: Any = None,
    ) -> Generator[Event, None, None]:
        """As ``run``, event by event; the last one, ``RunDone``, has the result. Closing it stops model and tools."""
        start = self._starter(prompt, parts, images, audio, video, messages, output)
        return start(Cancel(), None)

    async def arun(
        self,
        prompt: Any = None,
        *,
        parts: Any = (),
        images: Any = (),
        audio: Any = (),
        video: Any = (),
        messages: Iterable[Message | Mapping[str, Any]] = (),
        output: Any = None,
    ) -> RunResult:
        """As ``run``, for async callers: coroutine tools run on the caller's loop; cancelling the task ends the run."""
        stream = self.astream(
            prompt, parts=parts, images=images, audio=audio, video=video, messages=messages, output=output
        )
        return await alast(stream)

    def astream(
        self,
        prompt: Any = None,
        *,
        parts: Any = (),
        images: Any = (),
        audio: Any = (),
        video: Any = (),
        messages: Iterable[Message | Mapping[str, Any]] = (),
        output: Any = None,
    ) -> AsyncGenerator[Event, None]:
        """As ``stream``, for async callers; ``aclose`` (or cancelling the task) stops model and tools."""
        from qwen_agent_kit.agent.aio import drive

        return drive(self._starter(prompt, parts, images, audio, video, messages, output))

    def batch(self, prompts: Iterable[Any], *, concurrency: int = 8) -> list[RunResult | Exception]:
        """Run many prompts, some at a time, through the same model.

        Args:
            prompts: What ``run`` takes as its prompt, or a dict of its arguments, each.
            concurrency: How many run at once.

        Returns:
            One entry per prompt, in order: its result, or the exception that ended it; one that fails stops no other.
        """
        return run_batch(self.stream, prompts, concurrency)

    def chat(self, session: str | None = None, *, store: Store | None = None) -> Chat:
        """A conversation; with a name it is stored step by step and goes on where it was.

        Args:
            session: Its name; None for one that is only in memory.
            store: Where it is kept; the user's own store where None.

        Raises:
            UsageError: Where the name could not be one.
            StoreError: Where the store cannot be read.
        """
        return Chat(self, session, store=store)

    def explain(self) -> Plan:
        """Where the first eligible model would be placed and why; nothing is loaded.

        Raises:
            UsageError: Where that model is no model of ours: an object or another engine's.
        """
        candidate = candidates_of(self.model, self.models)[0]
        if candidate is None or isinstance(candidate, str):
            return self._host().plan(candidate)
        plan: Plan | None = getattr(candidate, "plan", None)
        if plan is None:
            raise UsageError(f"`{candidate.name}` was given as an object and is not placed by us; there is no plan")
        return plan

    # --- inside ----------------------------------------------------------------------------------------------------

    @property
    def setup(self) -> Setup:
        """The configuration, resolved on first use; runs and conversations share it."""
        with self._once.lock:
            if self._once.value is None:
                self._once.value = self._resolve()
            return self._once.value

    def output_of(self, output: Any) -> OutputType | None:
        """What a run's answer must be: the run's own wish, else the agent's."""
        return output_type(output) if output is not None else self.output

    def _resolve(self) -> Setup:
        host = self._host()
        return Setup(
            candidates=candidates_of(self.model, self.models),
            tools={tool.name: tool for tool in self.tools},
            system=self.system,
            output=self.output,
            sampling=self.sampling or Sampling(),
            limits=self.limits or Limits(),
            thinking=self.thinking,
            tool_choice=self.tool_choice,
            strict=self.strict,
            adapter=self.adapter,
            approve=self.approve,
            host=host,
            hooks=Hooks(host.hooks, self.plugins or ()),
            backends=host.backends,
        )

    def _host(self) -> Host:
        from qwen_agent_kit.host import default_host

        return self.host or default_host()

    def _offered(self, name: str) -> Tool:
        host = self._host()
        offered = host.tools()
        if name not in offered:
            broken = [f"{row.distribution} ({row.error})" for row in host.rows() if "tools" in row.kinds and not row.ok]
            also = f"; of these plugins it is not known: {', '.join(broken)}" if broken else ""
            raise UsageError(
                f"no installed plugin offers the tool {name!r}; offered: {', '.join(sorted(offered)) or 'none'}{also}",
                hint="`qak plugins` says how to mend them"
                if broken
                else "pass the function itself, or install the plugin",
            )
        tool: Tool = offered[name]
        return tool

    def _starter(
        self, prompt: Any, parts: Any, images: Any, audio: Any, video: Any, messages: Any, output: Any
    ) -> Callable[[Cancel, asyncio.AbstractEventLoop | None], Generator[Event, None, None]]:
        """Check the arguments now; the run itself begins when its events are asked for."""
        inputs = read_inputs(
            prompt,
            parts=parts,
            images=images,
            audio=audio,
            video=video,
            messages=messages,
            kinds=lambda: self.setup.media_types,
        )
        wanted = self.output_of(output)

        def start(cancel: Cancel, loop: asyncio.AbstractEventLoop | None) -> Generator[Event, None, None]:
            run = Run(self.setup, opening(self.system, inputs), output=wanted, cancel=cancel, loop=loop)
            with contextlib.closing(run.events()) as events:
                yield from events

        return start


def _set(agent: Agent, name: str, value: Any) -> None:
    object.__setattr__(agent, name, value)


def _check_fields(agent: Agent, tools: ToolSet) -> None:
    """Refuse what cannot be, before anything is opened."""
    if agent.system is not None and not isinstance(agent.system, str):
        raise UsageError(f"`system` is a {type(agent.system).__name__}; allowed: a string")
    if agent.sampling is not None and not isinstance(agent.sampling, Sampling):
        raise UsageError(f"`sampling` is a {type(agent.sampling).__name__}; allowed: Sampling(...)")
    if agent.limits is not None and not isinstance(agent.limits, Limits):
        raise UsageError(f"`limits` is a {type(agent.limits).__name__}; allowed: Limits(...)")
    thinking: Any = agent.thinking
    if not (thinking is None or isinstance(thinking, bool) or (isinstance(thinking, int) and thinking >= 0)):
        raise UsageError(f"`thinking` is {thinking!r}; allowed: None, True, False or a number of tokens")
    if agent.host is not None and not hasattr(agent.host, "open"):
        raise UsageError(f"`host` is a {type(agent.host).__name__}; allowed: Host(...)")
    if agent.approve is not None and not callable(agent.approve):
        raise UsageError(f"`approve` is a {type(agent.approve).__name__}; allowed: a function of the call")
    if agent.adapter is not None and not isinstance(agent.adapter, str):
        raise UsageError(f"`adapter` is a {type(agent.adapter).__name__}; allowed: the name of one of the host's")
    if agent.tool_choice not in ("auto", "none", "required", *tools):
        names = ", ".join(["auto", "none", "required", *tools])
        raise UsageError(f"`tool_choice` is {str(agent.tool_choice)[:80]!r}; allowed: {names}")
    if agent.tool_choice == "required" and not tools:
        raise UsageError("`tool_choice` is 'required', and there are no tools", hint="pass tools=[...]")
