"""Text backend: the text-only Qwen checkpoints, and the Llama-shaped ones that our decoder covers as well."""

from __future__ import annotations

from qwen_agent_kit import Backend, hookimpl

QAK_API = 1


@hookimpl
def register_backends() -> list[Backend]:
    """Offer the text-only checkpoints."""
    families = ("qwen", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "qwen3_next", "llama")
    return [Backend(name="text", accepts=frozenset({"text"}), families=families, default="Qwen/Qwen3-4B")]
