"""Models of our own: the shared decoder, quantised linears, and the loaders of their files."""

from __future__ import annotations

from qwen_agent_kit.models.config import DecoderConfig, config_from
from qwen_agent_kit.models.decoder import Decoder
from qwen_agent_kit.models.fallback.decoder import ForeignConfig, ForeignDecoder
from qwen_agent_kit.models.fields import read_json
from qwen_agent_kit.models.gguf_tokenizer import tokenizer_from_gguf
from qwen_agent_kit.models.linear import Linear, make_linear
from qwen_agent_kit.models.load import LoadedModel, load_model
from qwen_agent_kit.models.lora import Adapter, adapter_parameters
from qwen_agent_kit.models.safetensors_file import SafetensorsModel
from qwen_agent_kit.models.segments import KeyValues, Segment
from qwen_agent_kit.models.weight_cache import WeightCache

__all__ = [
    "Adapter",
    "Decoder",
    "DecoderConfig",
    "ForeignConfig",
    "ForeignDecoder",
    "KeyValues",
    "Linear",
    "LoadedModel",
    "SafetensorsModel",
    "Segment",
    "WeightCache",
    "adapter_parameters",
    "config_from",
    "load_model",
    "make_linear",
    "read_json",
    "tokenizer_from_gguf",
]
