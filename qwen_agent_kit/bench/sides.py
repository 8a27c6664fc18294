"""Other engines on the same model and the same ids, for measurements side by side.

``open_side`` gives a ``Side``: transformers (``generate``, fresh or with its keys and values carried over) or llama.cpp
(through ``xllamacpp``, its prompt cache on). Each is told its settings, so that a result can name them.
"""

from __future__ import annotations

import importlib.util
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from qwen_agent_kit import foreign
from qwen_agent_kit.bench.compare import SIDES
from qwen_agent_kit.bench.convert import requantised, transformers_dir
from qwen_agent_kit.errors import UsageError

__all__ = ["Answer", "LlamaCpp", "Side", "Transformers", "open_side"]


@dataclass(frozen=True, slots=True)
class Answer:
    """What an engine did with one prompt.

    Args:
        first: Seconds to the first id.
        total: Seconds to the last.
        ids: What it generated; empty where it does not say.
    """

    first: float
    total: float
    ids: tuple[int, ...] = ()


class Side(Protocol):
    """Another engine; used by one thread."""

    @property
    def name(self) -> str: ...

    @property
    def settings(self) -> dict[str, Any]:
        """What it runs with, for the record."""

    def run(
        self, prompt: Sequence[int], new: int, script: Sequence[int] | None = None, *, fresh: bool = False
    ) -> Answer:
        """Generate exactly ``new`` ids.

        Args:
            prompt: All of it, what came before included.
            new: How many ids.
            script: The ids to say, where that can be forced; else they are greedy.
            fresh: Whether nothing may be reused from before.
        """

    def run_many(self, prompts: Sequence[Sequence[int]], new: int) -> float:
        """Generate ``new`` ids for each prompt, all at once; seconds for the whole."""

    def close(self) -> None: ...


def open_side(name: str, model: str | Path, *, threads: int, context: int, slots: int = 1) -> Side:
    """Open one of ``SIDES`` on a model directory or GGUF file; converted files are kept in the cache.

    Args:
        name: ``transformers`` (bf16, a fresh ``generate`` each time), ``transformers-carried`` (the same with
            ``past_key_values`` from call to call), ``llama.cpp-q8_0`` or ``llama.cpp-q4_0``.
        model: Of ours.
        threads: For compute.
        context: Positions that every slot must hold.
        slots: How many sequences it may run at once.

    Raises:
        UsageError: For another name, or where the package is not installed.
    """
    if name not in SIDES:
        raise UsageError(f"the engine is {name!r}; allowed: {', '.join(SIDES)}")
    if name.startswith("transformers"):
        return Transformers(transformers_dir(Path(model)), carried=name.endswith("carried"), threads=threads)
    kind = name.removeprefix("llama.cpp-").upper()
    return LlamaCpp(requantised(Path(model), kind), kind, threads=threads, context=context, slots=slots)


class Transformers:
    """transformers' ``generate`` in bfloat16.

    Args:
        folder: A model directory.
        carried: Whether keys and values are carried from call to call where the prompt goes on from the last.
        threads: For torch; they are the process's.
    """

    def __init__(self, folder: Path, *, carried: bool, threads: int) -> None:
        self._lib = foreign.transformers()
        self.name = "transformers, KV carried over" if carried else "transformers"
        torch.set_num_threads(threads)
        self.settings = {"dtype": "bfloat16", "attention": "sdpa", "threads": threads, "cache": "dynamic"}
        self._model = self._lib.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()
        self._carried = carried
        self._kept: tuple[list[int], Any] | None = None

    def run(
        self, prompt: Sequence[int], new: int, script: Sequence[int] | None = None, *, fresh: bool = False
    ) -> Answer:
        if fresh:
            self._kept = None
        ids = torch.tensor([list(prompt)])
        stamps = _Stamps()
        extra: dict[str, Any] = {}
        if script is not None:
            extra["logits_processor"] = [_Forced(script, len(prompt))]
        if self._carried:
            extra["past_key_values"] = self._past(list(prompt))
        began = time.perf_counter()
        with torch.inference_mode():
            out = self._model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                do_sample=False,
                max_new_tokens=new,
                min_new_tokens=new,
                stopping_criteria=[stamps],
                return_dict_in_generate=True,
                **extra,
            )
        total = time.perf_counter() - began
        if self._carried:
            self._kept = (out.sequences[0].tolist(), out.past_key_values)
        return Answer(stamps.first - began, total, tuple(out.sequences[0, len(prompt) :].tolist()))

    def _past(self, prompt: list[int]) -> Any:
        """The last call's cache where ``prompt`` begins with its ids, else a new one."""
        if self._kept is not None and prompt[: len(self._kept[0])] == self._kept[0]:
            return self._kept[1]
        return self._lib.DynamicCache(config=self._model.config)

    def run_many(self, prompts: Sequence[Sequence[int]], new: int) -> float:
        """One padded batch; prompts of one length need no padding."""
        longest = max(len(prompt) for prompt in prompts)
        ids = torch.tensor([[0] * (longest - len(p)) + list(p) for p in prompts])
        mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts])
        began = time.perf_counter()
        with torch.inference_mode():
            self._model.generate(ids, attention_mask=mask, do_sample=False, max_new_tokens=new, min_new_tokens=new)
        return time.perf_counter() - began

    def close(self) -> None:
        self._kept = None
        del self._model


