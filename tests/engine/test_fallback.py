"""Architectures that only transformers knows, over the engine's cache: greedy float32 equals transformers' generate."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from small_decoder import byte_tokenizer

from qwen_agent_kit import foreign
from qwen_agent_kit.backends import Sampling
from qwen_agent_kit.engine import Engine
from qwen_agent_kit.engine.kv import KVLayout, SequenceKV
from qwen_agent_kit.engine.snapshots import MOST_STATES, Snapshots
from qwen_agent_kit.models import ForeignDecoder, load_model

VOCAB = 260
SIZES: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
    "tie_word_embeddings": False,
}
DELTA = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "head_dim": 16,
    "layer_types": ["linear_attention", "full_attention", "linear_attention"],
}
EXPERTS = {
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 32,
}
NO_HEADS = {
    "num_attention_heads": None,
    "num_key_value_heads": None,
    "intermediate_size": None,
    "max_position_embeddings": None,
}
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "windows and softcap": ("Gemma2", {"head_dim": 16, "sliding_window": 16}),
    "experts": ("Mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "sinks and experts": ("GptOss", {"num_local_experts": 4, "head_dim": 16, "sliding_window": 16}),
    "norms elsewhere": ("Olmo2", {}),
    "delta net and experts": ("Qwen3Next", {**DELTA, **EXPERTS}),
    "delta net": ("Qwen3_5Text", DELTA),
    "no attention at all": (
        "Mamba2",
        {**NO_HEADS, "num_heads": 6, "head_dim": 16, "state_size": 8, "n_groups": 2, "chunk_size": 16},
    ),
}
RECURRENT = ("delta net", "delta net and experts", "no attention at all")


class Pair:
    """One tiny random checkpoint, opened by transformers and by us."""

    def __init__(self, folder: Path, name: str) -> None:
        transformers = foreign.transformers()
        kind, own = KINDS[name]
        torch.manual_seed(0)
        fields = {key: value for key, value in {**SIZES, **own}.items() if value is not None or "token_id" in key}
        config = getattr(transformers, f"{kind}Config")(**fields)
        self.theirs = transformers.AutoModelForCausalLM.from_config(config).float().eval()
        with torch.no_grad():
            for label, parameter in self.theirs.named_parameters():  # away from near-ties
                if parameter.ndim > 1 and "conv" not in label:
                    parameter.normal_(std=0.15)
        self.theirs.save_pretrained(folder)
        (folder / "tokenizer.json").write_text(byte_tokenizer())
        self.folder = folder
        self.ours = load_model(folder, quant="fp32")

    def expected(self, prompt: list[int], n: int) -> list[int]:
        ids = torch.tensor([prompt])
        with torch.no_grad():
            out = self.theirs.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=n)
        found: list[int] = out[0, len(prompt) :].tolist()
        return found


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Pair]:
    return {name: Pair(tmp_path_factory.mktemp("foreign"), name) for name in KINDS}


def prompts_of(n: int, seed: int = 0) -> list[list[int]]:
    choice = random.Random(seed)
    return [[choice.randrange(256) for _ in range(choice.randrange(5, 70))] for _ in range(n)]


def greedy(n: int) -> Sampling:
    return Sampling(temperature=0, max_tokens=n)


@pytest.mark.parametrize("name", sorted(KINDS))
def test_greedy_equals_transformers(pairs: dict[str, Pair], name: str) -> None:
    """Cold, warm, forked in the middle of the output, and all at once: what transformers' ``generate`` gives."""
    pair, n = pairs[name], 16
    assert isinstance(pair.ours.model, ForeignDecoder)
    prompts = prompts_of(3)
    answers = [pair.expected(prompt, n) for prompt in prompts]
    with Engine(pair.ours, chunk=23, stop_repetition=False) as engine:
        for prompt, expected in zip(prompts, answers, strict=True):
            assert list(engine.submit(prompt, greedy(n))) == expected
            warm = engine.submit(prompt, greedy(n))
            assert list(warm) == expected
            assert warm.usage.cached_tokens == len(prompt) - 1
            forked = engine.submit([*prompt, *expected[: n // 2]], greedy(n - n // 2))
            assert list(forked) == expected[n // 2 :]
        together = [engine.submit(prompt, greedy(n)) for prompt in prompts]
        assert [list(generation) for generation in together] == answers


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    name=st.sampled_from(["windows and softcap", "delta net"]),
    chunk=st.integers(1, 60),
    cuts=st.lists(st.integers(1, 60), min_size=1, max_size=3),
)
def test_any_chunking_and_interleaving_gives_the_same(
    pairs: dict[str, Pair], name: str, chunk: int, cuts: list[int]
) -> None:
    """Any chunk size, over prompts that share any beginning and run at once."""
    pair = pairs[name]
    prompt = [*prompts_of(1, 7)[0], 1, 2, 3]
    prompts = [prompt[:cut] + [cut] * 3 for cut in cuts] + [prompt]
    with Engine(pair.ours, chunk=chunk) as engine:
        generations = [engine.submit(p, greedy(6)) for p in prompts]
        for p, generation in zip(prompts, generations, strict=True):
            assert list(generation) == pair.expected(p, 6)


@pytest.mark.parametrize("name", RECURRENT)
def test_a_loop_computes_what_is_new_and_nothing_twice(pairs: dict[str, Pair], name: str) -> None:
    """Each step extends the conversation: its recurrent state goes on from where the last generation ended."""
    pair = pairs[name]
    with Engine(pair.ours, chunk=32, stop_repetition=False) as engine:
        prompt, before, output = prompts_of(1, 5)[0], 0, []
        for step in range(6):
            generation = engine.submit(prompt, greedy(8))
            new = len(prompt) - before - len(output) + 1 if step else len(prompt)
            before, output = len(prompt), list(generation)
            assert output == pair.expected(prompt, 8)
            assert generation.usage.computed_tokens == new + len(output) - 1
            prompt = [*prompt, *output, *prompts_of(1, 50 + step)[0][:20]]


def test_a_beginning_is_reused_once_its_state_was_kept(pairs: dict[str, Pair]) -> None:
    """A prompt that parts where no state is kept computes all, and says why; the next one with that beginning does
    not, because the state was kept where the two parted."""
    pair = pairs["delta net"]
    beginning = prompts_of(1, 3)[0][:40] + [9] * 8
    first, second, third = ([*beginning, i, *prompts_of(1, 60 + i)[0][:20]] for i in range(3))
    with Engine(pair.ours, stop_repetition=False) as engine:
        cached = []
        for prompt in (first, second, third):
            generation = engine.submit(prompt, greedy(6))
            assert list(generation) == pair.expected(prompt, 6)
            cached.append(generation.usage.cached_tokens)
    assert cached == [0, 0, len(beginning)]


def test_states_count_in_the_budget(pairs: dict[str, Pair]) -> None:
    """Room for one running sequence's states and context: one runs after the other, all are right, none is over."""
    pair = pairs["delta net"]
    states = pair.ours.model.state_bytes
    layout = KVLayout(pair.ours.config.layers, pair.ours.config.kv_heads, pair.ours.config.head_dim, state_bytes=states)
    budget = (2 * layout.running_states + 256) * layout.position_bytes
    prompts = prompts_of(6, 11)
    with Engine(pair.ours, context=128, kv_bytes=budget, stop_repetition=False) as engine:
        generations = [engine.submit(prompt, greedy(8)) for prompt in prompts]
        for prompt, generation in zip(prompts, generations, strict=True):
            assert list(generation) == pair.expected(prompt, 8)
            assert engine.kv_used_bytes <= budget
        assert engine.kv_used_bytes >= states


def test_no_drafts_and_no_files_with_recurrent_states(pairs: dict[str, Pair], tmp_path: Path) -> None:
    """A state cannot be rolled back or written block by block: nothing is drafted, nothing is written."""
    with Engine(pairs["delta net"].ours, prefixes=tmp_path / "kept", stop_repetition=False) as engine:
        prompt = [1, 2, 3, 4, 5, 6, 7, 8] * 30
        generation = engine.submit(prompt, greedy(24))
        list(generation)
        assert generation.usage.drafted_tokens == 0
    assert not (tmp_path / "kept").exists()


def test_snapshots_keep_the_first_and_the_latest() -> None:
    """At most MOST_STATES: the beginning that many share, the latest marks, and the current one."""
    kept = Snapshots()
    kept.begin(0, range(10, 100, 10))
    for at in range(5, 100, 5):
        kept.put(at, at)
        assert len(kept) <= MOST_STATES
    assert [at for at in range(100) if kept.at(at)] == [10, 80, 90, 95]
    assert (kept.before(94), kept.before(9), kept.split(10, 30), kept.split(90, 8)) == (90, 0, 10, 8)


@settings(max_examples=60, deadline=None)
@given(ends=st.lists(st.integers(1, 40), min_size=1, max_size=12), cut=st.integers(0, 200))
def test_a_copy_has_no_state_beyond_what_it_copied(ends: list[int], cut: int) -> None:
    """``copy_from`` takes states after at most so many positions, and the source keeps its own."""
    layout = KVLayout(0, 1, 1, state_bytes=8)
    source, copy = SequenceKV(layout), SequenceKV(layout)
    at = 0
    marks = []
    for end in ends:
        at += end
        marks.append(at)
    source.snapshots.begin(0, marks)
    for mark in marks:
        source.put_state(mark, mark)
    before = [m for m in marks if source.state(m)]
    copy.copy_from(source, cut)
    assert [m for m in marks if copy.state(m)] == [m for m in before if m <= cut]
    assert [m for m in marks if source.state(m)] == before
