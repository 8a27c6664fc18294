"""The engine: one thread owns the model; callers submit prompts from any thread and get generations.

A step is: take what was submitted, admit, plan, and for each planned piece of work run the model, draw, hand over. An
exception inside the work of one request ends that request alone; one outside ends all, and no consumer is left waiting.
"""

from __future__ import annotations

import math
import queue
import threading
import time
import weakref
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from qwen_agent_kit.backends import Prompt, Sampling, SpanBudget
from qwen_agent_kit.engine.budget import SpanCounter
from qwen_agent_kit.engine.cache import Cache
from qwen_agent_kit.engine.generation import Generation
from qwen_agent_kit.engine.kv import KVLayout
from qwen_agent_kit.engine.prompts import PromptReader
from qwen_agent_kit.engine.repetition import RepetitionWatch
from qwen_agent_kit.engine.request import Request, Rules
from qwen_agent_kit.engine.runner import Counters, Runner
from qwen_agent_kit.engine.sampling import make_sampler
from qwen_agent_kit.engine.scheduler import Scheduler, Work
from qwen_agent_kit.engine.texts import Texts
from qwen_agent_kit.errors import EngineError, UsageError

if TYPE_CHECKING:
    from qwen_agent_kit.engine.grammar import CompiledGrammar
    from qwen_agent_kit.models import LoadedModel

__all__ = ["Engine"]

DEFAULT_MAX_TOKENS = 2048
"""Where ``Sampling.max_tokens`` is None."""

MOST_RUNNING = 64
MOST_QUEUED = 1024


class Engine:
    """Ids in, ids out, for one loaded model. Thread-safe.

    The thread starts with the first request and ends with ``close`` or when the engine is dropped.

    Args:
        loaded: The model with its tokenizer.
        context: The longest sequence, prompt and output together; the model's own where None.
        kv_bytes: What running and kept sequences may take together; one full context, at least 256 MiB, where None.
        chunk: The most positions of one forward.
        stop_repetition: Whether endless repetition ends a request.

    Raises:
        UsageError: For a context or chunk that is not positive.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        *,
        context: int | None = None,
        kv_bytes: int | None = None,
        chunk: int = 512,
        stop_repetition: bool = True,
    ) -> None:
        config = loaded.config
        context = config.max_positions if context is None else context
        for name, value in (("context", context), ("chunk", chunk)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise UsageError(f"`{name}` is {value!r}; allowed: a whole number from 1")
        layout = KVLayout(config.layers, config.kv_heads, config.head_dim, loaded.model.dtype)
        if kv_bytes is None:
            kv_bytes = max(2**28, (context + 64) * layout.position_bytes)
        self.context = context
        self._loaded = loaded
        self._defaults = Sampling(**loaded.sampling_defaults)
        self._texts = Texts(loaded)
        self._prompts = PromptReader(config.vocab_size)
        self._watch = stop_repetition
        self._worker = _Worker(Runner(loaded.model), Cache(layout, kv_bytes, context), chunk)
        self._finalizer = weakref.finalize(self, self._worker.stop)

    @property
    def counters(self) -> Counters:
        """Forwards and positions since the engine was made."""
        return self._worker.runner.counters

    @property
    def kv_used_bytes(self) -> int:
        """What running and kept sequences take now."""
        return self._worker.cache.used_bytes

    def compile(self, grammar: str) -> CompiledGrammar:
        """Compile a grammar text ahead of use; compiled ones are kept.

        Raises:
            SchemaError: Where it is refused.
        """
        return self._texts.grammar(grammar)

    def submit(
        self,
        prompt: Prompt | Sequence[int],
        sampling: Sampling | None = None,
        *,
        grammar: str | None = None,
        budget: SpanBudget | None = None,
        deadline: float | None = None,
    ) -> Generation:
        """Queue a request; returns at once.

        Args:
            prompt: Ids, with media and positions where it is a ``Prompt``.
            sampling: Over the model's defaults.
            grammar: A llguidance grammar text that the output follows.
            budget: Closes a span, such as the thinking, after so many ids.
            deadline: On ``time.monotonic()``. A request that is still queued then fails; one that runs is cancelled.

        Raises:
            UsageError: For a prompt that is refused; ``context_length_exceeded`` where it can never fit.
            SchemaError: For a grammar that is refused, or that ``max_tokens`` cannot fulfil.
            EngineError: ``queue_full``, or where the engine was closed or has died.
        """
        _check_types(sampling, grammar, budget, deadline)
        content = self._prompts.read(prompt)
        sampling = (sampling or Sampling()).over(self._defaults)
        max_tokens = self._most_tokens(len(content.ids), sampling.max_tokens)
        compiled = None if grammar is None else self.compile(grammar)
        if compiled is not None:
            compiled.require(max_tokens)
        rules = Rules(
            sampler=make_sampler(sampling, self._loaded.config.vocab_size, content.ids),
            max_tokens=max_tokens,
            eos=frozenset(self._loaded.eos),
            grammar=None if compiled is None else compiled.start(),
            span=None if budget is None else SpanCounter(budget),
            text=self._texts.detokenizer(sampling.stop) if sampling.stop else None,
            watch=RepetitionWatch(self._texts.blank) if self._watch else None,
            deadline=deadline,
        )
        self._texts.prepare()
        request = Request(content, rules)
        self._worker.submit(request)
        return Generation(request, self._texts.detokenizer, self._worker.alive, self)

    def _most_tokens(self, prompt: int, asked: int | None) -> int:
        most = self._worker.cache.most
        if prompt >= most:
            raise UsageError(
                f"the prompt has {prompt} tokens; allowed: at most {most - 1} (context {self.context}, and what the KV "
                "budget holds)",
                hint="shorten the conversation, or open the model with a larger `context` where it was trained for one",
                code="context_length_exceeded",
            )
        return min(DEFAULT_MAX_TOKENS if asked is None else asked, most - prompt)

    def close(self) -> None:
        """Stop the thread; requests in flight end with an error. May be called twice."""
        self._finalizer()

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _check_types(sampling: Any, grammar: Any, budget: Any, deadline: Any) -> None:
    """Refuse at submission what would otherwise fail on the engine's thread."""
    real = isinstance(deadline, int | float) and not isinstance(deadline, bool) and not math.isnan(deadline)
    wrong = {
        "sampling": (sampling, isinstance(sampling, Sampling), "Sampling(...)"),
        "grammar": (grammar, isinstance(grammar, str), "a grammar text"),
        "budget": (budget, isinstance(budget, SpanBudget), "SpanBudget(...)"),
        "deadline": (deadline, real, "a number on time.monotonic()"),
    }
    for name, (value, fits, allowed) in wrong.items():
        if value is not None and not fits:
            raise UsageError(f"`{name}` is a {type(value).__name__}; allowed: {allowed}")


