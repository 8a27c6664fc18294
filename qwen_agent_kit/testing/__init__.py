"""For the tests of those who build on the kit: doubles, tiny real models and contract checks.

Names are imported on first use: ``ScriptedModel`` needs nothing, the tiny models need torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qwen_agent_kit.testing.checks import check_backend as check_backend
    from qwen_agent_kit.testing.checks import check_engine as check_engine
    from qwen_agent_kit.testing.models import tiny_model_dir as tiny_model_dir
    from qwen_agent_kit.testing.scripted import ScriptedModel as ScriptedModel
    from qwen_agent_kit.testing.tools import check_tools as check_tools

_HOMES = {
    "ScriptedModel": "scripted",
    "check_backend": "checks",
    "check_engine": "checks",
    "check_tools": "tools",
    "tiny_model_dir": "models",
}

__all__ = sorted(_HOMES)  # derived, so that the list and the homes cannot part


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
