"""The pages of documentation: which plugins their python code needs, and running it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]
PAGES = [CHECKOUT / "README.md", *sorted((CHECKOUT / "docs").rglob("*.md"))]
PYTHON = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
SHIPPED = {path.parent.name for path in CHECKOUT.glob("plugins/*/pyproject.toml")}


def code_of(page: Path) -> str:
    """The python blocks of a page, one after the other."""
    return "\n".join(PYTHON.findall(page.read_text(encoding="utf-8")))


def needs(page: Path) -> frozenset[str]:
    """The shipped plugins that a page's code imports."""
    named = re.findall(r"^ *(?:from|import) qwen_agent_kit_([a-z]+)", code_of(page), re.MULTILINE)
    return frozenset(named) & SHIPPED


def pages_for(*plugins: str) -> list[Path]:
    """The pages with code that needs exactly these plugins."""
    return [page for page in PAGES if code_of(page) and needs(page) == frozenset(plugins)]


def name_of(page: Path) -> str:
    """Its path in the checkout."""
    return str(page.relative_to(CHECKOUT))


def run_page(page: Path, home: Path, folder: Path) -> None:
    """Run the code of a page as one program, in ``folder``."""
    program = folder / "page.py"
    program.write_text(code_of(page), encoding="utf-8")
    environment = {**os.environ, "QAK_HOME": str(home), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-W", "error::DeprecationWarning:__main__", str(program)]
    run = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert run.returncode == 0, run.stderr[-3000:]
