"""The engine: one thread owns the model; callers submit prompts from any thread and get generations.

A step is: take what was submitted, drop what was cancelled, admit, plan, one forward for all, draw, hand over. What
fails for one request ends that request alone; what ends the thread reaches every consumer.
"""

from __future__ import annotations

import importlib.metadata
import math
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from qwen_agent_kit.backends import Encoder, Prompt, Sampling, SpanBudget
from qwen_agent_kit.engine.adapters import Adapters
from qwen_agent_kit.engine.budget import SpanCounter
from qwen_agent_kit.engine.cache import Cache
from qwen_agent_kit.engine.generation import Generation
from qwen_agent_kit.engine.kv import KVLayout
from qwen_agent_kit.engine.media import MEDIA_BYTES, MediaCache, MediaCounters
from qwen_agent_kit.engine.prompts import PromptReader
from qwen_agent_kit.engine.repetition import RepetitionWatch
from qwen_agent_kit.engine.request import Request, Rules
from qwen_agent_kit.engine.runner import Counters, Runner
from qwen_agent_kit.engine.sampling import Sampler, make_sampler
from qwen_agent_kit.engine.spill import SPILL_BYTES, Spill, folder_key
from qwen_agent_kit.engine.texts import Texts
from qwen_agent_kit.engine.worker import Worker
from qwen_agent_kit.errors import UsageError

if TYPE_CHECKING:
    from qwen_agent_kit.engine.grammar import CompiledGrammar
    from qwen_agent_kit.models import LoadedModel

__all__ = ["Engine"]

DEFAULT_MAX_TOKENS = 2048
"""Where ``Sampling.max_tokens`` is None."""

MOST_QUEUED = 1024
"""Requests that may wait; more are refused with ``queue_full``."""

MOST_PRIORITY = 1000


