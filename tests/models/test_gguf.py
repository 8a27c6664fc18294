"""GGUF files give the model and the tokenizer that they were made from."""

from __future__ import annotations

import json
import re
import unicodedata
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf_files import ARCHITECTURES, write_gguf
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import our_greedy, our_logits, random_prompts, their_greedy, their_logits
from tokenizers import Tokenizer

from qwen_agent_kit import foreign
from qwen_agent_kit.errors import ModelError
from qwen_agent_kit.models import load_model, tokenizer_from_gguf
from qwen_agent_kit.models.gguf_file import GGUFFile
from qwen_agent_kit.testing.models import tiny_model_dir

TEXTS = [
    "Hello, world!  Two  spaces, a\ttab\n\n\nand newlines \r\n",
    "I'll we've DON'T it's 1234567890 3.14 1,000 x=2**10 a1b2 ½ ²",
    "def f(x):\n    return {'a': [1, 2, 3]}  # comment\n",
    "你好\uff0c世界。Привет мир! ¿Qué tal? ñandú café cafe\u0301 ﬁ Å \uff46\uff55ll",
    "👩‍👩‍👧‍👦 🇩🇪 e\u0301 \u200b zero\u00a0width \ufeff",
    '<|im_start|>user\nhi<|im_end|>\n<|endoftext|><tool_call>{"a": 1}</tool_call>',
    "   leading, trailing   ",
    "",
    "\x00\x01 control \x7f",
]


@pytest.mark.parametrize("family", ARCHITECTURES)
def test_a_gguf_file_is_the_model_it_was_made_from(tmp_path: Path, family: str) -> None:
    """Same logits as the safetensors: llama's rows put back in order, experts unstacked, Qwen 1.0's fused qkv."""
    layers = {"qwen2_moe": {"mlp_only_layers": [1], "layers": 3}}.get(family, {})
    folder = tiny_model_dir(tmp_path / "hf", family, **layers)
    path = write_gguf(folder, tmp_path / "model.gguf")
    ours, other = load_model(path), load_model(folder)
    assert ours.eos == other.eos
    assert ours.template == other.template
    assert {k: ours.special[k] for k in ("eos_token", "pad_token")} == other.special
    prompt = random_prompts(1, 500)[0]
    assert torch.equal(our_logits(ours.model, prompt), our_logits(other.model, prompt))


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"])
def test_quantised_types_are_unpacked_as_the_package_does(tmp_path: Path, kind: str) -> None:
    """Every matrix equals the gguf package's own dequantisation of what its own reader finds."""
    path = write_gguf(tiny_model_dir(tmp_path / "hf", "qwen3"), tmp_path / "model.gguf", kind)
    file = GGUFFile(path)
    for tensor in gguf.GGUFReader(path).tensors:
        expected = gguf.dequantize(tensor.data, tensor.tensor_type)
        assert np.array_equal(file.read(tensor.name).numpy(), expected), tensor.name
    load_model(path)


@pytest.mark.parametrize(
    "kind",
    [
        "Q2_K",
        "Q3_K",
        "Q4_K",
        "Q5_K",
        "Q6_K",
        "IQ4_NL",
        "IQ4_XS",
        "IQ3_S",
        "IQ3_XXS",
        "IQ2_S",
        "IQ2_XS",
        "IQ2_XXS",
        "IQ1_S",
    ],
)
def test_block_types_without_a_quantiser_are_read(tmp_path: Path, kind: str) -> None:
    """Blocks of chosen bytes, two experts deep, are read whole and by slice as the package reads them."""
    quant = gguf.GGMLQuantizationType[kind]
    block, size = gguf.GGML_QUANT_SIZES[quant]
    # Bytes below 0x3b: every float16 among them is finite and below one.
    raw = np.random.default_rng(0).integers(0, 0x3B, (2, 3, size * 512 // block), dtype=np.uint8)
    path = tmp_path / "blocks.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tensor("x", raw, raw_dtype=quant)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    expected = gguf.dequantize(raw, quant)
    file = GGUFFile(path)
    assert file.entries["x"].shape == (2, 3, 512)
    assert np.array_equal(file.read("x").numpy(), expected)
    assert np.array_equal(file.read("x", 1).numpy(), expected[1])


def test_rope_scaling_and_llama3_divisors_come_from_the_file(tmp_path: Path) -> None:
    """YaRN as metadata gives the same logits as in config.json."""
    rope = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 32}
    folder = tiny_model_dir(tmp_path / "hf", "qwen2", context=128, rope_parameters=rope)
    keys = {"rope__scaling__type": "yarn", "rope__scaling__factor": 4.0, "rope__scaling__original_context_length": 32}
    path = write_gguf(folder, tmp_path / "model.gguf", **{f"qwen2__{k}": v for k, v in keys.items()})
    prompt = random_prompts(1, 500)[0]
    assert torch.equal(our_logits(load_model(path).model, prompt), our_logits(load_model(folder).model, prompt))


def test_the_tokenizer_of_a_file_is_the_one_it_was_made_from(tmp_path: Path, qwen25_dir: Path, qwen3_dir: Path) -> None:
    """Qwen2.5's and Qwen3's own vocabularies through GGUF metadata give the ids of their tokenizer.json."""
    for source in (qwen25_dir, qwen3_dir):
        data = json.loads((source / "tokenizer.json").read_text())
        official = Tokenizer.from_file(str(source / "tokenizer.json"))
        ours = Tokenizer.from_str(tokenizer_from_gguf(metadata_of(data)))
        for text in TEXTS:
            assert ours.encode(text).ids == official.encode(text).ids, text
            ids = official.encode(text).ids
            assert ours.decode(ids, skip_special_tokens=False) == official.decode(ids, skip_special_tokens=False)


def metadata_of(data: dict) -> dict:
    added = {t["id"]: t for t in data["added_tokens"]}
    tokens = {i: t for t, i in data["model"]["vocab"].items()} | {i: t["content"] for i, t in added.items()}
    merges = [m if isinstance(m, str) else " ".join(m) for m in data["model"]["merges"]]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "qwen2",
        "tokenizer.ggml.tokens": [tokens[i] for i in range(len(tokens))],
        "tokenizer.ggml.token_type": [
            1 if i not in added else 3 if added[i]["special"] else 4 for i in range(len(tokens))
        ],
        "tokenizer.ggml.merges": merges,
    }


