"""The trained model as an ordinary Qwen2-Audio checkpoint, and back.

``python -m training.audio.export --state DIR --to FOLDER``.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer

from training.audio.mel import BANDS, HOP, RATE, SECONDS, WINDOW
from training.audio.tower import EncoderSize
from training.audio.train import Listener
from training.checkpoint import AUDIO_TEMPLATE, text_config, write_folder
from training.tokenizer import make_tokenizer


def config_of(model: Listener, tokenizer: Tokenizer) -> dict[str, Any]:
    """``config.json``."""
    size = asdict(EncoderSize())
    size.pop("out")
    audio = size | {
        "activation_function": "gelu",
        "dropout": 0.0,
        "encoder_layerdrop": 0.0,
        "model_type": "qwen2_audio_encoder",
        "num_mel_bins": BANDS,
        "scale_embedding": False,
    }
    return {
        "architectures": ["Qwen2AudioForConditionalGeneration"],
        "audio_config": audio,
        "audio_token_index": tokenizer.token_to_id("<|AUDIO|>"),
        "ignore_index": -100,
        "model_type": "qwen2_audio",
        "text_config": text_config(model.decoder.size) | {"model_type": "qwen2", "tie_word_embeddings": False},
        "torch_dtype": "bfloat16",
        "vocab_size": model.decoder.size.vocab_size,
    }


def processor_of() -> dict[str, Any]:
    """``preprocessor_config.json``."""
    return {
        "chunk_length": SECONDS,
        "feature_extractor_type": "WhisperFeatureExtractor",
        "feature_size": BANDS,
        "hop_length": HOP,
        "n_fft": WINDOW,
        "n_samples": SECONDS * RATE,
        "nb_max_frames": SECONDS * RATE // HOP,
        "padding_side": "right",
        "padding_value": 0.0,
        "processor_class": "Qwen2AudioProcessor",
        "return_attention_mask": True,
        "sampling_rate": RATE,
    }


def save(model: Listener, folder: Path) -> None:
    """Write the checkpoint. Qwen2-Audio has a head of its own, so the tied one is written twice."""
    encoder, projector = model.encoder.official()
    decoder = model.decoder.official()
    tensors = {f"audio_tower.{name}": value for name, value in encoder.items()}
    tensors |= {f"multi_modal_projector.{name}": value for name, value in projector.items()}
    tensors |= {f"language_model.model.{name}": value for name, value in decoder.items()}
    tensors["language_model.lm_head.weight"] = decoder["embed_tokens.weight"]
    tokenizer = make_tokenizer()
    write_folder(
        folder,
        tensors,
        tokenizer,
        config=config_of(model, tokenizer),
        processor=processor_of(),
        template=AUDIO_TEMPLATE,
    )


def load(folder: Path) -> tuple[Listener, Tokenizer]:
    """The checkpoint as the training's own model in float32."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    model = Listener(tokenizer.get_vocab_size())
    tensors = {name: value.float() for name, value in load_file(folder / "model.safetensors").items()}

    def under(prefix: str) -> dict[str, torch.Tensor]:
        return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}

    encoder = under("audio_tower.")
    encoder["positions"] = encoder.pop("embed_positions.weight")
    encoder |= {f"projector.{name}": value for name, value in under("multi_modal_projector.linear.").items()}
    model.encoder.load_state_dict(encoder)
    model.decoder.load_state_dict(under("language_model.model."))
    return model.eval(), tokenizer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--state", type=Path, required=True)
    parser.add_argument("--to", type=Path, required=True)
    options = parser.parse_args()
    state = torch.load(options.state / "listener.pt", weights_only=False)
    model = Listener(make_tokenizer().get_vocab_size())
    model.load_state_dict(state["model"])
    save(model, options.to)
    print(f"step {state['step']} -> {options.to}")


if __name__ == "__main__":
    main()
