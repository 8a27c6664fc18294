"""What fits on this machine, and where it goes. Imports no torch."""

from __future__ import annotations

from qwen_agent_kit.placement.devices import Device, Inventory, inventory
from qwen_agent_kit.placement.footprint import Footprint, file_bytes, footprint, weight_bytes
from qwen_agent_kit.placement.layout import LAYOUTS
from qwen_agent_kit.placement.plan import Placement, Plan, Wishes
from qwen_agent_kit.placement.planner import Model, plan_model, plan_together
from qwen_agent_kit.placement.reading import read_shape, shape_from_config
from qwen_agent_kit.placement.shape import Shape
from qwen_agent_kit.placement.sources import make_plan, model_of

SCHEMES: dict[str, int] = {name: layout.value for name, layout in LAYOUTS.items() if layout.ours}
"""Scheme to the bytes of one activation and KV value under it."""

__all__ = [
    "Device",
    "Footprint",
    "Inventory",
    "Model",
    "Placement",
    "Plan",
    "SCHEMES",
    "Shape",
    "Wishes",
    "file_bytes",
    "footprint",
    "inventory",
    "make_plan",
    "model_of",
    "plan_model",
    "plan_together",
    "read_shape",
    "shape_from_config",
    "weight_bytes",
]
