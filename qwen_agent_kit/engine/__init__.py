"""The engine: ids in, ids out. Its modules import torch and are only imported when a model is opened."""

from qwen_agent_kit.engine.engine import Engine
from qwen_agent_kit.engine.generation import Generation

__all__ = ["Engine", "Generation"]
