"""A folder that counts as installed, with the scripted engine in it."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """Put scripted models into it with ``scripted_cli.scripted``."""
    folder = tmp_path / "site"
    folder.mkdir()
    return folder
