"""Whether this machine can build the native kernels, which decides how int8 and int4 are laid out."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

__all__ = ["compiler"]


def compiler() -> Path | None:
    """The C compiler that would be used: ``CC``, else cc, gcc or clang; None where there is none or QAK_NATIVE=0."""
    if os.environ.get("QAK_NATIVE", "1").lower() in ("0", "off", "false", "no") or sys.platform == "win32":
        return None
    names = (os.environ.get("CC", ""), "cc", "gcc", "clang")
    found = next((path for name in names if name and (path := shutil.which(name))), None)
    return None if found is None else Path(found)
