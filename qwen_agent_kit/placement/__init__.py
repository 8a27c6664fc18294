"""What fits on this machine, and where it goes. Imports no torch."""

from __future__ import annotations

from qwen_agent_kit.placement.devices import Device, Inventory, inventory
from qwen_agent_kit.placement.plan import SCHEMES, Plan, make_plan, weight_bytes
from qwen_agent_kit.placement.shape import Shape, read_shape

__all__ = ["Device", "Inventory", "Plan", "SCHEMES", "Shape", "inventory", "make_plan", "read_shape", "weight_bytes"]