@pytest.fixture(scope="module")
def smollm2_tokenizers(smollm2_gguf: Path) -> tuple[Tokenizer, Any]:
    transformers = foreign.transformers()
    theirs = transformers.AutoTokenizer.from_pretrained(smollm2_gguf.parent, gguf_file=smollm2_gguf.name)
    return Tokenizer.from_str(tokenizer_from_gguf(GGUFFile(smollm2_gguf).metadata)), theirs


def test_smollm2s_tokenizer_equals_transformers(smollm2_tokenizers: tuple[Tokenizer, Any]) -> None:
    """On the texts above, transformers' own conversion of the same file gives the same ids.

    Except where a numeral such as a superscript follows something: transformers' conversion knows no ``smollm`` and
    does not split numerals off, as llama.cpp does and as the vocabulary says, where no numeral is joined to anything.
    """
    ours, theirs = smollm2_tokenizers
    for text in TEXTS:
        plain = re.sub("[^\\W\\d_a-zA-Z]", lambda m: m[0] if m[0].isalpha() else "", text)
        assert ours.encode(plain, add_special_tokens=False).ids == theirs.encode(plain, add_special_tokens=False), plain
    joined = [t for t in ours.get_vocab() if len(text := ours.decode([ours.token_to_id(t)])) > 1 and _has_numeral(text)]
    assert not joined
    assert ours.encode("x \u00b2").tokens == ["x", "\u0120", "\u00c2\u00b2"]


def _has_numeral(text: str) -> bool:
    return any(unicodedata.category(c).startswith("N") for c in text)


NO_RARE_NUMERALS = st.characters(exclude_categories=["Cs", "Nd", "Nl", "No"]) | st.sampled_from("0123456789 \n'")


@settings(max_examples=100, deadline=None)
@given(st.text(NO_RARE_NUMERALS, max_size=60))
def test_smollm2s_tokenizer_equals_transformers_on_any_text(
    smollm2_tokenizers: tuple[Tokenizer, Any], text: str
) -> None:
    """The same for drawn text, in both directions."""
    ours, theirs = smollm2_tokenizers
    ids = ours.encode(text, add_special_tokens=False).ids
    assert ids == theirs.encode(text, add_special_tokens=False)
    assert ours.decode(ids, skip_special_tokens=False) == theirs.decode(ids, clean_up_tokenization_spaces=False)


