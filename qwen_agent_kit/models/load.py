"""Opens a model: a directory with config.json and safetensors, or a GGUF file. No transformers, no network."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qwen_agent_kit.errors import EngineError, ModelError, PlanError, UsageError
from qwen_agent_kit.models.config import DecoderConfig, config_from, is_ours
from qwen_agent_kit.models.decoder import Decoder
from qwen_agent_kit.models.fallback.decoder import ForeignConfig, ForeignDecoder
from qwen_agent_kit.models.fallback.load import load_foreign
from qwen_agent_kit.models.fields import read_json
from qwen_agent_kit.models.gguf_config import config_from_gguf
from qwen_agent_kit.models.gguf_file import GGUFFile, GGUFModel
from qwen_agent_kit.models.gguf_tokenizer import special_from_gguf, tokenizer_from_gguf
from qwen_agent_kit.models.heap import gathered
from qwen_agent_kit.models.linear import scheme_key, value_dtype
from qwen_agent_kit.models.lora import Adapter, read_adapter
from qwen_agent_kit.models.packing import Checkpoint, build, check, most_tensors, pack
from qwen_agent_kit.models.parked import ParkedLayers
from qwen_agent_kit.models.quantised import QuantisedModel, method_for, quantisation_of
from qwen_agent_kit.models.safetensors_file import SafetensorsModel, weight_files
from qwen_agent_kit.models.text_files import TextFiles, eos_from_gguf, read_text_files
from qwen_agent_kit.models.weight_cache import LAYOUT, WeightCache, file_digest
from qwen_agent_kit.placement.reading import thinker_of

__all__ = ["LoadedModel", "load_model"]

_LOG = logging.getLogger("qwen_agent_kit")

_NONE = range(0)

_CACHE_HINT = "make room in the cache directory, and leave `cache` on"

_PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")


@dataclass(frozen=True)
class LoadedModel:
    """Weights, tokenizer and what the model's files say about using them.

    Args:
        model: Ready to run.
        config: What it is made of.
        tokenizer_json: The text of a tokenizer.json.
        template: The chat template, None where the model has none.
        special: ``bos_token`` and the like, as the template sees them.
        eos: Ids that end a generation.
        sampling_defaults: Fields of ``Sampling``.
        digest: SHA-256 over the files that it came from.
        scheme: How its weights are held.
    """

    model: Decoder | ForeignDecoder
    config: DecoderConfig | ForeignConfig
    tokenizer_json: str
    template: str | None = None
    special: Mapping[str, str] = field(default_factory=dict)
    eos: tuple[int, ...] = ()
    sampling_defaults: Mapping[str, Any] = field(default_factory=dict)
    digest: str = ""
    scheme: str = "fp32"

    def adapter(self, folder: str | Path) -> Adapter:
        """Read a LoRA adapter for this model.

        Raises:
            ModelError: Where its files are missing or refused, or it is for another model.
            UsageError: Where the model runs through transformers.
        """
        if not isinstance(self.config, DecoderConfig):
            raise UsageError(
                "adapters need the kit's own decoder; this model runs through transformers",
                hint="merge the adapter into the model, and open that",
            )
        return read_adapter(Path(folder), self.config, self.model.dtype)


@dataclass(frozen=True)
class _Source:
    """A model that was found but not read: its files, and how to read them."""

    files: tuple[Path, ...]
    describe: Callable[[], tuple[DecoderConfig, Checkpoint, TextFiles]]


def load_model(
    path: str | Path,
    *,
    quant: str = "fp32",
    device: str = "cpu",
    cache: str | Path | None = None,
    disk: range = _NONE,
    devices: Sequence[str] = (),
) -> LoadedModel:
    """Open the model at ``path``.

    Args:
        path: A directory with config.json, tokenizer.json and safetensors, or a ``.gguf`` file.
        quant: ``fp32``, ``bf16``, ``int8`` or ``int4``.
        device: ``cpu``.
        cache: Where packed weights are kept for the next start; nowhere where None.
        disk: Layers that stay in the cache and are read from it each time they run; it must be writable then.
        devices: Of each layer, as ``cuda.step.devices_of`` reads them off a plan; all on the CPU where empty. Each
            matrix goes to its device as soon as it is packed; fp32 and bf16 only, and without the cache.

    Raises:
        UsageError: For an unknown scheme or device, or layers on disk without a cache.
        ModelError: Where a file is missing or refused, or is cut while it is read; names the file and the field or
            tensor.
        PlanError: Where memory is refused on the way; what was loaded until then is let go.
    """
    value_dtype(quant)
    if device != "cpu":
        raise UsageError(f"`device` is {device!r}; allowed: cpu")
    if devices and (quant not in ("fp32", "bf16") or disk):
        raise UsageError(f"layers on several devices are dense; found quant={quant!r}", hint="quant='bf16', no disk")
    with _whole_or_nothing(Path(path).name):
        return _spread(Path(path), quant, devices) if devices else _load(Path(path), quant, cache, disk)


@contextlib.contextmanager
def _whole_or_nothing(name: str) -> Iterator[None]:
    """A load that fails keeps nothing: whoever keeps the error would keep its frames, and they hold tensors."""
    try:
        yield
    except BaseException as error:
        traceback.clear_frames(error.__traceback__)
        if _no_memory(error):
            raise PlanError(
                f"there was no memory left while `{name}` was loaded; nothing of it was kept",
                hint="close other programs, or choose a coarser scheme: quant='int4'",
                code="out_of_memory",
            ) from error
        raise


def _no_memory(error: BaseException) -> bool:
    if isinstance(error, EngineError):  # of the native kernels, which pack
        return error.code == "out_of_memory"
    # torch has no error of its own for it on a CPU.
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and "memory" in str(error))


def _load(path: Path, quant: str, cache: str | Path | None, disk: range) -> LoadedModel:
    source = _find(path)
    kept = None if cache is None else _cache(Path(cache))
    if disk and kept is None:
        raise UsageError("layers that stay on disk are mapped from the weight cache; there is none", hint=_CACHE_HINT)
    parked: ParkedLayers | None = None
    digest = _digest(source.files, file_digest if kept is None else kept.digest)
    if Path(path).is_dir() and (foreign := _foreign(Path(path), quant, digest)) is not None:
        return foreign
    if kept is None:
        config, checkpoint, texts = source.describe()
        check(checkpoint, config)
        tensors = gathered(pack(checkpoint, config, quant))
    else:
        key = f"{digest[:32]}-{scheme_key(quant)}-v{LAYOUT}"
        if disk:
            config, texts, parked = _parked(kept, source, key, quant, disk)
            tensors = parked.tensors
        else:
            config, texts, tensors = _through(kept, source, key, quant)
    return _loaded(build(tensors, config, quant, parked), config, texts, digest, quant)


def _loaded(
    model: Decoder | ForeignDecoder, config: DecoderConfig | ForeignConfig, texts: TextFiles, digest: str, quant: str
) -> LoadedModel:
    return LoadedModel(
        model=model,
        config=config,
        tokenizer_json=texts.tokenizer_json,
        template=texts.template,
        special=texts.special,
        eos=texts.eos,
        sampling_defaults=texts.sampling,
        digest=digest,
        scheme=quant,
    )


def _spread(path: Path, quant: str, devices: Sequence[str]) -> LoadedModel:
    """A dense model of ours over several devices."""
    from qwen_agent_kit.models.cuda.step import move, spread

    source = _find(path)
    config, checkpoint, texts = source.describe()
    if len(devices) != config.layers:
        raise PlanError(f"{len(devices)} layers were placed; the model has {config.layers}", hint="plan it again")
    check(checkpoint, config)
    model = build(gathered(spread(pack(checkpoint, config, quant), devices)), config, quant)
    move(model, devices)  # what is not packed: rotations and constants
    return _loaded(model, config, texts, _digest(source.files, file_digest), quant)


def _foreign(folder: Path, quant: str, digest: str) -> LoadedModel | None:
    """A model that only transformers knows; None where it is ours, or nobody's."""
    data = read_json(folder / "config.json", largest=2**22)
    if is_ours(data) or (model := load_foreign(folder, data, quant)) is None:
        return None
    texts = read_text_files(folder, data, model.config.vocab_size)
    return _loaded(model, model.config, texts, digest, quant)


