"""Directories and files of the kit: private to the user."""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path

import pytest

from qwen_agent_kit.paths import cache_dir


@pytest.mark.skipif(sys.platform == "win32", reason="modes are POSIX")
def test_every_directory_that_is_made_is_private(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not the last one alone: those above it are made with mode 0700 as well, whatever the umask."""
    monkeypatch.setenv("QAK_HOME", str(tmp_path / "home"))
    before = os.umask(0o022)
    try:
        made = cache_dir("models", "one")
    finally:
        os.umask(before)
    assert made == tmp_path / "home" / "cache" / "models" / "one"
    for directory in (made, *made.parents[:3]):
        assert stat.S_IMODE(directory.stat().st_mode) == 0o700, directory
