"""What a step costs beside the model's own work, with a tiny real engine and the store: early and late in one run."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from qwen_agent_kit.agent import Agent, Limits
from qwen_agent_kit.backends import Capabilities, ChatRequest, Delta, Sampling
from qwen_agent_kit.bench.rows import Row
from qwen_agent_kit.engine import Engine
from qwen_agent_kit.events import StepDone
from qwen_agent_kit.host import plan
from qwen_agent_kit.host.local import LocalChatModel
from qwen_agent_kit.models import load_model
from qwen_agent_kit.store import Store
from qwen_agent_kit.testing.models import tiny_model_dir

__all__ = ["engine_steps"]

EARLY = 20
WINDOW = 20


@dataclass
class _Calling:
    """A local model that has to call a tool in every step, and notes the time that is not the loop's own.

    Args:
        model: The model; its renderer and its decoder are timed from now on.
        decoder: What it computes with.
    """

    model: LocalChatModel
    decoder: Any
    template_ms: float = 0.0
    layers_ms: float = 0.0

    def __post_init__(self) -> None:
        renderer: Any = self.model.renderer
        render, forward = renderer.render, self.decoder.forward_batch

        def timed_render(*arguments: Any, **options: Any) -> Any:
            rendered = render(*arguments, **options)
            self.template_ms += rendered.template_ms
            return rendered

        def timed_forward(*arguments: Any, **options: Any) -> Any:
            start = time.perf_counter()
            try:
                return forward(*arguments, **options)
            finally:
                self.layers_ms += (time.perf_counter() - start) * 1000

        renderer.render, self.decoder.forward_batch = timed_render, timed_forward

    @property
    def name(self) -> str:
        return self.model.name

    @property
    def caps(self) -> Capabilities:
        return self.model.caps

    def stream(self, request: ChatRequest) -> Iterator[Delta]:
        return self.model.stream(replace(request, tool_choice="required"))

    def check(self, request: ChatRequest) -> None:
        self.model.check(request)

    def close(self) -> None:
        self.model.close()


@dataclass(frozen=True, slots=True)
class _Step:
    """Milliseconds of one step: the template's text, the layers, and what is left of the whole."""

    template: float
    layers: float
    own: float


def engine_steps(steps: int = 1_000, model: str | Path | None = None) -> list[Row]:
    """Grow a stored conversation to ``steps`` tool calls and compare a late step with an early one.

    Args:
        steps: How long the conversation gets.
        model: A directory or GGUF file; the smallest random one where None, since its own work is not what is measured.

    Returns:
        The loop's own milliseconds per step (through prompt, prefix lookup, grammar, events and store; without the
        template's text and the layers), their ratio, and the template's share apart.
    """
    with tempfile.TemporaryDirectory() as folder, Store(Path(folder) / "bench.sqlite3") as store:
        if model is None:
            model = tiny_model_dir(Path(folder) / "tiny", layers=1, hidden=16, heads=2, kv_heads=1, context=2**17)
        loaded = load_model(Path(model), quant="fp32", device="cpu", cache=None)
        engine = Engine(loaded)
        try:
            local = LocalChatModel("tiny", loaded, engine, plan(model, quant="fp32"))
            found = list(_steps(_Calling(local, loaded.model), store, steps))
        finally:
            engine.close()
    early, late = (_around(found, EARLY), _around(found, len(found)))
    return [
        Row(f"a step at step {EARLY}, tiny engine and store", early.own, "ms/step"),
        Row(f"a step at step {len(found)}, tiny engine and store", late.own, "ms/step"),
        Row("the late step over the early one", late.own / early.own, "ratio", 1.5),
        Row("the same with the layers", (late.own + late.layers) / (early.own + early.layers), "ratio", 1.5),
        Row(f"the template's text at step {EARLY}", early.template, "ms/step"),
        Row(f"the template's text at step {len(found)}", late.template, "ms/step"),
        Row(f"the layers at step {EARLY}", early.layers, "ms/step"),
        Row(f"the layers at step {len(found)}", late.layers, "ms/step"),
    ]


def _steps(calling: _Calling, store: Store, steps: int) -> Iterator[_Step]:
    def tick() -> str:
        """Tick."""
        return "ok"

    limits = Limits(steps=steps, tool_calls=None, same_call=None)
    agent = Agent(calling, tools=[tick], limits=limits, sampling=Sampling(max_tokens=24, temperature=0.0))
    last = time.perf_counter()
    for event in agent.chat("bench", store=store).stream("go"):
        if not isinstance(event, StepDone):
            continue
        now = time.perf_counter()
        template, layers = calling.template_ms, calling.layers_ms
        calling.template_ms = calling.layers_ms = 0.0
        yield _Step(template, layers, (now - last) * 1000 - template - layers)
        last = time.perf_counter()


def _around(found: list[_Step], end: int) -> _Step:
    """The lower quartile, figure by figure, of the window around step ``end``: what it costs on a quiet machine."""
    last = min(len(found), end + WINDOW // 2)
    some = found[max(0, last - WINDOW) : last]

    def low(values: Iterable[float]) -> float:
        return statistics.quantiles(values, n=4)[0]

    return _Step(low(s.template for s in some), low(s.layers for s in some), low(s.own for s in some))
