"""Tiny random models as real checkpoints: every file that a model directory has, written in a fraction of a second.

The weights say nothing sensible, but they go through the true loader, decoder, engine, grammar and parser.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qwen_agent_kit.errors import UsageError

__all__ = ["CHATML_TEMPLATE", "tiny_model_dir", "tiny_tokenizer"]

_ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "qwen": "QWenLMHeadModel",
    "qwen2": "Qwen2ForCausalLM",
    "qwen2_moe": "Qwen2MoeForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "qwen3_moe": "Qwen3MoeForCausalLM",
}

_SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>")
_ADDED = ("<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", "<think>", "</think>")

_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

_CORPUS = """\
The tokenizer of a tiny model learns its merges from this text, so that words, numbers and JSON take a few tokens each.
system user assistant tool message content role name arguments function parameters type string integer number boolean
{"name": "get_weather", "arguments": {"city": "Paris", "days": 3}} {"type": "object", "properties": {"a": {}}}
You are a helpful assistant. What is the weather in Paris tomorrow? It is 21 degrees, and it will not rain. Thank you!
def f(x): return x + 1  # code has spaces, brackets and newlines
Ein kurzer Satz auf Deutsch, une phrase en français, una frase en español, 你好世界 and Привет.
"""

CHATML_TEMPLATE = """\
{%- if tools or (messages and messages[0].role == 'system') -%}
{{- '<|im_start|>system\\n' -}}
{%- if messages and messages[0].role == 'system' -%}{{- messages[0].content -}}{%- endif -%}
{%- if tools -%}
{%- if messages and messages[0].role == 'system' -%}{{- '\\n\\n' -}}{%- endif -%}
{{- '# Tools\\n\\nThese functions can be called:\\n<tools>' -}}
{%- for tool in tools -%}{{- '\\n' -}}{{- tool | tojson -}}{%- endfor -%}
{{- '\\n</tools>\\n\\nA call is a JSON object with its name and arguments inside <tool_call></tool_call>:\\n' -}}
{{- '<tool_call>\\n{"name": <name>, "arguments": <object>}\\n</tool_call>' -}}
{%- endif -%}
{{- '<|im_end|>\\n' -}}
{%- endif -%}
{%- for message in messages -%}
{%- if message.role == 'system' and not loop.first -%}
{{- '<|im_start|>system\\n' + message.content + '<|im_end|>\\n' -}}
{%- elif message.role == 'user' -%}
{{- '<|im_start|>user\\n' + message.content + '<|im_end|>\\n' -}}
{%- elif message.role == 'assistant' -%}
{{- '<|im_start|>assistant\\n' -}}
{%- if message.reasoning_content -%}{{- '<think>\\n' + message.reasoning_content + '\\n</think>\\n\\n' -}}{%- endif -%}
{%- if message.content -%}{{- message.content -}}{%- endif -%}
{%- for call in message.tool_calls or [] -%}
{%- if not loop.first or message.content -%}{{- '\\n' -}}{%- endif -%}
{%- set call = call.function or call -%}
{{- '<tool_call>\\n{"name": "' + call.name + '", "arguments": ' -}}
{%- if call.arguments is string -%}{{- call.arguments -}}{%- else -%}{{- call.arguments | tojson -}}{%- endif -%}
{{- '}\\n</tool_call>' -}}
{%- endfor -%}
{{- '<|im_end|>\\n' -}}
{%- elif message.role == 'tool' -%}
{%- if loop.first or messages[loop.index0 - 1].role != 'tool' -%}{{- '<|im_start|>user' -}}{%- endif -%}
{{- '\\n<tool_response>\\n' + message.content + '\\n</tool_response>' -}}
{%- if loop.last or messages[loop.index0 + 1].role != 'tool' -%}{{- '<|im_end|>\\n' -}}{%- endif -%}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|im_start|>assistant\\n' -}}
{%- if enable_thinking is defined and enable_thinking is false -%}{{- '<think>\\n\\n</think>\\n\\n' -}}{%- endif -%}
{%- endif -%}
"""


def tiny_tokenizer(size: int = 512) -> str:
    """The text of a tokenizer.json: byte-level BPE with Qwen's splits and control tokens.

    Args:
        size: Ids of bytes and merges; 12 added tokens follow.
    """
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False, min_frequency=1)
    tokenizer.train_from_iterator(_CORPUS.splitlines(keepends=True), trainer)
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in _SPECIAL])
    tokenizer.add_tokens([AddedToken(name, special=False, normalized=False) for name in _ADDED])
    return str(tokenizer.to_str())


def tiny_model_dir(
    folder: str | Path,
    family: str = "qwen3",
    *,
    seed: int = 0,
    layers: int = 2,
    hidden: int = 64,
    heads: int = 4,
    kv_heads: int = 2,
    context: int = 4096,
    vocab_size: int | None = None,
    tied: bool = False,
    tokenizer_json: str | None = None,
    template: str | None = CHATML_TEMPLATE,
    **fields: Any,
) -> Path:
    """Write a random model of a family: config.json, model.safetensors, tokenizer.json, tokenizer_config.json.

    Args:
        folder: Made if missing.
        family: ``llama``, ``qwen``, ``qwen2``, ``qwen2_moe``, ``qwen3`` or ``qwen3_moe``.
        seed: The same seed and sizes give the same weights.
        layers: How many.
        hidden: Width.
        heads: Query heads.
        kv_heads: Key and value heads.
        context: ``max_position_embeddings``.
        vocab_size: At least the tokenizer's; that where None.
        tied: Whether the head is the embedding.
        tokenizer_json: The text of another tokenizer.json; one learned from a few lines where None.
        template: The chat template, none where None. The one that is left out takes contents that are strings.
        **fields: Further fields of config.json, or other values for those that are written.

    Returns:
        The folder.

    Raises:
        UsageError: For an unknown family.
        ModelError: For sizes that do not go together.
    """
    from qwen_agent_kit.models import config_from

    if family not in _ARCHITECTURES:
        raise UsageError(f"`family` is {family!r}; allowed: {', '.join(_ARCHITECTURES)}")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    text = tokenizer_json if tokenizer_json is not None else tiny_tokenizer()
    known = _ids(text)
    config = _config(family, layers, hidden, heads, kv_heads, context)
    config |= {"vocab_size": vocab_size or max(known.values()) + 1, "tie_word_embeddings": tied}
    config |= {"eos_token_id": known.get("<|im_end|>"), "bos_token_id": None, **fields}
    described = config_from(config)
    _write_weights(folder / "model.safetensors", described, seed)
    settings: dict[str, Any] = {"tokenizer_class": "Qwen2Tokenizer", "eos_token": "<|im_end|>"}
    settings |= {"pad_token": "<|endoftext|>"} | ({"chat_template": template} if template is not None else {})
    for name, data in (("config.json", config), ("tokenizer_config.json", settings)):
        (folder / name).write_text(json.dumps(data, indent=2), encoding="utf-8")
    (folder / "tokenizer.json").write_text(text, encoding="utf-8")
    return folder


def _ids(tokenizer_json: str) -> dict[str, int]:
    data = json.loads(tokenizer_json)
    return {**data["model"]["vocab"], **{t["content"]: t["id"] for t in data["added_tokens"]}}


def _config(family: str, layers: int, hidden: int, heads: int, kv_heads: int, context: int) -> dict[str, Any]:
    shared = {
        "architectures": [_ARCHITECTURES[family]],
        "model_type": family,
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "max_position_embeddings": context,
    }
    if family == "qwen":  # QwenLM's own field names; its width counts both halves of the gated MLP
        more: dict[str, Any] = {"kv_channels": hidden // heads, "intermediate_size": 4 * hidden, "seq_length": context}
        return shared | more | {"layer_norm_epsilon": 1e-6, "rotary_emb_base": 10000.0, "no_bias": True}
    shared |= {
        "num_key_value_heads": kv_heads,
        "intermediate_size": 2 * hidden,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        "head_dim": hidden // heads,
    }
    if family.endswith("moe"):
        shared |= {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": hidden, "norm_topk_prob": True}
    if family == "qwen2_moe":
        shared |= {"shared_expert_intermediate_size": 2 * hidden, "norm_topk_prob": False}
    return shared


def _write_weights(path: Path, config: Any, seed: int) -> None:
    import torch
    from safetensors.torch import save_file

    from qwen_agent_kit.models.naming import naming_for
    from qwen_agent_kit.models.packing import wanted

    generator = torch.Generator().manual_seed(seed)
    naming = naming_for("qwen" if config.model_type == "qwen" else "transformers", ())

    def random(shape: tuple[int, ...]) -> torch.Tensor:
        if len(shape) == 1:  # a norm or a bias: around one, which is as good as any
            return 1.0 + torch.randn(shape, generator=generator) / 8
        return torch.randn(shape, generator=generator) / math.sqrt(shape[1])

    tensors: Mapping[str, torch.Tensor] = {part.name: random(shape) for part, shape in wanted(config, naming)}
    save_file(dict(tensors), path, metadata={"format": "pt"})