def _cache(folder: Path) -> WeightCache | None:
    try:
        return WeightCache(folder)
    except OSError as error:
        _LOG.warning("the weight cache cannot be used: %s", error.strerror)
        return None


def _through(
    cache: WeightCache, source: _Source, key: str, quant: str
) -> tuple[DecoderConfig, TextFiles, dict[str, Any]]:
    """From the cache, which is filled first where it lacks the model; past it where it cannot be written."""
    found = cache.load(key)
    if found is None:
        config, checkpoint, texts = source.describe()
        check(checkpoint, config)
        try:
            _fill(cache, key, quant, config, checkpoint, texts)
            found = cache.load(key)
        except OSError as error:
            _LOG.warning("packed weights could not be kept: %s", error.strerror)
        if found is None:
            return config, texts, gathered(pack(checkpoint, config, quant))
    tensors, model = found
    return DecoderConfig.from_dict(model["config"]), TextFiles.from_dict(model["texts"]), tensors


def _parked(
    cache: WeightCache, source: _Source, key: str, quant: str, layers: range
) -> tuple[DecoderConfig, TextFiles, ParkedLayers]:
    """From the cache, which is filled first where it lacks the model, some layers left there."""
    found = cache.load_parked(key, layers)
    if found is None:
        config, checkpoint, texts = source.describe()
        check(checkpoint, config)
        try:
            _fill(cache, key, quant, config, checkpoint, texts)
        except OSError as error:
            raise PlanError(f"layers cannot stay on disk: {error.strerror}", hint=_CACHE_HINT) from error
        found = cache.load_parked(key, layers)
        if found is None:
            raise PlanError("layers cannot stay on disk: what was written there cannot be read", hint=_CACHE_HINT)
    parked, model = found
    return DecoderConfig.from_dict(model["config"]), TextFiles.from_dict(model["texts"]), parked


