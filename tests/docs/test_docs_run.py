"""The code in README and the guides runs as it stands, on the real weights."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[2]
PAGES = [CHECKOUT / "README.md", *sorted((CHECKOUT / "docs").rglob("*.md"))]
PYTHON = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
WITH_CODE = [page for page in PAGES if PYTHON.search(page.read_text(encoding="utf-8"))]


@pytest.fixture
def real_home(private_home: Path, smollm2_gguf: Path) -> Path:
    """A root whose cache holds the real weights, as after `make demo`."""
    folder = private_home / "cache" / "models" / "smollm2"
    folder.mkdir(parents=True)
    shutil.copy(smollm2_gguf, folder / smollm2_gguf.name)
    return private_home


@pytest.mark.parametrize("page", WITH_CODE, ids=lambda page: str(page.relative_to(CHECKOUT)))
def test_the_code_of_a_page_runs(page: Path, real_home: Path, tmp_path: Path) -> None:
    """The python blocks of a page run one after the other, as one program; a page about a plugin, where that is."""
    program = tmp_path / "page.py"
    code = "\n".join(PYTHON.findall(page.read_text(encoding="utf-8")))
    for plugin in re.findall(r"^from (qwen_agent_kit_[a-z]+)", code, re.MULTILINE):
        pytest.importorskip(plugin)
    program.write_text(code, encoding="utf-8")
    environment = {**os.environ, "QAK_HOME": str(real_home), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-W", "error::DeprecationWarning:__main__", str(program)]
    run = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert run.returncode == 0, run.stderr[-3000:]


def test_links_between_pages_hold() -> None:
    """Each relative link names a file that exists."""
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_architecture_page_lists_the_modules() -> None:
    """Each module and package at the top of the core has its line, and none that is gone has one."""
    text = (CHECKOUT / "docs" / "architecture.md").read_text(encoding="utf-8")
    listed = set(re.findall(r"^\| `([a-z_]+)` \|", text, re.MULTILINE))
    package = CHECKOUT / "qwen_agent_kit"
    found = {path.stem for path in package.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert listed == found - {"__init__", "__main__"}
