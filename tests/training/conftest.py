"""The folder ``training`` belongs to no distribution; it is put beside the installed wheels under its own name."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

package = ModuleType("training")
package.__path__ = [str(Path(__file__).resolve().parents[2] / "training")]
sys.modules.setdefault("training", package)