def test_a_sentencepiece_vocabulary_equals_transformers(tmp_path: Path) -> None:
    """Merges recovered from scores, the prefix space and byte fallback are those of transformers' Llama tokenizer."""
    words = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256)), "▁", *"abcdehilnortuw", "he", "ll", "▁he"]
    words += ["llo", "▁hello", "or", "▁w", "▁wor", "▁world", "ld", "in", "er", "▁t", "▁th", "▁the"]
    metadata = {
        "general.architecture": "llama",
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": words,
        "tokenizer.ggml.scores": [0.0] * 259 + [-float(i) for i in range(len(words) - 259)],
        "tokenizer.ggml.token_type": [2, 3, 3, *[6] * 256, *[1] * (len(words) - 259)],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
    }
    path = tmp_path / "sp.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tokenizer_model("llama")
    writer.add_token_list(words)
    writer.add_token_scores(metadata["tokenizer.ggml.scores"])
    writer.add_token_types(metadata["tokenizer.ggml.token_type"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    theirs = foreign.transformers().AutoTokenizer.from_pretrained(tmp_path, gguf_file=path.name)
    ours = Tokenizer.from_str(tokenizer_from_gguf(GGUFFile(path).metadata))
    for text in ("hello world", "the inner world", "hello, Wörld 你", "other", "tt hh", "hello</s>"):
        assert ours.encode(text).ids == theirs.encode(text), text
        assert ours.decode(ours.encode(text).ids) == theirs.decode(theirs.encode(text), skip_special_tokens=True)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"tokenizer.ggml.model": "t5"}, "`tokenizer.ggml.model` .* 't5'; allowed: gpt2, llama"),
        ({"tokenizer.ggml.pre": "exotic"}, "`tokenizer.ggml.pre` .* 'exotic'; allowed: "),
        ({"tokenizer.ggml.tokens": []}, "`tokenizer.ggml.tokens`"),
        ({"tokenizer.ggml.token_type": [1]}, "`tokenizer.ggml.token_type`"),
        ({"tokenizer.ggml.merges": ["a"]}, "`tokenizer.ggml.merges`"),
        ({"tokenizer.ggml.merges": ["a zz"]}, "`tokenizer.ggml.merges`"),
    ],
)
def test_a_tokenizer_that_cannot_be_built_is_refused(change: dict, says: str) -> None:
    """The error names the key and what is allowed."""
    good = {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.tokens": ["a", "b", "ab"], "tokenizer.ggml.merges": ["a b"]}
    tokenizer_from_gguf(good)
    with pytest.raises(ModelError, match=says):
        tokenizer_from_gguf({**good, **change})


@pytest.fixture(scope="module")
def smollm2(smollm2_gguf: Path) -> tuple:
    """Ours from the file, and transformers' LlamaForCausalLM with the same dequantised tensors."""
    loaded = load_model(smollm2_gguf)
    transformers, config = foreign.transformers(), loaded.config
    theirs = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.hidden,
            intermediate_size=config.intermediate,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            num_key_value_heads=config.kv_heads,
            max_position_embeddings=config.max_positions,
            rms_norm_eps=config.norm_eps,
            tie_word_embeddings=True,
            rope_parameters={"rope_type": "default", "rope_theta": config.rope.theta},
        )
    )
    names = {"attn_output": "self_attn.o_proj", "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"}
    names |= {f"attn_{x}": f"self_attn.{x}_proj" for x in "qkv"} | {
        f"ffn_{x}": f"mlp.{x}_proj" for x in ("gate", "up", "down")
    }
    weights = {}
    for tensor in gguf.GGUFReader(smollm2_gguf).tensors:
        values = torch.from_numpy(gguf.dequantize(tensor.data, tensor.tensor_type).copy())
        name = tensor.name.removesuffix(".weight")
        if name.endswith(("attn_q", "attn_k")):
            heads = config.heads if name.endswith("q") else config.kv_heads
            values = values.reshape(heads, -1, 2, config.hidden).transpose(1, 2).reshape(values.shape)
        if name.startswith("blk."):
            _, layer, kind = name.split(".")
            weights[f"model.layers.{layer}.{names[kind]}.weight"] = values
        else:
            weights[{"token_embd": "model.embed_tokens.weight", "output_norm": "model.norm.weight"}[name]] = values
    missing, unexpected = theirs.load_state_dict(weights, strict=False)
    assert missing == ["lm_head.weight"]
    assert not unexpected
    theirs.tie_weights()
    return loaded, theirs.eval()


def test_smollm2_equals_transformers(smollm2: tuple) -> None:
    """The real weights, from the same dequantised tensors: the same logits and the same greedy ids."""
    loaded, theirs = smollm2
    tokenizer = Tokenizer.from_str(loaded.tokenizer_json)
    for text in ("What is the capital of France?", "Write one line of Python that adds 17 and 25."):
        chat = f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n"
        prompt = tokenizer.encode(chat, add_special_tokens=False).ids
        torch.testing.assert_close(our_logits(loaded.model, prompt), their_logits(theirs, prompt), rtol=1e-3, atol=2e-3)
        expected = their_greedy(theirs, prompt, 12)
        assert our_greedy(loaded.model, prompt, 12, chunks=(len(prompt) // 2,)) == expected
