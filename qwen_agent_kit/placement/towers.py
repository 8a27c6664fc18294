"""Vision and audio encoders: their parameters, and what they need while they run.

Counts follow transformers' classes (models/qwen2_vl, qwen2_5_vl, qwen3_vl, qwen3_5, qwen2_audio, qwen2_5_omni,
qwen3_omni_moe) and equal what they hold when built on the meta device.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["Tower", "audio_tower", "vision_tower"]

Sizes = Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Tower:
    """An encoder.

    Args:
        kind: ``vision`` or ``audio``.
        parameters: All of them.
        width: Of its residual stream.
        ffn: Of its MLP.
        heads: Of its attention.
        tokens_per_pixel: Positions that it computes per pixel (vision).
        tokens_per_second: Positions that it computes per second (audio).
        fold: Positions of the tower per position of the language model.
    """

    kind: str
    parameters: int
    width: int
    ffn: int
    heads: int
    tokens_per_pixel: float = 0.0
    tokens_per_second: float = 0.0
    fold: float = 1.0

    def positions(self, pixels: int = 0, seconds: float = 0.0) -> int:
        """What it computes for so many pixels or seconds."""
        return int(pixels * self.tokens_per_pixel + seconds * self.tokens_per_second)

    def activation_bytes(self, positions: int, value: int) -> int:
        """While a layer runs: stream, qkv and the MLP's halves, and the attention's scores of one block of rows."""
        stream = positions * (6 * self.width + 2 * self.ffn) * value
        return stream + self.heads * min(positions, 1024) * positions * 4


def _linear(rows: int, columns: int, bias: bool = True) -> int:
    return rows * columns + (rows if bias else 0)


def vision_tower(kind: str, given: Sizes, hidden: int, deepstack: int = 0) -> Tower:
    """The tower of a ``vision_config``.

    Args:
        kind: The model's family: ``qwen2_vl``, ``qwen2_5_vl`` or ``qwen3_vl``; Qwen3.5's is the last one's.
        given: The config's sizes, defaults filled in.
        hidden: Width of the language model.
        deepstack: Mergers besides the last (Qwen3-VL).
    """
    width, depth, merge = given["width"], given["depth"], given["spatial_merge_size"] ** 2
    patch = given["in_channels"] * given["temporal_patch_size"] * given["patch_size"] ** 2
    attention = _linear(3 * width, width) + _linear(width, width)
    merged = width * merge
    merger = _linear(merged, merged) + _linear(hidden, merged)
    if kind == "qwen2_vl":
        ffn = width * given["mlp_ratio"]
        layer = attention + 4 * width + _linear(ffn, width) + _linear(width, ffn)
        count = patch * width + depth * layer + merger + 2 * width
    elif kind == "qwen2_5_vl":
        ffn = given["intermediate_size"]
        layer = attention + 2 * width + 2 * _linear(ffn, width) + _linear(width, ffn)
        count = patch * width + depth * layer + merger + width
    else:
        ffn = given["intermediate_size"]
        layer = attention + 4 * width + _linear(ffn, width) + _linear(width, ffn)
        count = patch * width + width + given["num_position_embeddings"] * width
        count += depth * layer + merger + 2 * width + deepstack * (merger + 2 * merged)
    return Tower(
        kind="vision",
        parameters=count,
        width=width,
        ffn=ffn,
        heads=given["num_heads"],
        tokens_per_pixel=1 / given["patch_size"] ** 2,
        fold=merge,
    )


def audio_tower(kind: str, given: Sizes, hidden: int) -> Tower:
    """The tower of an ``audio_config``.

    Args:
        kind: ``qwen2_audio``, ``qwen2_5_omni`` or ``qwen3_omni``.
        given: The config's sizes, defaults filled in.
        hidden: Width of the language model.
    """
    width, ffn, mel = given["d_model"], given["encoder_ffn_dim"], given["num_mel_bins"]
    layer = 4 * _linear(width, width) + 4 * width + _linear(ffn, width) + _linear(width, ffn)
    if kind != "qwen3_omni":
        layer -= width  # k has no bias
        convolutions = width * mel * 3 + width + width * width * 3 + width
        count = convolutions + given["encoder_layers"] * layer + 2 * width + _linear(hidden, width)
        # Positions that are learned, or the two vectors around a clip.
        count += given["max_source_positions"] * width if kind == "qwen2_audio" else 2 * hidden
        rate, fold = 50.0, 2.0
    else:
        down = given["downsample_hidden_size"]
        halved = mel
        for _ in range(3):
            halved = (halved + 1) // 2
        convolutions = down * 9 + down + 2 * (down * down * 9 + down) + width * down * halved
        count = (
            convolutions + given["encoder_layers"] * layer + 2 * width + _linear(width, width) + _linear(hidden, width)
        )
        rate, fold = 12.5, 1.0
    return Tower("audio", count, width, ffn, given["encoder_attention_heads"], tokens_per_second=rate, fold=fold)