class Engine:
    """Ids in, ids out, for one loaded model. Thread-safe.

    The thread starts with the first request and ends with ``close`` or when the engine is dropped.

    Args:
        loaded: The model with its tokenizer.
        context: The longest sequence, prompt and output together; the model's own where None.
        kv_bytes: What running and kept sequences may take together; one full context, at least 256 MiB, where None.
        chunk: The positions of one step, which all requests share.
        stop_repetition: Whether endless repetition ends a request.
        drafts: Whether ids are drafted from the conversation where that pays; output is the same without.
        forcing: Whether ids that the grammar leaves no choice about are appended undrawn.
        prefixes: A directory where keys and values of prefixes are kept for other processes; nowhere where None.
        prefix_bytes: What all models together may take there.
        encoder: For the media of prompts.
        media_bytes: What its results may take while no request needs them; a row for each position that ``kv_bytes``
            hold, at most 256 MiB, where None.
        adapters: LoRA adapters that requests may name, each the directory that ``peft`` wrote; read on first use.

    Raises:
        UsageError: For a context or chunk that is not positive, or a name of an adapter that is none.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        *,
        context: int | None = None,
        kv_bytes: int | None = None,
        chunk: int = 512,
        stop_repetition: bool = True,
        drafts: bool = True,
        forcing: bool = True,
        prefixes: Path | None = None,
        prefix_bytes: int = SPILL_BYTES,
        encoder: Encoder | None = None,
        media_bytes: int | None = None,
        adapters: Mapping[str, str | Path] | None = None,
    ) -> None:
        config = loaded.config
        context = config.max_positions if context is None else context
        for name, value in (("context", context), ("chunk", chunk)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise UsageError(f"`{name}` is {value!r}; allowed: a whole number from 1")
        states = getattr(loaded.model, "state_bytes", 0)
        layout = KVLayout(config.layers, config.kv_heads, config.head_dim, loaded.model.dtype, state_bytes=states)
        if kv_bytes is None:
            kv_bytes = max(2**28, (context + 64 + 2 * layout.running_states) * layout.position_bytes)
        self.context = context
        self._loaded = loaded
        self._defaults = Sampling(**loaded.sampling_defaults)
        self._texts = Texts(loaded)
        self._adapters = Adapters(loaded, adapters or {})
        self._prompts = PromptReader(config.vocab_size, media=encoder is not None)
        self._media = None
        if encoder is not None:
            if media_bytes is None:
                media_bytes = min(MEDIA_BYTES, kv_bytes // layout.position_bytes * config.hidden * 4)
            self._media = MediaCache(encoder, config.hidden, media_bytes)
        self._watch, self._forcing = stop_repetition, forcing
        if layout.snapshots_only:  # what a draft or a file would have to be rolled back to is not there
            drafts, prefixes = False, None
        key = _kernel_key(loaded, layout, encoder)
        spill = None if prefixes is None else Spill(prefixes, key, layout, prefix_bytes)
        cache = Cache(layout, kv_bytes, context, spill)
        self._worker = Worker(Runner(loaded.model), cache, chunk=chunk, queued=MOST_QUEUED, drafts=drafts)
        self._finalizer = weakref.finalize(self, self._worker.stop)

    @property
    def counters(self) -> Counters:
        """Forwards and positions since the engine was made."""
        return self._worker.runner.counters

    @property
    def kv_used_bytes(self) -> int:
        """What running and kept sequences take now."""
        return self._worker.cache.used_bytes

    @property
    def media_counters(self) -> MediaCounters:
        """Encoder calls and cache hits since the engine was made."""
        return MediaCounters() if self._media is None else self._media.counters

    def compile(self, grammar: str) -> CompiledGrammar:
        """Compile a grammar text ahead of use; compiled ones are kept.

        Raises:
            SchemaError: Where it is refused.
            EngineError: In a forked child.
        """
        self._worker.require_own()
        return self._texts.grammar(grammar)

    def submit(
        self,
        prompt: Prompt | Sequence[int],
        sampling: Sampling | None = None,
        *,
        grammar: str | None = None,
        budget: SpanBudget | None = None,
        deadline: float | None = None,
        priority: int = 0,
        salt: str = "",
        adapter: str | None = None,
    ) -> Generation:
        """Queue a request; returns at once, but for media, whose encoding it waits for.

        Args:
            prompt: Ids, with media and positions where it is a ``Prompt``.
            sampling: Over the model's defaults.
            grammar: A llguidance grammar text that the output follows.
            budget: Closes a span, such as the thinking, after so many ids.
            deadline: On ``time.monotonic()``. A request that is still queued then fails; one that runs is cancelled.
            priority: Higher ones are admitted first, and take the room of lower ones where there is none; -1000 to
                1000.
            salt: Requests with different salts share no keys and values.
            adapter: The name of one of the engine's adapters. Requests with different ones share a batch, and no keys
                and values.

        Raises:
            UsageError: For a prompt that is refused; ``context_length_exceeded`` where it can never fit,
                ``adapter_not_found`` for an adapter that is not known.
            ModelError: For an adapter whose files are refused.
            SchemaError: For a grammar that is refused, or that ``max_tokens`` cannot fulfil.
            EngineError: ``queue_full``, ``forked`` in a child of the process that made it, or where the engine was
                closed or has died.
        """
        self._worker.require_own()
        _check_types(sampling, grammar, budget, deadline)
        _check_more(priority, salt)
        content = self._prompts.read(prompt, salt, self._adapters.get(adapter))
        sampling = (sampling or Sampling()).over(self._defaults)
        max_tokens = self._most_tokens(len(content.ids), sampling.max_tokens)
        compiled = None if grammar is None else self.compile(grammar)
        if compiled is not None:
            compiled.require(max_tokens)
        rules = Rules(
            sampler=self._sampler(sampling, content.ids),
            max_tokens=max_tokens,
            eos=frozenset(self._loaded.eos),
            grammar=None if compiled is None else compiled.start(),
            span=None if budget is None else SpanCounter(budget),
            text=self._texts.detokenizer(sampling.stop) if sampling.stop else None,
            watch=RepetitionWatch(self._texts.blank) if self._watch else None,
            deadline=deadline,
            forcing=self._forcing,
        )
        if self._media is not None and content.media:
            content = self._media.fill(content)
        self._texts.prepare()
        request = Request(content, rules, priority)
        self._worker.submit(request)
        return Generation(request, self._texts.detokenizer, self._worker.alive, self)

    def require_adapter(self, name: str | None) -> None:
        """Read an adapter ahead of use.

        Raises:
            UsageError: For a name that is not known.
            ModelError: Where its files are refused.
        """
        self._adapters.get(name)

    def ahead(self, prompt: Prompt | Sequence[int], *, salt: str = "", adapter: str | None = None) -> Generation:
        """Compute a prompt while nobody asks for anything, so that one that begins with it finds it there.

        Whoever asks for something ends it, after a step of 64 positions at most; what was computed until then stays.
        The next request that finds it says so in ``usage.ahead_tokens``.

        Returns:
            Its ids say nothing. Dropping or cancelling it ends it, too.

        Raises:
            UsageError: As ``submit``.
            EngineError: As ``submit``.
        """
        self._worker.require_own()
        content = self._prompts.read(prompt, salt, self._adapters.get(adapter))
        self._most_tokens(len(content.ids), 1)
        if self._media is not None and content.media:
            content = self._media.fill(content)
        rules = Rules(sampler=make_sampler(Sampling(), self._loaded.config.vocab_size), max_tokens=1, eos=frozenset())
        request = Request(content, rules, -MOST_PRIORITY, ahead=True)
        self._worker.submit(request)
        return Generation(request, self._texts.detokenizer, self._worker.alive, self)

    def _sampler(self, sampling: Sampling, prompt: np.ndarray) -> Sampler:
        """Benchmarks replace it, to have given ids said."""
        return make_sampler(sampling, self._loaded.config.vocab_size, prompt)

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
        """Stop the threads; requests in flight end with an error. May be called twice."""
        if self._media is not None:
            self._media.close()
        self._finalizer()

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _kernel_key(loaded: LoadedModel, layout: KVLayout, encoder: Encoder | None) -> str:
    """What keys and values depend on: weights, how they are held, what computes with them, and their shape."""
    kernels = getattr(loaded.model, "kernels", "torch")
    versions = (importlib.metadata.version("torch"), importlib.metadata.version("qwen-agent-kit"))
    shape = (layout.layers, layout.kv_heads, layout.head_dim, layout.dtype)
    tower = getattr(encoder, "version", "")
    return folder_key(loaded.digest, getattr(loaded, "scheme", ""), kernels, *versions, *shape, tower)


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


def _check_more(priority: Any, salt: Any) -> None:
    if isinstance(priority, bool) or not isinstance(priority, int) or abs(priority) > MOST_PRIORITY:
        raise UsageError(f"`priority` is {str(priority)[:80]!r}; allowed: a whole number from -1000 to 1000")
    if not isinstance(salt, str) or not salt.isprintable() or len(salt) > 256:
        raise UsageError(f"`salt` is a {type(salt).__name__}; allowed: at most 256 printable characters")
