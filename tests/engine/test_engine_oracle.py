"""The engine on real decoders, against transformers: greedy output in float32 is equal id for id."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from small_decoder import EOS, VOCAB, byte_tokenizer

from qwen_agent_kit import foreign
from qwen_agent_kit.backends import Sampling
from qwen_agent_kit.engine import Engine
from qwen_agent_kit.models import LoadedModel, load_model

SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "eos_token_id": None,
    "bos_token_id": None,
    "pad_token_id": None,
}
EXPERTS = {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {"tie_word_embeddings": False}),
    "qwen2": ("Qwen2", {"tie_word_embeddings": True}),
    "qwen3": ("Qwen3", {"head_dim": 24}),
    "qwen2-moe": ("Qwen2Moe", {**EXPERTS, "shared_expert_intermediate_size": 48}),
    "qwen3-moe": ("Qwen3Moe", {**EXPERTS, "head_dim": 16, "tie_word_embeddings": True}),
}


class Pair:
    """One tiny random checkpoint, opened by transformers and by us."""

    def __init__(self, folder: Path, name: str, **fields: Any) -> None:
        transformers = foreign.transformers()
        kind, own = KINDS[name]
        torch.manual_seed(0)
        config = getattr(transformers, f"{kind}Config")(**{**SIZES, **own, **fields})
        self.theirs = getattr(transformers, f"{kind}ForCausalLM")(config).float().eval()
        with torch.no_grad():
            for parameter in self.theirs.parameters():  # away from the near-ties that tiny initial weights give
                parameter.normal_(std=0.15) if parameter.ndim > 1 else parameter.add_(torch.randn_like(parameter) / 9)
        self.theirs.save_pretrained(folder)
        (folder / "tokenizer.json").write_text(byte_tokenizer())
        self.ours: LoadedModel = load_model(folder, quant="fp32")

    def expected(self, prompt: list[int], n: int) -> list[int]:
        ids = torch.tensor([prompt])
        with torch.no_grad():
            out = self.theirs.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=n)
        return out[0, len(prompt) :].tolist()


@pytest.fixture(scope="module", params=sorted(KINDS))
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return Pair(tmp_path_factory.mktemp(request.param), request.param)


@pytest.fixture(scope="module")
def qwen3(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return Pair(tmp_path_factory.mktemp("qwen3"), "qwen3")


def prompts_of(n: int, seed: int = 0) -> list[list[int]]:
    choice = random.Random(seed)
    return [[choice.randrange(256) for _ in range(choice.randrange(1, 90))] for _ in range(n)]


def greedy(n: int) -> Sampling:
    return Sampling(temperature=0, max_tokens=n)


def check(pair: Pair, prompts: list[list[int]], n: int) -> None:
    with Engine(pair.ours, chunk=29, stop_repetition=False) as engine:
        for prompt in prompts:
            expected = pair.expected(prompt, n)
            cold = engine.submit(prompt, greedy(n))
            assert list(cold) == expected
            warm = engine.submit(prompt, greedy(n))
            assert list(warm) == expected
            assert warm.usage.cached_tokens == len(prompt) - 1
            forked = engine.submit([*prompt, *expected[: n // 2]], greedy(n - n // 2))
            assert list(forked) == expected[n // 2 :]
        together = [engine.submit(prompt, greedy(n)) for prompt in prompts]
        assert [list(generation) for generation in together] == [pair.expected(prompt, n) for prompt in prompts]


def test_greedy_equals_transformers(pair: Pair) -> None:
    """Cold, warm, forked in the middle and all at once: what transformers' ``generate`` gives."""
    check(pair, prompts_of(3), 24)


@pytest.mark.full
def test_greedy_equals_transformers_at_length(pair: Pair) -> None:
    """The same for 20 prompts of 64 tokens each."""
    check(pair, prompts_of(20, 1), 64)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    chunk=st.integers(1, 100),
    cuts=st.lists(st.integers(1, 60), min_size=1, max_size=4),
    seed=st.integers(0, 3),
)
def test_any_chunking_and_interleaving_gives_the_same(qwen3: Pair, chunk: int, cuts: list[int], seed: int) -> None:
    """Any chunk size, over prompts that share any beginning and run at once."""
    prompt = prompts_of(8, 7)[seed] + [1, 2, 3]
    prompts = [prompt[:cut] + [cut] * 3 for cut in cuts] + [prompt]
    with Engine(qwen3.ours, chunk=chunk) as engine:
        generations = [engine.submit(p, greedy(8)) for p in prompts]
        for p, generation in zip(prompts, generations, strict=True):
            assert list(generation) == qwen3.expected(p, 8)


GRAMMAR = 'start: "{" ("abc" | "abd") /[0-9]{2,6}/ ", name: " /[a-e]{3,20}/ "}"'
POSITION = 2 * 3 * 2 * 24 * 4
"""Bytes of one position of the qwen3 here."""


