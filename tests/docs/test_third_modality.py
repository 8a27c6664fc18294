"""A modality of one's own: the example plugin is built, installed beside the kit, and its own tests pass."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

SERIES = Path(__file__).resolve().parents[2] / "examples" / "series"


def _run(command: list[str], folder: Path, site: Path) -> str:
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(site), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    return done.stdout


def test_the_third_modality_is_a_plugin_like_others(tmp_path: Path) -> None:
    """A wheel with one module; `qak plugins` lists it by its metadata, and a model of it answers."""
    source, site = tmp_path / "series", tmp_path / "site"
    shutil.copytree(SERIES, source, ignore=shutil.ignore_patterns("__pycache__"))
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-qq", "install", "--no-index"]
    _run([*pip, "--no-deps", "--no-build-isolation", "--target", str(site), str(source)], tmp_path, site)
    listed = _run([sys.executable, "-m", "qwen_agent_kit", "plugins"], tmp_path, site)
    assert "qwen-agent-kit-series" in listed
    options = ["-q", "-p", "no:cacheprovider", "--import-mode=importlib", "-W", "error"]
    told = _run([sys.executable, "-m", "pytest", *options, str(source / "tests")], source, site)
    assert "9 passed" in told


def test_it_was_written_in_few_lines() -> None:
    """The plugin and the program that trains a model for it stay short enough to read."""
    for name, most in (("qwen_agent_kit_series.py", 60), ("make_model.py", 70)):
        assert (SERIES / name).read_text(encoding="utf-8").count("\n") <= most
