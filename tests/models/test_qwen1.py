"""Qwen 1.0 against a reference forward written from modeling_qwen.py (QwenLM/Qwen-7B), whole sequences only."""

from __future__ import annotations

import base64
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from oracle import our_greedy, our_logits, random_prompts
from safetensors.torch import load_file
from tokenizers import Tokenizer

from qwen_agent_kit.errors import ModelError
from qwen_agent_kit.models import load_model, tiktoken_file
from qwen_agent_kit.testing.models import tiny_model_dir, tiny_tokenizer


def reference(folder: Path, ids: list[int]) -> torch.Tensor:
    """Logits [n, vocab] of a whole sequence, as the original computes a prompt (rotary in float32, no cache)."""
    config = json.loads((folder / "config.json").read_text())
    w = load_file(folder / "model.safetensors")
    heads, n, eps = config["num_attention_heads"], len(ids), config["layer_norm_epsilon"]
    dim, trained = config["kv_channels"], config["seq_length"]

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps) * w[name]

    def rotate_half(x: torch.Tensor) -> torch.Tensor:
        first, second = x.chunk(2, -1)
        return torch.cat((-second, first), -1)

    base = config["rotary_emb_base"]
    freqs = torch.outer(torch.arange(n).float(), 1.0 / base ** (torch.arange(0, dim, 2).float() / dim))
    angle = torch.cat((freqs, freqs), -1)[:, None]
    logn = torch.tensor([math.log(i, trained) if i > trained else 1.0 for i in range(1, n + 1)])
    x = w["transformer.wte.weight"][ids]
    for layer in range(config["num_hidden_layers"]):
        key = f"transformer.h.{layer}."
        h = norm(x, key + "ln_1.weight")
        mixed = h @ w[key + "attn.c_attn.weight"].T + w[key + "attn.c_attn.bias"]
        q, k, v = (part.view(n, heads, dim) for part in mixed.split(heads * dim, -1))
        q, k = (t * angle.cos() + rotate_half(t) * angle.sin() for t in (q, k))
        if config.get("use_logn_attn"):
            q = q * logn[:, None, None]
        scores = torch.einsum("qhd,khd->hqk", q, k) / math.sqrt(dim)
        scores = scores.masked_fill(torch.ones(n, n).triu(1).bool(), -torch.inf)
        out = torch.einsum("hqk,khd->qhd", scores.softmax(-1), v).reshape(n, -1)
        x = x + out @ w[key + "attn.c_proj.weight"].T
        h = norm(x, key + "ln_2.weight")
        a1, a2 = h @ w[key + "mlp.w1.weight"].T, h @ w[key + "mlp.w2.weight"].T
        x = x + (a1 * torch.nn.functional.silu(a2)) @ w[key + "mlp.c_proj.weight"].T
    return norm(x, "transformer.ln_f.weight") @ w["lm_head.weight"].T


