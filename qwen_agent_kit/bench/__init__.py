"""Measurements of the kit itself; ``qak bench`` prints them."""

from __future__ import annotations
