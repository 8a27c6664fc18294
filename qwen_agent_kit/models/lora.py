"""Low-rank adapters beside a decoder's matrices: y = W x + scale * B A x (LoRA, arXiv 2106.09685, section 4.1).

Read from what the ``peft`` library writes: ``adapter_config.json`` and ``adapter_model.safetensors`` (huggingface/peft,
``LoraConfig`` and ``save_pretrained``). The base model's own matrices stay as they are, so that requests with different
adapters, or none, run in one batch over one copy of the weights.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

import torch

from qwen_agent_kit.errors import ModelError
from qwen_agent_kit.models.config import DecoderConfig
from qwen_agent_kit.models.fields import Fields, read_json
from qwen_agent_kit.models.safetensors_file import SafetensorsFile

__all__ = ["Adapter", "Update", "adapter_parameters", "read_adapter"]

_CONFIG, _WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_MOST_RANK = 4096
_NAME = re.compile(
    r"(?:base_model\.)?(?:(?:model|thinker|language_model)\.)*layers\.(\d{1,4})\."
    r"((?:self_attn|mlp)\.[a-z]+_proj)\.lora_(A|B)\.(?:default\.)?weight"
)
_TARGETS = "q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj of dense layers"
_PLAIN: Mapping[str, object] = {"use_dora": False, "lora_bias": False, "fan_in_fan_out": False, "bias": "none"}
"""Fields of the configuration that mean another computation where they are something else."""


@dataclass(frozen=True, slots=True)
class Update:
    """What is added to some columns of one matrix's result.

    Args:
        first: The first of these columns.
        a: [r, K].
        b: [columns, r], scaled.
    """

    first: int
    a: torch.Tensor
    b: torch.Tensor


@dataclass(frozen=True, eq=False)
class Adapter:
    """An adapter for one model; its tensors are in the activations' dtype.

    Args:
        updates: By layer and matrix: ``qkv``, ``out``, ``gate_up`` or ``down``.
        digest: SHA-256 over its files, in hexadecimal: keys and values belong to it.
    """

    updates: Mapping[tuple[int, str], tuple[Update, ...]]
    digest: str = ""
    _moved: dict[torch.device, Adapter] = field(default_factory=dict, init=False, repr=False)

    @property
    def nbytes(self) -> int:
        """What its tensors take."""
        return sum(u.a.nbytes + u.b.nbytes for of in self.updates.values() for u in of)

    def add(self, layer: int, matrix: str, x: torch.Tensor, y: torch.Tensor) -> None:
        """Add its part to y [n, N], the product of x [n, K] with a matrix of a layer."""
        for update in self._on(x.device).updates.get((layer, matrix), ()):
            y[:, update.first : update.first + len(update.b)] += x @ update.a.T @ update.b.T

    def _on(self, device: torch.device) -> Adapter:
        """The same on a device, made once for each."""
        held = next(iter(self.updates.values()))[0].a.device if self.updates else device
        if held == device:
            return self
        if device not in self._moved:
            moved = {
                key: tuple(Update(u.first, u.a.to(device), u.b.to(device)) for u in of)
                for key, of in self.updates.items()
            }
            self._moved[device] = Adapter(moved, self.digest)
        return self._moved[device]


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a projection lies in ours."""

    matrix: str
    first: int
    rows: int
    columns: int


def _places(config: DecoderConfig) -> Mapping[str, _Place]:
    hidden, wide = config.hidden, config.intermediate
    q, kv = config.heads * config.head_dim, config.kv_heads * config.head_dim
    return {
        "self_attn.q_proj": _Place("qkv", 0, q, hidden),
        "self_attn.k_proj": _Place("qkv", q, kv, hidden),
        "self_attn.v_proj": _Place("qkv", q + kv, kv, hidden),
        "self_attn.o_proj": _Place("out", 0, hidden, q),
        "mlp.gate_proj": _Place("gate_up", 0, wide, hidden),
        "mlp.up_proj": _Place("gate_up", wide, wide, hidden),
        "mlp.down_proj": _Place("down", 0, hidden, wide),
    }


def read_adapter(folder: Path, config: DecoderConfig, dtype: torch.dtype) -> Adapter:
    """The adapter in a directory.

    Args:
        folder: With adapter_config.json and adapter_model.safetensors; pickles are not read.
        config: Of the model that it is for.
        dtype: Of the model's activations.

    Raises:
        ModelError: Where a file is missing or refused, or the adapter is for another model; names what.
    """
    for name in (_CONFIG, _WEIGHTS):
        if not (folder / name).is_file():
            hint = "`peft` writes it: model.save_pretrained(folder)"
            raise ModelError(f"`{name}` is missing in `{folder.name}`", hint=hint, code="file_not_found")
    described = Fields(read_json(folder / _CONFIG), _CONFIG)
    _check(described)
    file = SafetensorsFile(folder / _WEIGHTS)
    pairs = _pairs(file, config)
    updates: dict[tuple[int, str], list[Update]] = {}
    places = _places(config)
    for (layer, target), names in sorted(pairs.items()):
        place = places[target]
        _check_shapes(file, names, place)
        a, b = (_finite(file, names[half]) for half in "AB")
        scale = _scale(described, f"layers.{layer}.{target}", len(a))
        updates.setdefault((layer, place.matrix), []).append(
            Update(place.first, a.to(dtype).contiguous(), (b * scale).to(dtype).contiguous())
        )
    return Adapter({key: tuple(of) for key, of in updates.items()}, _digest(folder))


