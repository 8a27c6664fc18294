"""A planned model, loaded, with its engine."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from qwen_agent_kit.errors import UsageError
from qwen_agent_kit.host.tuning import tune, undisturbed
from qwen_agent_kit.paths import cache_dir

if TYPE_CHECKING:
    from qwen_agent_kit.backends import Encoder
    from qwen_agent_kit.engine import Engine
    from qwen_agent_kit.models import LoadedModel
    from qwen_agent_kit.placement import Plan

__all__ = ["open_engine"]


@undisturbed()
def open_engine(
    path: Path,
    chosen: Plan,
    *,
    cache: bool,
    prefixes: bool,
    encoder: Encoder | None,
    adapters: Mapping[str, str | Path],
) -> tuple[LoadedModel, Engine]:
    """Load the model at ``path`` as planned.

    Args:
        path: A directory or a GGUF file.
        chosen: Where its layers go, how they are held, and what its keys and values may take.
        cache: Whether packed weights are kept on disk.
        prefixes: Whether keys and values of long prompts are.
        encoder: For its media.
        adapters: By name, the directories of LoRA adapters.

    Raises:
        UsageError: Where torch is not installed.
        ModelError: Where the files are refused.
    """
    tune()
    try:
        from qwen_agent_kit.engine import Engine
        from qwen_agent_kit.models import load_model
    except ModuleNotFoundError as error:
        raise UsageError(
            f"running a model here needs `{error.name}`, which is not installed",
            hint='pip install "qwen-agent-kit[engine]"',
        ) from error
    disk = next((range(*placed.layers) for placed in chosen.placements if placed.kind == "disk"), range(0))
    weights = cache_dir("weights") if cache else None
    loaded = load_model(path, quant=chosen.scheme, device="cpu", cache=weights, disk=disk)
    engine = Engine(
        loaded,
        context=chosen.context,
        kv_bytes=max(chosen.kv_bytes + chosen.state_bytes, _spare(chosen)),
        prefixes=cache_dir("prefixes") if prefixes else None,
        encoder=encoder,
        adapters=adapters,
    )
    return loaded, engine


def _spare(chosen: Plan) -> int:
    """KV for several conversations, 8 at their longest: a quarter of what stays free, at most 1 GiB."""
    return min(2**30, 8 * chosen.kv_bytes, max(0, chosen.free_bytes - chosen.total_bytes) // 4)
