"""The only door to transformers, torchvision and qwen_vl_utils.

``qwen_vl_utils`` imports torchvision at its top, and transformers' Qwen-VL video processors need it. Where torchvision
is installed beside a torch that it was not built for, its compiled library does not load; its Python half then fails at
import with "operator torchvision::nms does not exist", and takes transformers' model classes with it. So the two
operator schemas that its import looks up are declared here first. Their kernels stay missing; the kit calls neither.
"""

from __future__ import annotations

import importlib
import importlib.util
from types import ModuleType
from typing import Any

from qwen_agent_kit.errors import UsageError

__all__ = ["qwen_vl_utils", "torchvision", "transformers"]

_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)


def transformers() -> ModuleType:
    """The module ``transformers``.

    Raises:
        UsageError: Where it is not installed.
    """
    _mend_torchvision()
    return _load("transformers", 'pip install "transformers>=5"')


def torchvision() -> ModuleType:
    """The module ``torchvision``; its compiled operators may be missing.

    Raises:
        UsageError: Where it is not installed.
    """
    _mend_torchvision()
    return _load("torchvision", "pip install torchvision")


def qwen_vl_utils() -> ModuleType:
    """The module ``qwen_vl_utils``, for its numbers; never call its ``fetch_*``, which open any path or URL.

    Raises:
        UsageError: Where it is not installed.
    """
    _mend_torchvision()
    return _load("qwen_vl_utils", "pip install qwen-vl-utils")


def _load(name: str, cure: str) -> ModuleType:
    if importlib.util.find_spec(name) is None:
        raise UsageError(f"`{name}` is needed here and is not installed", hint=cure)
    return importlib.import_module(name)


def _mend_torchvision() -> None:
    """Declare torchvision's operator schemas where its own library cannot (idempotent)."""
    spec = importlib.util.find_spec("torchvision")
    if spec is None or not spec.submodule_search_locations:
        return
    import torch

    if _declared(torch) or _library_loads(torch, spec.submodule_search_locations[0]):
        return
    library: Any = torch.library.Library  # torch leaves it untyped
    owner = library("torchvision", "DEF")
    for schema in _SCHEMAS:
        owner.define(schema)
    vars(torch)["_qak_torchvision_schemas"] = owner  # the schemas live as long as this object


def _declared(torch: ModuleType) -> bool:
    return hasattr(torch.ops.torchvision, "nms")


def _library_loads(torch: ModuleType, folder: str) -> bool:
    from pathlib import Path

    libraries = sorted(Path(folder).glob("_C*.so")) + sorted(Path(folder).glob("_C*.pyd"))
    for library in libraries:
        try:
            torch.ops.load_library(str(library))
        except OSError:
            return False
    return bool(libraries) and _declared(torch)
