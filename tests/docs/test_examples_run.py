"""The examples are short and run as they stand, on the real weights."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def test_the_pipeline_goes_on(private_home: Path, smollm2_gguf: Path, tmp_path: Path) -> None:
    """examples/pipeline.py has at most 60 lines; its second run leaves alone what the first did."""
    example = EXAMPLES / "pipeline.py"
    assert example.read_text(encoding="utf-8").count("\n") <= 60
    folder = private_home / "cache" / "models" / "smollm2"
    folder.mkdir(parents=True)
    shutil.copy(smollm2_gguf, folder / smollm2_gguf.name)
    command = [sys.executable, str(example)]
    done = subprocess.run(
        command, cwd=tmp_path, env=dict(os.environ), capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "first run: 2 done; second run: 2 before, 2 done, 0 failed" in done.stdout
    assert done.stdout.count('"happy": ') == 4
