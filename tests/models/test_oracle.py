"""The decoder gives what transformers gives, in float32, id for id."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from oracle import MODELS, DenseKV, our_greedy, our_logits, random_prompts, their_greedy, their_logits, their_model

from qwen_agent_kit.models import Segment, load_model
from qwen_agent_kit.testing.models import tiny_model_dir


def pair(folder: Path, **fields: Any) -> tuple[Any, Any]:
    tiny_model_dir(folder, **fields)
    return load_model(folder).model, their_model(folder)


def check_greedy(ours: Any, theirs: Any, prompts: list[list[int]], count: int) -> None:
    for prompt in prompts:
        expected = their_greedy(theirs, prompt, count)
        cuts = tuple(sorted({len(prompt) // 3, len(prompt) // 2, len(prompt) - 1} - {0}))
        assert our_greedy(ours, prompt, count, chunks=cuts) == expected
    assert our_greedy(ours, prompts[-1], count) == expected


@pytest.mark.parametrize("name", MODELS)
def test_greedy_equals_transformers(tmp_path: Path, name: str) -> None:
    """Logits agree to rounding, and greedy output is equal whole and chunked: past YaRN's native 32 positions too."""
    ours, theirs = pair(tmp_path, **MODELS[name])
    prompts = random_prompts(4, 500)
    for prompt in prompts[:2]:
        torch.testing.assert_close(our_logits(ours, prompt), their_logits(theirs, prompt), rtol=2e-4, atol=2e-4)
    check_greedy(ours, theirs, prompts, 24)


@pytest.mark.full
@pytest.mark.parametrize("name", MODELS)
def test_greedy_equals_transformers_at_length(tmp_path: Path, name: str) -> None:
    """The same for 20 prompts of 64 ids each."""
    ours, theirs = pair(tmp_path, **MODELS[name])
    check_greedy(ours, theirs, random_prompts(20, 500, high=60, seed=1), 64)


def test_dynamic_rope_decodes_as_transformers_does(tmp_path: Path) -> None:
    """A prompt within the trained length, and ids generated far past it."""
    rope = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0}
    ours, theirs = pair(tmp_path, family="llama", context=32, rope_parameters=rope)
    for prompt in random_prompts(4, 500, high=30):
        assert our_greedy(ours, prompt, 64) == their_greedy(theirs, prompt, 64)


def test_dynamic_rope_does_not_see_the_cut(tmp_path: Path) -> None:
    """Past the trained length, chunks of any size give the same ids: a cached prefix stays valid."""
    rope = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0}
    tiny_model_dir(tmp_path, "llama", context=16, rope_parameters=rope)
    model = load_model(tmp_path).model
    prompt = random_prompts(1, 500, low=60, high=61)[0]
    whole = our_logits(model, prompt)
    for cuts in ((1,), (15, 16, 17), tuple(range(1, 60))):
        torch.testing.assert_close(our_logits(model, prompt, chunks=cuts), whole, rtol=2e-4, atol=2e-4)


