"""A tiny random Qwen2.5-Omni: files as published, and transformers' own thinker and processor of the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from qwen_agent_kit import foreign

NAMES = {  # what the published tokenizer calls these ids of Qwen2.5's
    "<|object_ref_start|>": "<|AUDIO|>",
    "<|object_ref_end|>": "<|audio_bos|>",
    "<|box_start|>": "<|audio_eos|>",
    "<|vision_start|>": "<|vision_bos|>",
    "<|vision_end|>": "<|vision_eos|>",
    "<|image_pad|>": "<|IMAGE|>",
    "<|video_pad|>": "<|VIDEO|>",
}
TEMPLATE = (
    "{% for m in messages %}{% if loop.first and m.role != 'system' %}<|im_start|>system\nYou are a helpful assistant."
    "<|im_end|>\n{% endif %}<|im_start|>{{ m.role }}\n{% if m.content is string %}{{ m.content }}{% else %}"
    "{% for c in m.content %}{% if c.type == 'image' %}<|vision_bos|><|IMAGE|><|vision_eos|>"
    "{% elif c.type == 'audio' %}<|audio_bos|><|AUDIO|><|audio_eos|>"
    "{% elif c.type == 'video' %}<|vision_bos|><|VIDEO|><|vision_eos|>{% else %}{{ c.text }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
PREPROCESSOR = {  # preprocessor_config.json of Qwen/Qwen2.5-Omni-7B, with smaller bounds of pictures
    "chunk_length": 300,
    "dither": 0.0,
    "feature_extractor_type": "WhisperFeatureExtractor",
    "feature_size": 128,
    "hop_length": 160,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_processor_type": "Qwen2VLImageProcessor",
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "max_pixels": 28 * 28 * 30,
    "merge_size": 2,
    "min_pixels": 784,
    "n_fft": 400,
    "n_samples": 4800000,
    "nb_max_frames": 30000,
    "padding_side": "right",
    "padding_value": 0.0,
    "patch_size": 14,
    "processor_class": "Qwen2_5OmniProcessor",
    "return_attention_mask": True,
    "sampling_rate": 16000,
    "temporal_patch_size": 2,
}


def thinker_config() -> Any:
    """Tiny, with the ids of the published tokenizer."""
    text = {
        "vocab_size": 151936,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 8192,
        "tie_word_embeddings": False,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]},
    }
    audio = {
        "d_model": 24,
        "encoder_layers": 2,
        "encoder_attention_heads": 2,
        "encoder_ffn_dim": 32,
        "num_mel_bins": 128,
        "output_dim": 32,
    }
    vision = {
        "depth": 2,
        "hidden_size": 32,
        "intermediate_size": 40,
        "num_heads": 2,
        "out_hidden_size": 32,
        "fullatt_block_indexes": [1],
        "window_size": 56,
    }
    made = foreign.transformers().Qwen2_5OmniThinkerConfig
    return made(text_config=text, audio_config=audio, vision_config=vision, vision_start_token_id=151652)


def make_thinker() -> Any:
    """transformers' model, of weights large enough that answers vary."""
    torch.manual_seed(4)
    model = foreign.transformers().Qwen2_5OmniThinkerForConditionalGeneration(thinker_config()).float().eval()
    with torch.no_grad():
        for name, value in model.named_parameters():
            if value.ndim > 1:
                value.mul_(6 if "visual" not in name else 3)
            elif "bias" in name:
                value.normal_(0, 0.2)
    return model


def write(folder: Path, tokenizer: Path, model: Any) -> None:
    """The whole checkpoint as published: thinker beside a talker and a vocoder, whose tensors nothing here may read."""
    from safetensors.torch import save_file

    state = {}
    for name, value in model.state_dict().items():
        short = name.removeprefix("model.")
        if short.startswith("language_model."):
            short = f"model.{short.removeprefix('language_model.')}"
        state[f"thinker.{short}"] = value.contiguous()
    state["talker.model.embed_tokens.weight"] = torch.full((7, 5), float("nan"))
    state["talker.thinker_to_talker_proj.weight"] = torch.full((5, 32), float("nan"))
    state["token2wav.code2wav_dit_model.proj_out.weight"] = torch.full((3, 3), float("nan"))
    save_file(state, folder / "model.safetensors")
    config = {
        "architectures": ["Qwen2_5OmniModel"],
        "model_type": "qwen2_5_omni",
        "enable_audio_output": True,
        "thinker_config": model.config.to_dict(),
        "talker_config": {"model_type": "qwen2_5_omni_talker", "hidden_size": 5, "num_hidden_layers": 1},
        "token2wav_config": {"model_type": "qwen2_5_omni_token2wav"},
    }
    (folder / "config.json").write_text(json.dumps(config, default=str))
    write_texts(folder, tokenizer)


def write_texts(folder: Path, tokenizer: Path) -> None:
    """Tokenizer, template and preprocessor."""
    text = (tokenizer / "tokenizer.json").read_text()
    settings = (tokenizer / "tokenizer_config.json").read_text()
    for old, new in NAMES.items():
        text, settings = text.replace(f'"{old}"', f'"{new}"'), settings.replace(f'"{old}"', f'"{new}"')
    (folder / "tokenizer.json").write_text(text)
    kinds = ("image", "audio", "video")
    named = {f"{kind}_token": f"<|{kind.upper()}|>" for kind in kinds}
    ends = {f"{kind}_{end}_token": f"<|{kind}_{end}|>" for kind in ("vision", "audio") for end in ("bos", "eos")}
    read = json.loads(settings) | {"extra_special_tokens": named | ends, **named, **ends}
    read.pop("chat_template", None)
    (folder / "tokenizer_config.json").write_text(json.dumps(read))
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": TEMPLATE}))
    (folder / "preprocessor_config.json").write_text(json.dumps(PREPROCESSOR))


def processor(folder: Path) -> Any:
    """transformers' processor, of its own parts."""
    transformers = foreign.transformers()
    own = ("processor_class", "feature_extractor_type", "image_processor_type")
    given = {key: value for key, value in PREPROCESSOR.items() if key not in own}
    return transformers.Qwen2_5OmniProcessor(
        transformers.Qwen2VLImageProcessor(**given),
        transformers.Qwen2VLVideoProcessor(),
        transformers.WhisperFeatureExtractor(**given),
        transformers.AutoTokenizer.from_pretrained(folder),
        chat_template=TEMPLATE,
    )