@dataclass
class _Stamps:
    """A stopping criterion that never stops, and notes when the first id was there."""

    first: float = 0.0

    def __call__(self, input_ids: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        if not self.first:
            self.first = time.perf_counter()
        return torch.zeros(len(input_ids), dtype=torch.bool)


@dataclass
class _Forced:
    """A logits processor that leaves only the scripted id."""

    script: Sequence[int]
    prompt: int

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        at = input_ids.shape[1] - self.prompt
        forced = torch.full_like(scores, -torch.inf)
        forced[:, self.script[at]] = 0
        return forced


@dataclass
class _Client:
    """Notes what llama.cpp's server streams, in process."""

    first: float = 0.0
    error: Any = None

    def __call__(self, chunk: Any) -> None:
        if not self.first:
            self.first = time.perf_counter()
        if isinstance(chunk, dict) and "error" in chunk:
            self.error = chunk


class LlamaCpp:
    """llama.cpp's server in this process, its prompt cache on.

    It cannot be made to say given ids, so ``script`` has no effect: let its own greedy ids (``discover``) be the script
    of the others.

    Args:
        path: A GGUF file.
        kind: Its quantisation, for the record.
        threads: For decoding and for prompts.
        context: Positions of one slot.
        slots: Sequences at once.
        batch: Logical batch; the physical one is at most 512.
        flash: Whether flash attention is on.
    """

    def __init__(
        self,
        path: Path,
        kind: str,
        *,
        threads: int,
        context: int,
        slots: int = 1,
        batch: int = 2048,
        flash: bool = True,
    ) -> None:
        if importlib.util.find_spec("xllamacpp") is None:
            raise UsageError("`xllamacpp` is needed here and is not installed", hint="pip install xllamacpp")
        import xllamacpp

        self.name = f"llama.cpp {kind}"
        params = xllamacpp.CommonParams()
        params.model.path = str(path)
        params.n_ctx, params.n_parallel = context * slots, slots
        params.n_batch, params.n_ubatch = batch, min(batch, 512)
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
        kinds = xllamacpp.llama_flash_attn_type
        params.flash_attn_type = kinds.LLAMA_FLASH_ATTN_TYPE_ENABLED if flash else kinds.LLAMA_FLASH_ATTN_TYPE_DISABLED
        params.cache_ram_mib = 0  # what a slot holds is reused; a cold run must be cold
        params.verbosity = -1
        params.warmup = True
        self.settings = {
            "file": kind,
            "threads": threads,
            "n_batch": batch,
            "n_ubatch": min(batch, 512),
            "flash_attn": flash,
            "mmap": True,
            "cache_prompt": True,
            "slots": slots,
        }
        self._server = xllamacpp.Server(params)

    def run(
        self, prompt: Sequence[int], new: int, script: Sequence[int] | None = None, *, fresh: bool = False
    ) -> Answer:
        del script  # see the class
        client = _Client()
        began = time.perf_counter()
        request = {**_request(prompt, new), "stream": True, "cache_prompt": not fresh}
        self._server.handle_completions(request, client)
        total = time.perf_counter() - began
        if client.error is not None:
            raise UsageError(f"llama.cpp refused the request: {str(client.error)[:200]}")
        return Answer(client.first - began, total)

    def discover(self, prompt: Sequence[int], new: int, *, fresh: bool) -> tuple[int, ...]:
        """The ids that ``run`` generates; slower, because it asks for logprobs."""
        found = self._server.handle_completions({**_request(prompt, new), "logprobs": 1, "cache_prompt": not fresh})
        return tuple(entry["id"] for entry in found["choices"][0]["logprobs"]["content"])

    def likeliest(self, prompt: Sequence[int], most: int) -> list[tuple[int, float]]:
        """The ids that it thinks likeliest to come next, with their log-probabilities."""
        found = self._server.handle_completions({**_request(prompt, 1), "logprobs": most})
        return [
            (int(e["id"]), float(e["logprob"])) for e in found["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
        ]

    def run_many(self, prompts: Sequence[Sequence[int]], new: int) -> float:
        threads = [threading.Thread(target=self._server.handle_completions, args=(_request(p, new),)) for p in prompts]
        began = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return time.perf_counter() - began

    def close(self) -> None:
        del self._server


def _request(prompt: Sequence[int], new: int) -> dict[str, Any]:
    return {"prompt": list(prompt), "n_predict": new, "cache_prompt": True, "temperature": 0.0, "ignore_eos": True}
