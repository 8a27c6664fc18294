"""The trained model as an ordinary Qwen2.5-VL checkpoint, and back.

``python -m training.vision.export --state DIR --to FOLDER``.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer

from training.checkpoint import VISION_TEMPLATE, text_config, write_folder
from training.tokenizer import make_tokenizer
from training.vision.tower import MEAN, MERGE, PATCH, STD, TowerSize
from training.vision.train import Seer

MIN_PIXELS, MAX_PIXELS = 112 * 84, 112 * 112


def config_of(model: Seer, tokenizer: Tokenizer) -> dict[str, Any]:
    """``config.json``."""
    size = TowerSize()
    names = {"image_token_id": "<|image_pad|>", "video_token_id": "<|video_pad|>", "vision_token_id": "<|vision_pad|>"}
    names |= {"vision_start_token_id": "<|vision_start|>", "vision_end_token_id": "<|vision_end|>"}
    vision = {
        "depth": size.depth,
        "fullatt_block_indexes": list(range(size.depth)),
        "hidden_act": "silu",
        "hidden_size": size.hidden_size,
        "in_channels": 3,
        "in_chans": 3,
        "intermediate_size": size.intermediate_size,
        "model_type": "qwen2_5_vl",
        "num_heads": size.num_heads,
        "out_hidden_size": size.out_hidden_size,
        "patch_size": PATCH,
        "spatial_merge_size": MERGE,
        "spatial_patch_size": PATCH,
        "temporal_patch_size": 2,
        "tokens_per_second": 2,
        "window_size": 112,
    }
    return text_config(model.decoder.size) | {
        "architectures": ["Qwen2_5_VLForConditionalGeneration"],
        "model_type": "qwen2_5_vl",
        "rope_scaling": {"mrope_section": list(model.decoder.size.mrope_section), "type": "mrope"},
        "tie_word_embeddings": True,
        "vision_config": vision,
        **{name: tokenizer.token_to_id(token) for name, token in names.items()},
    }


def processor_of() -> dict[str, Any]:
    """``preprocessor_config.json``."""
    return {
        "image_mean": [round(float(value), 8) for value in MEAN],
        "image_std": [round(float(value), 8) for value in STD],
        "image_processor_type": "Qwen2VLImageProcessor",
        "max_pixels": MAX_PIXELS,
        "merge_size": MERGE,
        "min_pixels": MIN_PIXELS,
        "patch_size": PATCH,
        "processor_class": "Qwen2_5_VLProcessor",
        "temporal_patch_size": 2,
    }


def save(model: Seer, folder: Path) -> None:
    """Write the checkpoint."""
    tensors = {f"visual.{name}": value for name, value in model.tower.official().items()}
    tensors |= {f"model.{name}": value for name, value in model.decoder.official().items()}
    tokenizer = make_tokenizer()
    write_folder(
        folder,
        tensors,
        tokenizer,
        config=config_of(model, tokenizer),
        processor=processor_of(),
        template=VISION_TEMPLATE,
    )


def load(folder: Path) -> tuple[Seer, Tokenizer]:
    """The checkpoint as the training's own model in float32."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    model = Seer(tokenizer.get_vocab_size())
    tensors = {name: value.float() for name, value in load_file(folder / "model.safetensors").items()}
    kernel = tensors.pop("visual.patch_embed.proj.weight").sum(2)
    tower = {name.removeprefix("visual."): value for name, value in tensors.items() if name.startswith("visual.")}
    model.tower.load_state_dict(tower | {"patch.weight": kernel.flatten(1)})
    decoder = {name.removeprefix("model."): value for name, value in tensors.items() if name.startswith("model.")}
    model.decoder.load_state_dict(decoder)
    return model.eval(), tokenizer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--state", type=Path, required=True)
    parser.add_argument("--to", type=Path, required=True)
    options = parser.parse_args()
    state = torch.load(options.state / "seer.pt", weights_only=False)
    model = Seer(make_tokenizer().get_vocab_size())
    model.load_state_dict(state["model"])
    save(model, options.to)
    print(f"step {state['step']} -> {options.to}")


if __name__ == "__main__":
    main()
