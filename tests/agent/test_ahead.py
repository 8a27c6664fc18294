"""Between the turns of a chat the engine computes what the next turn begins with."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from qwen_agent_kit import Agent, Host, Sampling
from qwen_agent_kit.testing.models import CHATML_TEMPLATE, tiny_model_dir

PROMPTS = "add_generation_prompt -%}\n{{- '<|im_start|>assistant\\n"
REWRITES = CHATML_TEMPLATE.replace(
    "if message.reasoning_content", "if message.reasoning_content and loop.last"
).replace(PROMPTS, PROMPTS + "<think>\\n")
"""As Qwen3's: what was thought in earlier turns is left out."""


def second_turn(folder: Path) -> Any:
    """The usage and text of a second turn that begins once nothing is computed any more."""
    with Host(quant="fp32", cache=False, prefixes=False) as host:
        agent = Agent(str(folder), host=host, thinking=8, sampling=Sampling(max_tokens=60, temperature=0.0))
        chat = agent.chat()
        chat.run("Tell me of rivers, bridges and the sea, at length. " * 8)
        engine = host.open(str(folder)).engine
        until = time.monotonic() + 20
        while engine._worker._scheduler.busy or not engine._worker._inbox.empty():
            assert time.monotonic() < until, "it did not end"
            time.sleep(0.01)
        result = chat.run("And now?")
    return result.usage, result.output


def test_a_template_that_rewrites_history_costs_no_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second turn finds the first as the template now has it, all but its own message; without it the answer is
    computed again; what is said is the same."""
    assert REWRITES.count("loop.last") == CHATML_TEMPLATE.count("loop.last") + 1
    assert REWRITES.count("<think>") == CHATML_TEMPLATE.count("<think>") + 1
    folder = tiny_model_dir(tmp_path, layers=1, hidden=16, heads=2, kv_heads=1, template=REWRITES)
    on, text = second_turn(folder)
    monkeypatch.setenv("QAK_AHEAD", "off")
    off, same = second_turn(folder)
    assert text == same
    assert on.prompt_tokens == off.prompt_tokens
    assert off.ahead_tokens == 0
    assert on.ahead_tokens > 30
    assert on.cached_tokens >= off.cached_tokens + 30
    assert on.prompt_tokens - on.cached_tokens < 30


def test_single_runs_compute_nothing_ahead(tmp_path: Path) -> None:
    """``Agent.run`` has no next turn."""
    folder = tiny_model_dir(tmp_path, layers=1, hidden=16, heads=2, kv_heads=1, template=REWRITES)
    with Host(quant="fp32", cache=False, prefixes=False) as host:
        agent = Agent(str(folder), host=host, sampling=Sampling(max_tokens=8, temperature=0.0))
        usage = agent.run("Hello").usage
        engine = host.open(str(folder)).engine
        assert engine.counters.positions == usage.computed_tokens + (usage.drafted_tokens - usage.accepted_tokens)
        time.sleep(0.1)
        assert not engine._worker._scheduler.busy