def test_every_cut_gives_the_same_logits(tmp_path: Path) -> None:
    """Sliding layers included, a prompt cut in two at any place gives the logits of the whole."""
    tiny_model_dir(tmp_path, **MODELS["qwen2 sliding"])
    model = load_model(tmp_path).model
    prompt = random_prompts(1, 500, low=24, high=25)[0]
    whole = our_logits(model, prompt)
    for cut in range(1, 24):
        torch.testing.assert_close(our_logits(model, prompt, chunks=(cut,)), whole, rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize(
    ("text_class", "sections", "interleaved"),
    [("Qwen2_5_VL", [2, 3, 3], False), ("Qwen3VL", [4, 2, 2], True)],
)
def test_three_axis_positions_equal_transformers(
    tmp_path: Path, text_class: str, sections: list[int], interleaved: bool
) -> None:
    """m-rope positions [3, n], in blocks as Qwen2.5-VL takes them and interleaved as Qwen3-VL does."""
    from qwen_agent_kit import foreign

    transformers = foreign.transformers()
    family = "qwen3" if interleaved else "qwen2"
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": sections, "mrope_interleaved": interleaved}
    tiny_model_dir(tmp_path, family, rope_parameters=rope, eos_token_id=None)
    ours = load_model(tmp_path).model
    from safetensors.torch import load_file

    given = {
        "vocab_size": ours.config.vocab_size,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "rms_norm_eps": 1e-6,
        "rope_parameters": {k: v for k, v in rope.items() if interleaved or k != "mrope_interleaved"},
    }
    theirs = getattr(transformers, f"{text_class}TextModel")(getattr(transformers, f"{text_class}TextConfig")(**given))
    weights = load_file(tmp_path / "model.safetensors")
    head = weights.pop("lm_head.weight")
    theirs.load_state_dict({name.removeprefix("model."): t for name, t in weights.items()})
    n = 20
    ids = torch.randint(0, 500, (n,))
    positions = torch.stack([torch.arange(n), torch.arange(n) // 4, torch.arange(n) % 4 + torch.arange(n) // 7])
    with torch.no_grad():
        hidden = theirs.eval()(input_ids=ids[None], position_ids=positions[:, None], use_cache=False).last_hidden_state
    found = ours.forward(ids, positions, DenseKV(), start=0, logits_from=0)
    torch.testing.assert_close(found, hidden[0] @ head.T, rtol=2e-4, atol=2e-4)


def test_a_hook_on_the_first_linear_counts_positions(tmp_path: Path) -> None:
    """Layers and their linears are modules: a forward hook sees each computed position once."""
    tiny_model_dir(tmp_path, "qwen3")
    model = load_model(tmp_path).model
    seen: list[int] = []
    model.layers[0].qkv.register_forward_hook(lambda module, inputs, output: seen.append(len(inputs[0])))
    our_greedy(model, [1, 2, 3, 4, 5], 4, chunks=(2,))
    assert seen == [2, 3, 1, 1, 1]


def test_logits_are_the_callers(tmp_path: Path) -> None:
    """float32, only the rows asked for, none where none are, and samplers may write into them."""
    tiny_model_dir(tmp_path, "qwen3")
    for quant in ("fp32", "bf16"):
        model = load_model(tmp_path, quant=quant).model
        ids, positions = torch.tensor([1, 2, 3]), torch.arange(3)
        rows = {n: model.forward(ids, positions, DenseKV(), start=0, logits_from=n) for n in (0, 1, 3)}
        assert [len(rows[n]) for n in (0, 1, 3)] == [3, 2, 0]
        assert rows[1].dtype == torch.float32
        torch.testing.assert_close(rows[1], rows[0][1:])
        rows[1].masked_fill_(torch.ones_like(rows[1], dtype=torch.bool), -torch.inf)
        embeds = model.embedding[ids]
        given = model.forward(ids * 0, positions, DenseKV(), start=0, logits_from=0, embeds=embeds)
        assert torch.equal(given, rows[0])


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "qwen3_moe"])
def test_sequences_in_one_batch_give_what_each_gives_alone(tmp_path: Path, family: str) -> None:
    """Prompts of unlike lengths, a prompt beside decoding sequences, rows nobody wants: the logits are those of one."""
    tiny_model_dir(tmp_path, family=family)
    model = load_model(tmp_path).model
    prompts = random_prompts(4, model.config.vocab_size, low=3, high=20)
    starts = [0, len(prompts[1]) - 1, 2, 0]
    wanted = [1, 1, len(prompts[2]) - 2, 0]
    segments, rows = [], []
    for prompt, start, want in zip(prompts, starts, wanted, strict=True):
        kv = DenseKV()
        if start:
            model.forward(torch.tensor(prompt[:start]), torch.arange(start), kv, start=0)
        segments.append(Segment(kv, start, len(prompt) - start, want))
        rows += [(token, at) for at, token in enumerate(prompt) if at >= start]
    ids, positions = torch.tensor(rows).T
    found = model.forward_batch(ids, positions, segments)
    alone = torch.cat([our_logits(model, p)[len(p) - w :] for p, w in zip(prompts, wanted, strict=True)])
    torch.testing.assert_close(found, alone, rtol=1e-4, atol=1e-4)