@pytest.fixture(scope="module")
def ending(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """One whose turns end: grammars need an id for that."""
    return Pair(tmp_path_factory.mktemp("ending"), "qwen3", eos_token_id=EOS)


def masked(pair: Pair, state: Any, prompt: list[int], n: int) -> list[int]:
    """transformers' logits, whole sequence by whole sequence, the likeliest of what the grammar allows."""
    ids = list(prompt)
    while len(ids) < len(prompt) + n and ids[-1] != EOS and not state.stopped:
        with torch.no_grad():
            logits = pair.theirs(torch.tensor([ids])).logits[0, -1].clone()
        state.mask(logits, n - (len(ids) - len(prompt)))
        ids.append(int(logits.argmax()))
        state.accept(ids[-1])
    return ids[len(prompt) :]


@pytest.mark.full
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    asked=st.lists(
        st.tuples(
            st.integers(1, 130),  # of a beginning that all share
            st.lists(st.integers(0, 3), min_size=1, max_size=30),
            st.integers(1, 30),
            st.sampled_from([None, GRAMMAR]),
            st.integers(-1, 1),
        ),
        min_size=1,
        max_size=5,
    ),
    options=st.fixed_dictionaries(
        {
            "chunk": st.integers(1, 90),
            "drafts": st.booleans(),
            "forcing": st.booleans(),
            "kv_bytes": st.sampled_from([256, 320, 512, 4000]).map(lambda n: n * POSITION),
        }
    ),
    n=st.integers(),
)
def test_every_combination_equals_transformers(
    ending: Pair, tmp_path: Path, asked: list[Any], options: dict[str, Any], n: int
) -> None:
    """Batched, chunked, preempted, with prefixes from memory and from disk, drafted, forced and under a grammar: the
    ids that transformers' logits give, without any cache."""
    beginning = [(i * 31) % 7 for i in range(150)]
    for _ in range(2):  # the second engine finds the first one's prefixes on disk
        with Engine(ending.ours, context=192, prefixes=tmp_path / str(n), stop_repetition=False, **options) as engine:
            for _ in range(2):
                sent = []
                for shared, own, count, grammar, priority in asked:
                    prompt, most = [*beginning[:shared], *own], 60 if grammar else count
                    rules = {"grammar": grammar, "priority": priority}
                    sent.append((prompt, most, grammar, engine.submit(prompt, greedy(most), **rules)))
                for prompt, most, grammar, generation in sent:
                    wanted = (
                        masked(ending, engine.compile(grammar).start(), prompt, most)
                        if grammar
                        else ending.expected(prompt, most)
                    )
                    assert list(generation) == wanted


def test_past_the_native_length_with_yarn(tmp_path: Path) -> None:
    """Beyond what the model was trained for, with YaRN, chunked and warm."""
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "rope_theta": 10000.0}
    pair = Pair(tmp_path, "qwen2", max_position_embeddings=256, rope_parameters=yarn)
    check(pair, [[i % 250 for i in range(100)], [(i * 7) % 250 for i in range(150)]], 16)


def test_a_ten_step_loop_computes_exactly_what_is_new(qwen3: Pair) -> None:
    """Positions counted on the first linear layer: len(prompt N+1) - len(prompt N) - len(output N) + 1, plus each
    step's own output but its last id; and the ids are those of transformers without any cache."""
    counted: list[int] = []
    first = qwen3.ours.model.layers[0].qkv
    hook = first.register_forward_hook(lambda module, args, output: counted.append(args[0].shape[0]))
    try:
        with Engine(qwen3.ours, chunk=32) as engine:
            prompt, before, output = prompts_of(1, 5)[0], 0, []
            for step in range(10):
                counted.clear()
                generation = engine.submit(prompt, greedy(10))
                new = len(prompt) - before - len(output) + 1 if step else len(prompt)
                before, output = len(prompt), list(generation)
                assert output == qwen3.expected(prompt, 10)
                assert sum(counted) == new + len(output) - 1 == generation.usage.computed_tokens
                prompt = [*prompt, *output, *prompts_of(1, 50 + step)[0][:30]]
    finally:
        hook.remove()


def test_sampling_follows_transformers_distribution(qwen3: Pair) -> None:
    """First ids drawn under many seeds fall as transformers' warped distribution says (chi-squared, 1,500 draws)."""
    process = foreign.transformers().generation.logits_process
    prompt = prompts_of(1, 9)[0]
    with torch.no_grad():
        logits = qwen3.theirs(torch.tensor([prompt])).logits[:, -1]
    for warper in (
        process.TemperatureLogitsWarper(0.8),
        process.TopKLogitsWarper(8),
        process.TopPLogitsWarper(0.9),
    ):
        logits = warper(None, logits)
    expected = logits[0].softmax(0)
    counts = torch.zeros(VOCAB)
    n = 1500
    with Engine(qwen3.ours) as engine:
        for seed in range(n):
            sampling = Sampling(temperature=0.8, top_k=8, top_p=0.9, seed=seed, max_tokens=1)
            counts[next(iter(engine.submit(prompt, sampling)))] += 1
    assert not counts[expected == 0].any()
    kept = expected > 0
    chi = float(((counts - n * expected)[kept] ** 2 / (n * expected)[kept]).sum())
    assert chi < 30  # at most 7 degrees of freedom: above 30 once in 10,000


@pytest.mark.real
def test_real_weights_answer(smollm2_gguf: Path) -> None:
    """SmolLM2's real weights, through cache, engine and detokenizer, know the capital of France; warm equals cold."""
    loaded = load_model(smollm2_gguf, quant="fp32")
    from tokenizers import Tokenizer

    text = "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"
    prompt = Tokenizer.from_str(loaded.tokenizer_json).encode(text).ids
    with Engine(loaded) as engine:
        answers = []
        for _ in range(2):
            generation = engine.submit(prompt, Sampling(temperature=0, max_tokens=30))
            answers.append("".join(piece.text for piece in generation.pieces()))
            assert generation.finish_reason == "stop"
    assert "Paris" in answers[0]
    assert answers[0] == answers[1]
