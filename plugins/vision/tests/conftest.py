"""Tiny random models that see, with the real Qwen2.5 tokenizer and a template as the official ones are."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from qwen_agent_kit import foreign

TOKENIZER = Path(__file__).resolve().parents[3] / ".cache" / "tokenizers" / "qwen2_5"
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.content is string %}{{ m.content }}{% else %}"
    "{% for c in m.content %}{% if c.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif c.type == 'video' %}<|vision_start|><|video_pad|><|vision_end|>{% else %}{{ c.text }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TEXT = {
    "vocab_size": 151936,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": False,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]},
}
IDS = {
    "image_token_id": 151655,
    "video_token_id": 151656,
    "vision_start_token_id": 151652,
    "vision_end_token_id": 151653,
}
TOWERS: dict[str, dict[str, Any]] = {
    "qwen2_vl": {"depth": 2, "embed_dim": 32, "hidden_size": 32, "num_heads": 2, "mlp_ratio": 2, "patch_size": 14},
    "qwen2_5_vl": {
        "depth": 2,
        "hidden_size": 32,
        "intermediate_size": 40,
        "num_heads": 2,
        "out_hidden_size": 32,
        "fullatt_block_indexes": [1],
        "window_size": 56,
        "tokens_per_second": 2,
    },
    "qwen3_vl": {
        "depth": 3,
        "hidden_size": 32,
        "intermediate_size": 40,
        "num_heads": 2,
        "out_hidden_size": 32,
        "deepstack_visual_indexes": [0, 1],
        "num_position_embeddings": 64,
    },
}
NAMES = {"qwen2_vl": "Qwen2VL", "qwen2_5_vl": "Qwen2_5_VL", "qwen3_vl": "Qwen3VL"}
PIXELS: dict[str, dict[str, int]] = {
    "qwen2_vl": {"min_pixels": 784, "max_pixels": 28 * 28 * 30},
    "qwen2_5_vl": {"min_pixels": 784, "max_pixels": 28 * 28 * 30},
    "qwen3_vl": {"min_pixels": 1024, "max_pixels": 32 * 32 * 30, "patch_size": 16},
}


def build(kind: str, folder: Path) -> Any:
    """Write a model directory of a family; returns transformers' model."""
    transformers = foreign.transformers()
    torch.manual_seed(11 if kind == "qwen2_5_vl" else 5)
    text = dict(TEXT)
    if kind == "qwen3_vl":
        text["rope_parameters"] = {**TEXT["rope_parameters"], "mrope_interleaved": True}
        text["head_dim"] = 8
    config = getattr(transformers, f"{NAMES[kind]}Config")(text_config=text, vision_config=TOWERS[kind], **IDS)
    model = getattr(transformers, f"{NAMES[kind]}ForConditionalGeneration")(config).float().eval()
    with torch.no_grad():
        for name, value in model.named_parameters():
            if value.ndim > 1:
                value.mul_(6 if "visual" not in name else 3)
            elif "bias" in name:
                value.normal_(0, 0.2)
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(TOKENIZER / name, folder / name)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings["chat_template"] = TEMPLATE
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "preprocessor_config.json").write_text(json.dumps({"merge_size": 2, **PIXELS[kind]}))
    return model


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Any]]:
    """Family to its directory and transformers' model, each made once."""
    made: dict[str, tuple[Path, Any]] = {}
    for kind in NAMES:
        folder = tmp_path_factory.mktemp(kind)
        made[kind] = (folder, build(kind, folder))
    return made
