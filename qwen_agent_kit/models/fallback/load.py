"""Opens a directory whose architecture only transformers knows. No code from the model, no pickles, no network."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import prod
from pathlib import Path
from typing import Any

import torch

from qwen_agent_kit import foreign
from qwen_agent_kit.errors import ModelError, UsageError
from qwen_agent_kit.models.config import refuse_code
from qwen_agent_kit.models.fallback.decoder import ForeignDecoder
from qwen_agent_kit.models.fields import Fields
from qwen_agent_kit.models.linear import value_dtype
from qwen_agent_kit.models.safetensors_file import SafetensorsModel

__all__ = ["SCHEMES", "check_scheme", "load_foreign"]

SCHEMES = ("fp32", "bf16")

_MOST = {
    "num_hidden_layers": 1024,
    "hidden_size": 2**17,
    "vocab_size": 2**22,
    "num_attention_heads": 2048,
    "num_experts": 4096,
    "num_local_experts": 4096,
    "n_routed_experts": 4096,
}


def check_scheme(quant: str, model_type: str) -> None:
    """Refuse what transformers' modules are not run in here.

    Raises:
        UsageError: Names the schemes.
    """
    if quant not in SCHEMES:
        raise UsageError(
            f"`quant` is {quant!r}; `{model_type}` runs through transformers; allowed: {', '.join(SCHEMES)}",
            hint="quant='bf16' takes the least memory there",
        )


def load_foreign(folder: Path, data: Mapping[str, Any], quant: str) -> ForeignDecoder | None:
    """The model in ``folder`` by transformers' classes; None where transformers does not know it either.

    Args:
        folder: Holds safetensors files.
        data: Its config.json.
        quant: ``fp32`` or ``bf16``.

    Raises:
        UsageError: For another scheme, or where transformers is not installed.
        ModelError: Where the configuration asks for code, is out of range, or does not fit the weights.
    """
    for inner in _objects(data):
        refuse_code(Fields(inner, "config.json"))
        _check_sizes(Fields(inner, "config.json"))
    kind = data.get("model_type")
    if not isinstance(kind, str) or kind not in (transformers := foreign.transformers()).CONFIG_MAPPING:
        return None
    check_scheme(quant, kind)
    if data.get("quantization_config") is not None:
        Fields(data, "config.json").refuse("quantization_config", "nothing for models that run through transformers")
    if (folder / "adapter_config.json").exists():
        raise ModelError("`adapter_config.json` names another model; allowed: whole models", hint="merge the adapter")
    checkpoint = SafetensorsModel(folder, "transformers")
    config = _config(transformers, kind, data)
    _check_weights(transformers, config, checkpoint)
    return ForeignDecoder(_model(transformers, folder, config, value_dtype(quant)), value_dtype(quant))


def _objects(data: Mapping[str, Any], depth: int = 0) -> Iterator[Mapping[str, Any]]:
    """A config and the configs inside it."""
    yield data
    for value in data.values():
        if isinstance(value, Mapping) and depth < 4:
            yield from _objects(value, depth + 1)


def _check_sizes(given: Fields) -> None:
    for name, most in _MOST.items():
        if given.has(name) and isinstance(given.data[name], int):
            given.whole(name, 0, most)
    if given.has("num_key_value_heads") and given.has("num_attention_heads"):
        heads = given.whole("num_attention_heads", 1, 2048)
        if heads % given.whole("num_key_value_heads", 1, heads):
            given.refuse("num_key_value_heads", f"a divisor of `num_attention_heads` {heads}")


def _config(transformers: Any, kind: str, data: Mapping[str, Any]) -> Any:
    own = {k: v for k, v in data.items() if not k.lstrip("_").startswith(("attn_impl", "experts_impl"))}
    plain = _numbers(own)
    try:
        config = transformers.CONFIG_MAPPING[kind].from_dict(plain)
    except Exception as error:  # whatever its checks raise
        raise ModelError(
            f"`config.json` is refused by transformers' `{kind}`: {str(error)[:200]}", code="invalid_config"
        ) from error
    if type(config) not in transformers.MODEL_FOR_CAUSAL_LM_MAPPING:
        raise ModelError(
            f"`model_type` in `config.json` is {kind!r}, which writes no text; allowed: causal language models",
            code="invalid_config",
        )
    return config


def _numbers(value: Any) -> Any:
    """The same with numbers that JSON has no words for, which transformers writes as ``{"__float__": "Infinity"}``."""
    if isinstance(value, Mapping):
        if set(value) == {"__float__"} and value["__float__"] in ("Infinity", "-Infinity", "NaN"):
            return float(value["__float__"])
        return {key: _numbers(inner) for key, inner in value.items()}
    return [_numbers(inner) for inner in value] if isinstance(value, list) else value


def _check_weights(transformers: Any, config: Any, checkpoint: SafetensorsModel) -> None:
    """Hold the number of weights that the configuration asks for against the files', before any is allocated."""
    try:
        with torch.device("meta"):
            asked = sum(p.numel() for p in transformers.AutoModelForCausalLM.from_config(config).parameters())
    except Exception as error:  # whatever its constructor raises
        raise ModelError(
            f"transformers' `{config.model_type}` cannot be built from `config.json`: {str(error)[:200]}",
            code="invalid_config",
        ) from error
    found = sum(prod(checkpoint.shape(name) or (0,)) for name in checkpoint.names)
    if asked > found * 1.01:
        raise ModelError(
            f"the configuration asks for {asked:,} weights; the files hold {found:,}",
            hint="config.json and weights belong to different models, or a file is missing",
            code="invalid_weights",
        )


def _model(transformers: Any, folder: Path, config: Any, dtype: torch.dtype) -> Any:
    shown = transformers.utils.logging.is_progress_bar_enabled()
    transformers.utils.logging.disable_progress_bar()
    try:
        model, told = transformers.AutoModelForCausalLM.from_pretrained(
            folder,
            config=config,
            dtype=dtype,
            attn_implementation="eager",
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    except (RuntimeError, ValueError, OSError, KeyError) as error:
        raise ModelError(
            f"transformers does not open `{folder.name}`: {str(error)[:300]}", code="invalid_weights"
        ) from error
    finally:
        if shown:
            transformers.utils.logging.enable_progress_bar()
    if wrong := sorted(str(name) for name in (*told["missing_keys"], *told["mismatched_keys"])):
        raise ModelError(
            f"`{wrong[0][:200]}` is missing or of another shape than the configuration asks for",
            hint="config.json and weights belong to different models, or a file is missing",
            code="invalid_weights",
        )
    return model.eval().requires_grad_(False)