class _Worker:
    """The thread and what it owns. Knows the engine's parts, not the engine, so that a dropped engine can end it."""

    def __init__(self, runner: Runner, cache: Cache, chunk: int) -> None:
        self.runner, self.cache = runner, cache
        self._scheduler = Scheduler(cache, chunk=chunk, most=MOST_RUNNING)
        self._inbox: queue.SimpleQueue[Request | None] = queue.SimpleQueue()
        self._lock = threading.RLock()  # a dropped engine may be collected, and stop us, while we hold it
        self._thread: threading.Thread | None = None
        self._ended: EngineError | None = None

    # --- any thread ------------------------------------------------------------------------------------------------

    def submit(self, request: Request) -> None:
        with self._lock:
            if self._ended is not None:
                raise EngineError(self._ended.message, code=self._ended.code) from self._ended
            if self._inbox.qsize() + self._scheduler.queued >= MOST_QUEUED:
                raise EngineError(f"{MOST_QUEUED} requests are waiting already", code="queue_full", hint="try later")
            self._inbox.put(request)
            if self._thread is None:
                self._thread = threading.Thread(target=self._main, name="qak-engine", daemon=True)
                self._thread.start()

    def alive(self) -> bool:
        """Whether the thread that serves requests is running."""
        return self._thread is not None and self._thread.is_alive()

    def stop(self) -> None:
        with self._lock:
            self._ended = self._ended or EngineError("the engine was closed", code="engine_closed")
        self._inbox.put(None)
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()

    # --- the engine's thread -----------------------------------------------------------------------------------------

    def _main(self) -> None:
        try:
            with torch.inference_mode():
                while self._receive():
                    self._step()
        except BaseException as error:  # noqa: BLE001  # whatever ends this thread must reach every consumer
            self._end(error)
        else:
            self._end(None)

    def _end(self, error: BaseException | None) -> None:
        with self._lock:
            if error is not None:
                self._ended = EngineError(f"the engine's thread died of {type(error).__name__}", code="engine_dead")
                self._ended.__cause__ = error
            ended = self._ended or EngineError("the engine was closed", code="engine_closed")
        left = list(self._scheduler.requests)
        while not self._inbox.empty():
            if (request := self._inbox.get()) is not None:
                left.append(request)
        for request in left:
            request.fail(EngineError(ended.message, code=ended.code))
        self.cache.clear()

    def _receive(self) -> bool:
        """Take what was submitted; waits only where there is nothing else to do. False for the end."""
        while not (self._scheduler.busy and self._inbox.empty()):
            request = self._inbox.get()
            if request is None:
                return False
            self._scheduler.add(request)
        return True

    def _step(self) -> None:
        for request, lease in self._scheduler.admit():
            try:
                request.start(lease)
            except Exception as error:  # noqa: BLE001  # it belongs to this request alone
                request.fail(error)
            self._retire(request)
        for work in self._scheduler.plan():
            self._run(work)

    def _run(self, work: Work) -> None:
        request = work.request
        if request.cancelled or request.late:
            request.finish("cancelled")
        else:
            try:
                self._compute(work)
            except Exception as error:  # noqa: BLE001  # it belongs to this request alone
                request.fail(error)
        self._retire(request)

    def _compute(self, work: Work) -> None:
        request = work.request
        assert request.live is not None, "planned requests have a sequence"
        began = time.perf_counter()
        logits = self.runner.step(request.live, work.count)
        request.computed(work.count, time.perf_counter() - began)
        if logits is not None:
            request.take(logits)

    def _retire(self, request: Request) -> None:
        if request.done:
            self._scheduler.retire(request)
