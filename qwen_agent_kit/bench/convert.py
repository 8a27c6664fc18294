"""A GGUF model in the files that other engines are best with: made once, kept in the cache."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from qwen_agent_kit.errors import UsageError
from qwen_agent_kit.models.config import DecoderConfig
from qwen_agent_kit.models.gguf_config import config_from_gguf
from qwen_agent_kit.models.gguf_file import GGUFFile, GGUFModel
from qwen_agent_kit.models.naming import naming_for
from qwen_agent_kit.paths import cache_dir

__all__ = ["requantised", "transformers_dir"]

_CLASSES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}
_MATRICES = ("qkv", "out", "gate_up", "down")
_VECTORS = ("attn_norm", "mlp_norm")
_EIGHT = ("token_embd.weight", "output.weight")


def requantised(path: Path, kind: str) -> Path:
    """The GGUF file ``path`` with every matrix in ``kind``, ``Q8_0`` or ``Q4_0``.

    Embedding and head stay in Q8_0, as llama.cpp's own tool has it at least.

    Raises:
        UsageError: For another kind, or a path that is no GGUF file.
    """
    if kind not in ("Q8_0", "Q4_0"):
        raise UsageError(f"`kind` is {kind!r}; allowed: Q8_0, Q4_0")
    _require_gguf(path)
    if _is_all(path, kind):
        return path
    place = cache_dir("bench") / f"{_key(path)}-{kind}.gguf"
    if not place.exists():
        temporary = place.with_suffix(f".{os.getpid()}.tmp")
        try:
            _write_gguf(path, kind, temporary)
            os.replace(temporary, place)
        finally:
            temporary.unlink(missing_ok=True)
    return place


def transformers_dir(path: Path) -> Path:
    """A directory that ``from_pretrained`` opens at once, in bfloat16; ``path`` itself where it is one.

    transformers reads GGUF files too, but takes the better part of a minute for it.

    Raises:
        UsageError: For an architecture that is not written here.
    """
    if path.is_dir():
        return path
    _require_gguf(path)
    place = cache_dir("bench") / f"{_key(path)}-bf16"
    if not (place / "config.json").exists():
        place.mkdir(mode=0o700, exist_ok=True)
        _write_directory(GGUFFile(path), place)
    return place


def _is_all(path: Path, kind: str) -> bool:
    """Whether that is what ``requantised`` would make."""
    import gguf

    wanted = {name: "Q8_0" if name in _EIGHT else kind for name in GGUFFile(path).entries}
    entries = ((name, e) for name, e in GGUFFile(path).entries.items() if len(e.shape) > 1)
    return all(gguf.GGMLQuantizationType(e.kind).name == wanted[name] for name, e in entries)


def _require_gguf(path: Path) -> None:
    if path.suffix.lower() != ".gguf":
        raise UsageError(f"`{path}` is no GGUF file", hint="peers are fed from GGUF files")


def _key(path: Path) -> str:
    known = path.stat()
    return hashlib.sha256(f"{path.absolute()}\0{known.st_size}\0{known.st_mtime_ns}".encode()).hexdigest()[:24]


def _write_gguf(source: Path, kind: str, place: Path) -> None:
    import gguf

    reader = gguf.GGUFReader(source)
    arch = str(reader.fields["general.architecture"].contents())
    writer = gguf.GGUFWriter(place, arch)
    for name, entry in reader.fields.items():
        if name.startswith("GGUF.") or name in ("general.architecture", "general.file_type"):
            continue
        element = entry.types[-1] if len(entry.types) > 1 else None
        writer.add_key_value(name, entry.contents(), entry.types[0], element)
    eight = gguf.GGMLQuantizationType.Q8_0
    for tensor in reader.tensors:
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        shape = [int(n) for n in reversed(tensor.shape)]
        if len(shape) < 2:
            writer.add_tensor(tensor.name, values.reshape(shape))
            continue
        wanted = eight if tensor.name in _EIGHT else gguf.GGMLQuantizationType[kind]
        writer.add_tensor(tensor.name, gguf.quants.quantize(values.reshape(shape), wanted), raw_dtype=wanted)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _write_directory(file: GGUFFile, place: Path) -> None:
    from safetensors.torch import save_file

    config = config_from_gguf(file)
    if config.model_type not in _CLASSES or config.rope.kind != "default":
        raise UsageError(f"{config.model_type!r} is not written for transformers; allowed: {', '.join(_CLASSES)}")
    save_file(dict(_tensors(file, config)), place / "model.safetensors", metadata={"format": "pt"})
    (place / "config.json").write_text(json.dumps(_config(config)), encoding="utf-8")


def _tensors(file: GGUFFile, config: DecoderConfig) -> Iterator[tuple[str, torch.Tensor]]:
    model = GGUFModel(file, heads=config.heads, kv_heads=config.kv_heads)
    theirs = naming_for("transformers", ("model.embed_tokens.weight",))

    def each(ours: str, layer: int = 0, kind: str = "weight") -> Iterator[tuple[str, torch.Tensor]]:
        pairs = zip(theirs.parts(ours, kind, layer), model.naming.parts(ours, kind, layer), strict=True)
        for to, of in pairs:
            yield to.name, model.read(of.name).to(torch.bfloat16).contiguous()

    for ours in ("embedding", "norm", *(() if config.tied else ("head",))):
        yield from each(ours)
    for layer in range(config.layers):
        for ours in (*_MATRICES, *_VECTORS, *(("q_norm", "k_norm") if config.qk_norm else ())):
            yield from each(ours, layer)
        if config.qkv_bias:
            yield from each("qkv", layer, "bias")


def _config(config: DecoderConfig) -> dict[str, Any]:
    return {
        "model_type": config.model_type,
        "architectures": [_CLASSES[config.model_type]],
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden,
        "intermediate_size": config.intermediate,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "max_position_embeddings": config.max_positions,
        "rms_norm_eps": config.norm_eps,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope.theta},
        "tie_word_embeddings": config.tied,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
        "dtype": "bfloat16",
    }
