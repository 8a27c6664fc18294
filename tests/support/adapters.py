"""LoRA adapters as ``peft`` writes them, with random tensors, and the same merged into transformers' model."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def write_adapter(
    folder: Path,
    model: Any,
    *,
    seed: int = 0,
    rank: int = 4,
    targets: Sequence[str] = PROJECTIONS,
    layers: Sequence[int] | None = None,
    **fields: Any,
) -> Path:
    """An adapter for transformers' ``model``; its configuration has ``fields``.

    Args:
        folder: Made here.
        model: Whose layers give the shapes.
        seed: Of the random tensors, which are large enough to change what is said.
        rank: r.
        targets: Which projections it changes.
        layers: Of which layers; of all where None.
    """
    folder.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, module in model.named_modules():
        parts = name.split(".")
        if parts[-1] not in targets or (layers is not None and int(parts[parts.index("layers") + 1]) not in layers):
            continue
        rows, columns = module.weight.shape
        tensors[f"base_model.model.{name}.lora_A.weight"] = torch.randn(rank, columns, generator=generator) * 0.2
        tensors[f"base_model.model.{name}.lora_B.weight"] = torch.randn(rows, rank, generator=generator) * 0.2
    save_file(tensors, str(folder / "adapter_model.safetensors"))
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": 8, "bias": "none", "target_modules": [*targets], **fields}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def merge(model: Any, folder: Path, scale: float) -> Any:
    """Add ``scale`` * B A to the weights of transformers' ``model``, in place."""
    from safetensors.torch import load_file

    tensors = load_file(str(folder / "adapter_model.safetensors"))
    for name, a in tensors.items():
        if ".lora_A." in name:
            module = model.get_submodule(name.removeprefix("base_model.model.").removesuffix(".lora_A.weight"))
            with torch.no_grad():
                module.weight += scale * tensors[name.replace("lora_A", "lora_B")] @ a
    return model