def _fill(
    cache: WeightCache, key: str, quant: str, config: DecoderConfig, checkpoint: Checkpoint, texts: TextFiles
) -> None:
    model = {"config": config.to_dict(), "texts": texts.to_dict()}
    cache.store(key, pack(checkpoint, config, quant), model, most=most_tensors(config))


def _digest(files: tuple[Path, ...], one: Callable[[Path], str]) -> str:
    """Over names and contents, in order; of a single file its own."""
    if len(files) == 1:
        return one(files[0])
    together = hashlib.sha256()
    for file in files:
        together.update(f"{file.name}\0{one(file)}\n".encode())
    return together.hexdigest()


def _find(path: Path) -> _Source:
    if path.is_dir():
        return _directory(path)
    if not path.is_file():
        raise ModelError(f"`{path}` is neither a file nor a directory", hint="check the path, or fetch the model")
    if path.suffix.lower() in _PICKLES:
        raise ModelError(
            f"`{path.name}` is a pickled checkpoint, which can run code when opened; allowed: .safetensors, .gguf",
            hint="take the model's safetensors files, or convert it where you trust it",
            code="pickled_weights",
        )
    if path.suffix.lower() == ".safetensors":
        raise ModelError(f"`{path.name}` is one file of a model", hint=f"name its directory: {path.parent}")
    return _Source((path,), lambda: _gguf(path))


def _gguf(path: Path) -> tuple[DecoderConfig, Checkpoint, TextFiles]:
    file = GGUFFile(path)
    config = config_from_gguf(file)
    metadata = file.metadata
    template = metadata.get("tokenizer.chat_template")
    texts = TextFiles(
        tokenizer_json=tokenizer_from_gguf(metadata, path.name),
        template=template if isinstance(template, str) else None,
        special=special_from_gguf(metadata),
        eos=eos_from_gguf(metadata),
    )
    return config, GGUFModel(file, heads=config.heads, kv_heads=config.kv_heads), texts


def _unquantised(data: Mapping[str, Any]) -> dict[str, Any]:
    """A config.json without what says how the weights are quantised, which an Omni model may keep with its thinker."""
    inner = data.get("thinker_config")
    nested = {"thinker_config": _unquantised(inner)} if isinstance(inner, Mapping) else {}
    return {k: v for k, v in data.items() if k != "quantization_config"} | nested


_TEXTS = (
    "config.json",
    "quantize_config.json",
    "quant_config.json",
    "generation_config.json",
    "tokenizer.json",
    "qwen.tiktoken",
    "tokenizer_config.json",
    "chat_template.jinja",
    "chat_template.json",
)


def _directory(folder: Path) -> _Source:
    weights = weight_files(folder)
    if not (folder / "config.json").is_file():
        raise ModelError(
            f"`{folder / 'config.json'}` is missing", hint="a model directory holds it; fetch the model again"
        )
    texts = [folder / name for name in _TEXTS if (folder / name).is_file()]

    def describe() -> tuple[DecoderConfig, Checkpoint, TextFiles]:
        data = read_json(folder / "config.json", largest=2**22)
        quantisation = quantisation_of({**thinker_of(data), **data}, folder)
        config = config_from(_unquantised(data))
        convention = "qwen" if config.model_type == "qwen" else "transformers"
        plain = SafetensorsModel(folder, convention)
        checkpoint = plain if quantisation is None else QuantisedModel(plain, method_for(quantisation))
        return config, checkpoint, read_text_files(folder, data, config.vocab_size)

    return _Source((*texts, *weights), describe)