def adapter_parameters(folder: Path) -> int:
    """How many numbers the adapter in a directory holds, by its header; 0 where that cannot be read."""
    try:
        return sum(math.prod(entry.shape) for entry in SafetensorsFile(folder / _WEIGHTS).entries.values())
    except (ModelError, OSError):
        return 0


def _check(described: Fields) -> None:
    if described.data.get("peft_type") != "LORA":
        described.refuse("peft_type", "LORA")
    for name, value in _PLAIN.items():
        if described.data.get(name, value) not in (value, None):
            described.refuse(name, f"{value!r}", hint="merge the adapter into the model, and open that")
    for name in ("modules_to_save", "layer_replication", "trainable_token_indices"):
        if described.data.get(name):
            described.refuse(name, "nothing", hint="merge the adapter into the model, and open that")


def _pairs(file: SafetensorsFile, config: DecoderConfig) -> Mapping[tuple[int, str], dict[str, str]]:
    """By layer and projection, the names of A and B."""
    pairs: dict[tuple[int, str], dict[str, str]] = {}
    places = _places(config)
    for name in file.entries:
        match = _NAME.fullmatch(name)
        if match is None or match[2] not in places:
            _refuse(f"`{name[:200]}` in `{_WEIGHTS}` is not served; allowed: {_TARGETS}")
        layer = int(match[1])
        if layer >= config.layers:
            _refuse(f"`{name}` in `{_WEIGHTS}` is of layer {layer}; the model has {config.layers}")
        if match[2].startswith("mlp") and config.sparse and config.sparse[layer]:
            _refuse(f"`{name}` in `{_WEIGHTS}` is for a layer of experts; allowed: {_TARGETS}")
        halves = pairs.setdefault((layer, match[2]), {})
        if match[3] in halves:
            _refuse(f"`{name}` in `{_WEIGHTS}` is there twice, as `{halves[match[3]]}` too")
        halves[match[3]] = name
    for halves in pairs.values():
        if len(halves) < 2:
            _refuse(f"`{next(iter(halves.values()))}` in `{_WEIGHTS}` has no other half; allowed: lora_A with lora_B")
    if not pairs:
        _refuse(f"`{_WEIGHTS}` holds no tensors")
    return pairs


def _check_shapes(file: SafetensorsFile, names: Mapping[str, str], place: _Place) -> None:
    a, b = (file.entries[names[half]].shape for half in "AB")
    rank = a[0] if len(a) == 2 else 0
    for half, found, wanted in (("A", a, (rank, place.columns)), ("B", b, (place.rows, rank))):
        if not 1 <= rank <= _MOST_RANK or found != wanted:
            asked = ["r", place.columns] if half == "A" else [place.rows, rank or "r"]
            _refuse(f"`{names[half]}` in `{_WEIGHTS}` is of shape {list(found)}; the model asks for {asked}")


def _finite(file: SafetensorsFile, name: str) -> torch.Tensor:
    tensor = file.read(name)
    if not tensor.dtype.is_floating_point or not bool(tensor.float().isfinite().all()):
        _refuse(f"`{name}` in `{_WEIGHTS}` holds something else than finite numbers")
    return tensor.float()


def _scale(described: Fields, module: str, rank: int) -> float:
    alpha = described.real("lora_alpha", -1e6, 1e6, 8.0)
    patterns = described.data.get("alpha_pattern") or {}
    if not isinstance(patterns, dict):
        described.refuse("alpha_pattern", "an object of numbers by module")
    for pattern in _matching(described, patterns, module):
        alpha = Fields(patterns, f"alpha_pattern of {_CONFIG}").real(pattern, -1e6, 1e6)
        break
    rooted = described.flag("use_rslora", False)  # arXiv 2312.03732
    return alpha / (math.sqrt(rank) if rooted else rank)


def _matching(described: Fields, patterns: Mapping[str, object], module: str) -> Iterator[str]:
    """Keys that mean the module: its name or its last parts; ``peft`` also takes regular expressions."""
    for pattern in patterns:
        plain = pattern.lstrip("^").replace("\\.", ".")
        if not re.fullmatch(r"[\w.]+", plain):
            described.refuse("alpha_pattern", "plain names of modules")
        if f".{module}".endswith(f".{plain}") or plain.endswith(f".{module}"):
            yield pattern


def _digest(folder: Path) -> str:
    together = hashlib.sha256()
    for name in (_CONFIG, _WEIGHTS):
        with (folder / name).open("rb") as file:
            together.update(hashlib.file_digest(file, "sha256").digest())
    return together.hexdigest()


def _refuse(what: str) -> NoReturn:
    raise ModelError(what, hint="an adapter belongs to the model that it was trained on", code="invalid_adapter")
