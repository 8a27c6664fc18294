"""Models of any catalogued shape with random weights, made in memory: as large and as fast as the real ones.

What they say means nothing. They go through the true packing, decoder and engine, which is what sizes and speeds are
measured on.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qwen_agent_kit.testing.models import tiny_tokenizer

if TYPE_CHECKING:
    import torch

    from qwen_agent_kit.models import DecoderConfig, LoadedModel
    from qwen_agent_kit.models.naming import Naming

__all__ = ["RandomCheckpoint", "random_model", "random_model_dir", "random_tensors"]


class RandomCheckpoint:
    """A checkpoint whose tensors are made when they are read; the same name gives the same tensor.

    A million values are drawn once and laid out again and again, from another place for each tensor: the largest models
    are made at the speed of copying.

    Args:
        config: What it is a checkpoint of.
        seed: Another one, other weights.
    """

    def __init__(self, config: DecoderConfig, seed: int = 0) -> None:
        import torch

        from qwen_agent_kit.models.naming import naming_for
        from qwen_agent_kit.models.packing import wanted

        generator = torch.Generator().manual_seed(seed)
        # A prime number of values, so that no row begins as another does.
        self._pool = torch.empty(1_000_003, dtype=torch.bfloat16).normal_(0.0, 0.02, generator=generator)
        self._naming = naming_for("qwen" if config.model_type == "qwen" else "transformers", ())
        self._shapes = {part.name: shape for part, shape in wanted(config, self._naming)}

    @property
    def naming(self) -> Naming:
        return self._naming

    def shape(self, name: str) -> tuple[int, ...] | None:
        return self._shapes.get(name)

    def where(self, name: str) -> str:
        del name
        return "random weights"

    def read(self, name: str, index: int | None = None) -> torch.Tensor:
        del index
        shape = self._shapes[name]
        pool = self._pool
        count, start = math.prod(shape), zlib.crc32(name.encode()) % pool.numel()
        again = pool.roll(-start).repeat(-(-count // pool.numel()))[:count].view(shape)
        return again + 1 if len(shape) == 1 and "norm" in name else again


def random_tensors(config: Mapping[str, Any], scheme: str, seed: int = 0) -> dict[str, torch.Tensor]:
    """The packed tensors of a model whose config.json is ``config``.

    Raises:
        ModelError: Where the kit's decoder does not cover it.
    """
    from qwen_agent_kit.models.config import config_from
    from qwen_agent_kit.models.heap import gathered
    from qwen_agent_kit.models.packing import pack

    decoder = config_from(config)
    return gathered(pack(RandomCheckpoint(decoder, seed), decoder, scheme))


def random_model(config: Mapping[str, Any], scheme: str, seed: int = 0) -> LoadedModel:
    """A model whose config.json is ``config``, ready for an engine; its tokenizer knows a few hundred tokens.

    Raises:
        ModelError: Where the kit's decoder does not cover it.
    """
    from qwen_agent_kit.models import LoadedModel
    from qwen_agent_kit.models.config import config_from
    from qwen_agent_kit.models.packing import build

    decoder = config_from(config)
    return LoadedModel(
        model=build(random_tensors(config, scheme, seed), decoder, scheme),
        config=decoder,
        tokenizer_json=tiny_tokenizer(512),
        scheme=scheme,
    )


def random_model_dir(folder: Path, config: Mapping[str, Any], seed: int = 0) -> Path:
    """Write a model whose config.json is ``config``: random weights in bfloat16, a tokenizer of a few hundred tokens.

    Raises:
        ModelError: Where the kit's decoder does not cover it.
    """
    from safetensors.torch import save_file

    from qwen_agent_kit.models.config import config_from
    from qwen_agent_kit.models.packing import wanted

    decoder = config_from(config)
    checkpoint = RandomCheckpoint(decoder, seed)
    names = {part.name for part, _ in wanted(decoder, checkpoint.naming)}
    save_file({name: checkpoint.read(name) for name in sorted(names)}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(dict(config)))
    (folder / "tokenizer.json").write_text(tiny_tokenizer(512))
    return folder
