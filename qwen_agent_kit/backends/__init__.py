"""The contracts between the agent, the engines and the plugins.

``ChatModel`` (messages in, deltas out) is what the agent, pipelines and servers speak; ``Engine`` (ids in, ids out) is
what the local one stands on; ``Backend`` is what a modality plugin offers.
"""

from __future__ import annotations

from qwen_agent_kit.backends.chat import (
    CallDelta,
    CallDone,
    Capabilities,
    ChatModel,
    ChatRequest,
    Delta,
    EngineSpec,
    Finish,
)
from qwen_agent_kit.backends.modality import (
    Backend,
    Choice,
    Embeddings,
    Encoder,
    MediaBudget,
    ModelFacts,
    Run,
    Share,
    Slice,
)
from qwen_agent_kit.backends.sampling import Sampling
from qwen_agent_kit.backends.tokens import Engine, Generation, MediaSpan, Piece, Prompt, SpanBudget
from qwen_agent_kit.backends.usage import Usage

__all__ = [
    "Backend",
    "CallDelta",
    "CallDone",
    "Capabilities",
    "ChatModel",
    "ChatRequest",
    "Choice",
    "Delta",
    "Embeddings",
    "Encoder",
    "Engine",
    "EngineSpec",
    "Finish",
    "Generation",
    "MediaBudget",
    "MediaSpan",
    "ModelFacts",
    "Piece",
    "Prompt",
    "Run",
    "Sampling",
    "Share",
    "Slice",
    "SpanBudget",
    "Usage",
]
