"""Reads the conformance cases."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


def folder() -> Path:
    """The folder of the cases."""
    return Path(os.environ["QAK_CONFORMANCE"])


def load(name: str) -> list[dict[str, Any]]:
    """The cases of one file, in order."""
    return [json.loads(line) for line in (folder() / name).read_text(encoding="utf-8").splitlines() if line.strip()]
