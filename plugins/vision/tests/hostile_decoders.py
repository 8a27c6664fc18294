"""Decoders as a file that took one over would make them."""

from __future__ import annotations

import os
import time
from typing import Any


def hang(data: bytes) -> Any:
    time.sleep(60)


def die(data: bytes) -> Any:
    os.kill(os.getpid(), 11)


def eat(data: bytes) -> Any:
    return {}, [bytearray(2**30)]