@pytest.mark.parametrize("fields", [{}, {"use_logn_attn": True, "seq_length": 16}], ids=["plain", "log n attention"])
def test_logits_and_greedy_equal_the_reference(tmp_path: Path, fields: dict[str, Any]) -> None:
    """Fused c_attn with its bias, w2 as the gate, its own norm names, queries scaled past the trained length."""
    tiny_model_dir(tmp_path, "qwen", **fields)
    model = load_model(tmp_path).model
    for prompt in random_prompts(3, 500):
        torch.testing.assert_close(our_logits(model, prompt), reference(tmp_path, prompt), rtol=2e-4, atol=2e-4)
        generated: list[int] = []
        while len(generated) < 16:
            generated.append(int(reference(tmp_path, prompt + generated)[-1].argmax()))
        assert our_greedy(model, prompt, 16, chunks=(len(prompt) // 2,)) == generated


def test_dynamic_ntk_doubles_past_the_trained_length(tmp_path: Path) -> None:
    """`use_dynamic_ntk` changes nothing up to the trained length, and something after; every cut agrees."""
    for name, on in (("on", True), ("off", False)):
        tiny_model_dir(tmp_path / name, "qwen", seq_length=16, use_dynamic_ntk=on)
    on, off = load_model(tmp_path / "on").model, load_model(tmp_path / "off").model
    prompt = random_prompts(1, 500, low=40, high=41)[0]
    a, b = our_logits(on, prompt), our_logits(off, prompt)
    torch.testing.assert_close(a[:16], b[:16])
    assert not torch.allclose(a[16:], b[16:], atol=1e-2)
    torch.testing.assert_close(our_logits(on, prompt, chunks=(5, 17, 33)), a, rtol=2e-4, atol=2e-4)


def test_their_own_repository_is_no_remote_code(tmp_path: Path) -> None:
    """The auto_map of the official Qwen 1.0 repositories names what we build ourselves, so it is not refused."""
    named = {"AutoConfig": "configuration_qwen.QWenConfig", "AutoModelForCausalLM": "modeling_qwen.QWenLMHeadModel"}
    tiny_model_dir(tmp_path, "qwen", auto_map=named)
    assert load_model(tmp_path).config.model_type == "qwen"


def ranks_of(data: dict[str, Any]) -> bytes:
    """Qwen2.5's vocabulary, which is Qwen 1.0's, as the list of byte strings that it was made from."""
    letters = {c: b for b, c in enumerate(tiktoken_file._letters())}
    words = sorted(data["model"]["vocab"].items(), key=lambda item: item[1])
    lines = (base64.b64encode(bytes(letters[c] for c in word)) + b" %d" % rank for word, rank in words)
    return b"\n".join(lines)


def test_the_tokenizer_comes_from_its_ranks(tmp_path: Path, qwen25_dir: Path) -> None:
    """qwen.tiktoken gives the ids of Qwen2.5's tokenizer.json, which was made from the same ranks."""
    (tmp_path / "qwen.tiktoken").write_bytes(ranks_of(json.loads((qwen25_dir / "tokenizer.json").read_text())))
    ours = Tokenizer.from_str(tiktoken_file.tokenizer_from_tiktoken(tmp_path / "qwen.tiktoken"))
    official = Tokenizer.from_file(str(qwen25_dir / "tokenizer.json"))
    for text in (
        "Hello, world! I'll 1234 \n\n x",
        "\u4f60\u597d\uff0c\u4e16\u754c cafe\u0301",
        "<|im_start|>user\nhi<|im_end|>\n",
        "\x00 \U0001f44b",
    ):
        assert ours.encode(text).ids == official.encode(text).ids


def test_a_directory_as_it_is_published_opens(tmp_path: Path) -> None:
    """Ranks instead of tokenizer.json, code named in both configurations, ChatML without a template."""
    data = json.loads(tiny_tokenizer(300))
    folder = tiny_model_dir(tmp_path, "qwen", vocab_size=600, template=None)
    (folder / "tokenizer.json").unlink()
    (folder / "qwen.tiktoken").write_bytes(ranks_of(data))
    named = {
        "auto_map": {"AutoTokenizer": ["tokenization_qwen.QWenTokenizer", None]},
        "tokenizer_class": "QWenTokenizer",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(named))
    loaded = load_model(folder)
    tokenizer = Tokenizer.from_str(loaded.tokenizer_json)
    assert loaded.eos == (514, tokenizer.token_to_id("<|im_end|>"))
    assert "<|im_start|>" in (loaded.template or "")
    assert tokenizer.decode(tokenizer.encode("any \u4f60 text").ids) == "any \u4f60 text"


@pytest.mark.parametrize("text", [b"AA== 0", b"!!! 0", b"QQ==", b"QQ== x", b"\xff 1"])
def test_broken_ranks_are_refused(tmp_path: Path, text: bytes) -> None:
    """Lines that are none, and lists that lack single bytes."""
    (tmp_path / "qwen.tiktoken").write_bytes(text)
    with pytest.raises(ModelError, match=r"`qwen.tiktoken`"):
        tiktoken_file.tokenizer_from_tiktoken(tmp_path / "qwen.tiktoken")
