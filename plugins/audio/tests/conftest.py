"""A tiny random model that hears, with the real Qwen2.5 tokenizer and the three tokens that Qwen2-Audio adds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from qwen_agent_kit import foreign

TOKENIZER = Path(__file__).resolve().parents[3] / ".cache" / "tokenizers" / "qwen2_5"
AUDIO = 151665  # ids of added tokens go on where the file ends
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.content is string %}{{ m.content }}{% else %}"
    "{% for c in m.content %}{% if c.type == 'audio' %}<|audio_bos|><|AUDIO|><|audio_eos|>\n"
    "{% else %}{{ c.text }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def build(folder: Path) -> Any:
    """Write a model directory; returns transformers' model."""
    transformers = foreign.transformers()
    torch.manual_seed(3)
    text = {
        "model_type": "qwen2",
        "vocab_size": 151936,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 4096,
        "tie_word_embeddings": False,
    }
    audio = {
        "model_type": "qwen2_audio_encoder",
        "d_model": 24,
        "encoder_layers": 2,
        "encoder_attention_heads": 2,
        "encoder_ffn_dim": 32,
        "num_mel_bins": 128,
        "max_source_positions": 1500,
    }
    config = transformers.Qwen2AudioConfig(text_config=text, audio_config=audio, audio_token_id=AUDIO)
    model = transformers.Qwen2AudioForConditionalGeneration(config).float().eval()
    with torch.no_grad():
        for value in model.parameters():
            if value.ndim > 1:
                value.mul_(6)
    model.save_pretrained(folder)
    tokenizer = json.loads((TOKENIZER / "tokenizer.json").read_text())
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    for number, content in enumerate(("<|AUDIO|>", "<|audio_bos|>", "<|audio_eos|>")):
        tokenizer["added_tokens"].append({"id": AUDIO + number, "content": content, **flags})
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    settings = json.loads((TOKENIZER / "tokenizer_config.json").read_text())
    settings["chat_template"] = TEMPLATE
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "preprocessor_config.json").write_text(json.dumps({"feature_size": 128, "chunk_length": 30}))
    return model


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """Its directory and transformers' model."""
    folder = tmp_path_factory.mktemp("qwen2_audio")
    return folder, build(folder)
